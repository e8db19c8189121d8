"""The model that lmms-eval asks, `internvl25`: our loading, tiling and batching behind its calls.

    request (context, settings, pictures) -> tiles and `<image>` tags -> batch_ids -> text

What lmms-eval's own `internvl2` does otherwise, and why a score differs: it cuts every image into
at most 6 tiles whatever the benchmark, drops every setting but three (so `temperature` is gone and
64 "samples" are one), labels frames as the model was not trained (`Frame1:`), cannot compute
likelihoods, and needs a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger  # what lmms-eval logs with; nothing else is seen beside it
from tqdm import tqdm

from internvl import hub
from internvl.chat.media import Limits, read_image, read_video
from internvl.chat.media import Media as Tiles
from internvl.chat.prompt import PromptMaker, chat_model
from internvl.chat.request import Turn, compose
from internvl.evaluation import prompts
from internvl.evaluation.engines.lmms_eval_requests import (
    Media,
    cut,
    flat,
    generation_settings,
    is_video,
    media_of,
)

IMAGE = "<image>"
MODEL_NAME = "internvl25"
# Answers that are sampled from one prefill at once.
SAMPLES = 8


@dataclass(frozen=True)
class Asked:
    """A request, ready for the model.

    Attributes:
        question: with its `<image>` tags.
        tiles: its pictures and videos, read and cut.
    """

    question: str
    tiles: tuple[Tiles, ...]

    @property
    def pixel_values(self) -> torch.Tensor | None:
        """(n, 3, S, S) uint8 tiles of all of them; None without."""
        return torch.cat([each.pixel_values for each in self.tiles]) if self.tiles else None

    @property
    def num_tiles(self) -> list[int]:
        """Tiles of each image or frame."""
        return [n for each in self.tiles for n in each.num_tiles]


class InternVL25(lmms):
    """InternVL 1.5, 2.0 and 2.5 for lmms-eval.

    Args:
        pretrained: folder or Hub id; the demo of this repository when None.
        subfolder: folder within it.
        revision: branch, tag or commit.
        adapter: PEFT adapter to put on it.
        dtype: as in `hub.load`.
        quantization: as in `hub.load`.
        device: where it runs; the accelerator of this process, or the CPU, when None.
        device_map: "auto" spreads one model over all accelerators.
        batch_size: questions at once.
        max_tiles: of an image; that of the task's benchmark when None.
        total_tiles: that the images of a question share; likewise.
        num_frames: of a video; likewise.
        stop_at_blank_line: honour a blank line among the stop strings.
        max_batch_size: not used; lmms-eval may pass it.

    Raises:
        ValueError: as in `hub.load`, or a vision encoder.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        adapter: str | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        device: str | None = None,
        device_map: str | None = None,
        batch_size: int | str = 1,
        max_tiles: int | str | None = None,
        total_tiles: int | str | None = None,
        num_frames: int | str | None = None,
        stop_at_blank_line: bool = False,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._rank, self._world_size = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        where = torch.device(device) if device else self.accelerator.device
        placed: Any = device_map if device_map else {"": where} if where.type != "cpu" else None
        loaded = hub.load(
            pretrained,
            subfolder=subfolder,
            revision=revision,
            adapter=adapter,
            dtype=dtype,
            quantization=quantization,
            device_map=placed,
        )
        if loaded.tokenizer is None:
            raise ValueError(f"{pretrained} is a vision encoder, which cannot answer.")
        self._device = where
        # The one module among the attributes, which lmms-eval frees before it starts a judge.
        self._model = loaded.model
        self.processor, self.tokenizer = loaded.processor, loaded.tokenizer
        template = chat_model(self._model).conv_template
        self._decoder = hub.ring0("streaming_internvl_chat").AnswerDecoder(
            self.tokenizer, template.end_of_turn
        )
        self.batch_size = int(batch_size)
        limits = {"max_tiles": max_tiles, "total_tiles": total_tiles, "num_frames": num_frames}
        self._limits = {k: int(v) for k, v in limits.items() if v is not None}
        self._stop_at_blank_line = stop_at_blank_line
        self._media: dict[str, Media] = {}
        self._told: set[str] = set()

    @property
    def model(self) -> Any:
        """The chat model, in its adapter's wrapper if it has one."""
        return self._model

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts tensors of its own."""
        return self._device

    # ------------------------------------------------------------------ answers
    @torch.no_grad()
    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """Answer requests, those of equal settings in batches."""
        results: list[GenerationResult | None] = [None] * len(requests)
        groups: dict[str, list[list[int]]] = {}
        # A task that repeats its questions hands the same object over several times, in a row.
        numbered = itertools.groupby(range(len(requests)), key=lambda i: id(requests[i]))
        for _, indices in numbered:
            places = list(indices)
            settings = repr(sorted(requests[places[0]].args[1].items()))
            groups.setdefault(settings, []).append(places)
        with tqdm(total=len(requests), desc=MODEL_NAME, disable=self.rank != 0) as bar:
            for members in groups.values():
                for batch in self._batches(requests, members):
                    asked = [requests[places[0]].args for places in batch]
                    for places, answers in zip(
                        batch, self._answer(asked, list(map(len, batch))), strict=True
                    ):
                        for place, answer in zip(places, answers, strict=True):
                            results[place] = answer
                        bar.update(len(places))
        return [each for each in results if each is not None]

    def _batches(
        self, requests: Sequence[Any], members: list[list[int]]
    ) -> Iterator[list[list[int]]]:
        """Batches of questions; one that is sampled several times is a batch of its own."""
        settings = self.settings(requests[members[0][0]].args[1])
        if settings["do_sample"] and any(len(places) > 1 for places in members):
            yield from ([places] for places in members)
            return
        for start in range(0, len(members), self.batch_size):
            yield members[start : start + self.batch_size]

    def _answer(self, requests: Sequence[tuple], counts: list[int]) -> list[list[GenerationResult]]:
        """Answers to requests of equal settings, `counts` of each."""
        asked = [self.ask(*each[:1], *each[2:]) for each in requests]
        settings = self.settings(requests[0][1])
        if not settings["do_sample"]:
            greedy = [self._results(*one, settings) for one in self._ids(asked, settings)]
            return [each * count for each, count in zip(greedy, counts, strict=True)]
        if len(asked) > 1:
            return [self._results(*one, settings) for one in self._ids(asked, settings)]
        found: list[GenerationResult] = []
        while len(found) < counts[0]:
            size = min(SAMPLES, counts[0] - len(found))
            several = {**settings, "num_return_sequences": size} if size > 1 else settings
            found += self._results(*self._ids(asked, several)[0], settings)
        return [found]

    def _ids(self, asked: Sequence[Asked], settings: dict[str, Any]) -> list[tuple[int, list]]:
        pixels = [tiles.pixel_values for each in asked for tiles in each.tiles]
        if "stop_strings" in settings:
            settings = {**settings, "tokenizer": self.tokenizer}
        return self._model.batch_ids(
            self.tokenizer,
            torch.cat(pixels) if pixels else None,
            [each.question for each in asked],
            settings,
            num_patches_list=[each.num_tiles for each in asked],
        )

    def _results(
        self, prompt: int, answers: list[list[int]], settings: Mapping[str, Any]
    ) -> list[GenerationResult]:
        return [
            GenerationResult(
                cut(self._decoder.answer(ids), settings.get("stop_strings", ())),
                TokenCounts(input_tokens=prompt, output_tokens=len(ids)),
            )
            for ids in answers
        ]

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of `generate` for those of a task, see `generation_settings`."""
        found, unknown = generation_settings(given, stop_at_blank_line=self._stop_at_blank_line)
        if unknown:
            self._tell(f"generate has no {', '.join(unknown)}; left out")
        return found

    # ------------------------------------------------------------------ likelihoods
    @torch.no_grad()
    def loglikelihood(self, requests: list[Any]) -> list[GenerationResult]:
        """Score given answers: their *negative* log-likelihood, and whether they are the greedy
        ones.

        lmms-eval 0.7.3 chooses the option of the smallest number (its models return losses), and
        turns a bare pair into text before its metrics read it, so the pair comes in the wrapper
        that it takes out again; its interface says otherwise in both, and its response cache cannot
        hold what its evaluator can read (run such tasks without --use_cache). A single space before
        the answer, which separates it from the question in a plain text, is dropped: the answer
        begins the assistant's turn.
        """
        found = []
        seen: tuple[Any, Asked, torch.Tensor | None] | None = None
        for request in tqdm(requests, desc=MODEL_NAME, disable=self.rank != 0):
            context, answer, *rest = request.args
            key = (context, *(each for each in rest if not callable(each)))
            if seen is None or seen[0] != key:  # the options of a question share its pictures
                asked = self.ask(context, *rest)
                seen = (key, asked, self._features(asked))
            if callable(answer):
                answer = answer(self.task_dict[rest[2]][rest[3]][rest[1]])
            score = self._score(seen[1], seen[2], str(answer).removeprefix(" "))
            found.append(GenerationResult(score))
        return found

    def _features(self, asked: Asked) -> torch.Tensor | None:
        pixels = asked.pixel_values
        return None if pixels is None else chat_model(self._model).extract_feature(pixels)

    def _score(
        self, asked: Asked, features: torch.Tensor | None, answer: str
    ) -> tuple[float, bool]:
        """Negative log-likelihood of an answer, and whether it is the greedy one as far as it
        goes."""
        inner = chat_model(self._model)
        maker = PromptMaker(inner, self.processor, self.tokenizer)
        request = compose([Turn(asked.question, asked.tiles)], self.processor.frame_prefix)
        prompt = maker.ids(request, inner.system_message)
        conversation = hub.ring0("conversation")
        ids = conversation.encode([conversation.Piece(answer, False)], self.tokenizer)
        bos = [self.tokenizer.bos_token_id]
        ids = ids[1:] if ids[:1] == bos and prompt[:1] == bos else ids
        if not ids:
            return 0.0, True
        inputs = maker.inputs([*prompt, *ids], features)
        inputs.pop("input_ids")
        logits = self._model(**inputs, logits_to_keep=len(ids) + 1).logits[0, :-1].float()
        wanted = torch.tensor(ids, device=logits.device)
        scores = logits.log_softmax(-1).gather(-1, wanted[:, None])
        return -float(scores.sum()), bool((logits.argmax(-1) == wanted).all())

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Tasks whose next question depends on the last answer; none of the report's is one.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("internvl25 answers single questions, not rounds of them.")

    # ------------------------------------------------------------------ questions
    def ask(
        self,
        context: str,
        doc_to_visual: Any = None,
        doc_id: Any = None,
        task: str = "",
        split: str = "",
    ) -> Asked:
        """A request with its pictures read, cut as its benchmark says, and their tags placed.

        Raises:
            ValueError: something that is neither a picture nor a video, or cannot be read.
        """
        visuals = []
        if doc_to_visual is not None:
            visuals = flat(doc_to_visual(self.task_dict[task][split][doc_id]))
        media = self._media_of(task)
        images = sum(not is_video(each) for each in visuals)
        limit = None
        if media.max_tiles is not None:
            limit = prompts.tile_limit(media.max_tiles, media.total_tiles, images)
        tiles = tuple(
            self._read(each, media, limit, first=index == 0) for index, each in enumerate(visuals)
        )
        return Asked(self._tagged(context, tiles, images, task), tiles)

    def _media_of(self, task: str) -> Media:
        if task not in self._media:
            self._media[task] = media = media_of(task, **self._limits)
            self._tell(
                f"{task}: {media.benchmark or 'no benchmark of the report'}, "
                f"tiles {media.max_tiles or 'of the checkpoint'}, frames {media.frames}"
            )
        return self._media[task]

    def _read(self, visual: Any, media: Media, limit: int | None, *, first: bool) -> Tiles:
        if is_video(visual):
            return read_video(self.processor, visual, Limits(num_frames=media.frames))
        if isinstance(visual, Mapping):
            raise ValueError(
                f"a visual of the task is a dict with {sorted(visual)}; this model takes pictures "
                "and videos, no audio."
            )
        read = read_image(self.processor, visual, Limits(max_tiles=limit))
        if not (first and media.upscale_first) or read.tiling is None:
            return read
        from PIL import Image

        picture = read.tiling.image
        size = (2 * picture.width, 2 * picture.height)
        doubled = picture.resize(size, Image.Resampling.BILINEAR)
        return read_image(self.processor, doubled, Limits(max_tiles=limit))

    def _tagged(self, text: str, tiles: Sequence[Tiles], images: int, task: str) -> str:
        """The question with a tag for each picture before it.

        A text that marks each picture once keeps marks (`<Image-1>`), as in VLMEvalKit; marks that
        do not match the pictures are taken out, because nobody knows which they mean.
        """
        marks = text.count(IMAGE)
        if marks and marks == images == len(tiles):
            return prompts.with_tags(text, images)
        if marks:
            self._tell(f"{task}: {IMAGE} in questions that have another number of pictures; out")
            text = text.replace(IMAGE, "")
        return compose([Turn(text, tiles)], self.processor.frame_prefix).question

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.info(message)
