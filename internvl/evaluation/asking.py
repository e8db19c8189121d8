"""Samples to answers: media read and tiled, prompts built, the model asked.

    Sample -> Asked (prompt, tiles) -> batch_ids -> Response

Greedy answers come from batches, sampled ones from one prefill per question. Both go through the
model's own `batch_ids`, the path of `chat()`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from internvl import hub
from internvl.chat.media import Limits, Media, read_image, read_video
from internvl.context import context_length
from internvl.evaluation import prompts
from internvl.evaluation.records import Prediction, Response, Sample
from internvl.evaluation.run_config import RunConfig


@dataclass(frozen=True)
class Asked:
    """A sample on its way to the model.

    Attributes:
        sample: the sample.
        prompt: the question with its `<image>` tags.
        media: its images, or its video, read and tiled.
        image_sizes: (height, width) of each image, before any upscaling; () for a video.
    """

    sample: Sample
    prompt: str
    media: Sequence[Media]
    image_sizes: tuple[tuple[int, int], ...]

    @property
    def pixel_values(self) -> torch.Tensor | None:
        """(n, 3, S, S) uint8 tiles of all its images; None without images."""
        return torch.cat([each.pixel_values for each in self.media]) if self.media else None

    @property
    def num_tiles(self) -> tuple[int, ...]:
        """Tiles of each image or frame."""
        return tuple(n for each in self.media for n in each.num_tiles)


def prepare(processor: Any, sample: Sample, config: RunConfig) -> Asked:
    """Read the media of a sample and build its prompt.

    Raises:
        ValueError: a picture that cannot be read, or a question that does not fit its pictures;
            the sample is named.
    """
    try:
        media, sizes = _media(processor, sample, config)
    except (ValueError, OSError) as error:
        raise ValueError(f"sample {sample.id}: {error}") from error
    frames = sum(len(each.num_tiles) for each in media if each.is_video)
    prompt = prompts.build(sample, config.prompt, frames=frames, cot=config.cot)
    return Asked(sample, prompt, media, sizes)


def _media(
    processor: Any, sample: Sample, config: RunConfig
) -> tuple[list[Media], tuple[tuple[int, int], ...]]:
    if sample.video is not None:
        if config.frames < 1:
            raise ValueError("it has a video; say how many frames are taken (--frames 16).")
        return [read_video(processor, sample.video, Limits(num_frames=config.frames))], ()
    limit = prompts.tile_limit(config.max_tiles, config.total_tiles, len(sample.images))
    media, sizes = [], []
    for index, image in enumerate(sample.images):
        read = read_image(processor, image, Limits(max_tiles=limit))
        assert read.tiling is not None  # only videos have none
        picture = read.tiling.image
        sizes.append((picture.height, picture.width))
        if config.upscale_first and index == 0:
            from PIL import Image

            doubled = picture.resize(
                (picture.width * 2, picture.height * 2), Image.Resampling.BILINEAR
            )
            read = read_image(processor, doubled, Limits(max_tiles=limit))
        media.append(read)
    return media, tuple(sizes)


class Asker:
    """Asks one checkpoint under one configuration.

    Args:
        loaded: what `hub.load` returned; a chat checkpoint.
        config: of the run.

    Raises:
        ValueError: a vision encoder, which cannot answer.
    """

    def __init__(self, loaded: hub.Loaded, config: RunConfig) -> None:
        if loaded.tokenizer is None:
            raise ValueError(
                f"{config.model.source} is a vision encoder, which cannot answer; name a chat "
                "checkpoint, or evaluate it with `internvl eval vision`."
            )
        self.loaded, self.config, self._hash = loaded, config, config.hash
        # An adapter's wrapper stays in place: its layers compute, and methods pass through it.
        self.model = loaded.model
        template = self.model.conv_template
        self._decoder = hub.ring0("streaming_internvl_chat").AnswerDecoder(
            loaded.tokenizer, template.end_of_turn, keep_grounding=False
        )
        self._stop = loaded.tokenizer.convert_tokens_to_ids(template.end_of_turn)
        self._context = context_length(self.model.config.llm_config)

    def answer(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Answer some samples; the answers depend on which are asked together only in the last
        bits of half precision."""
        asked = [prepare(self.loaded.processor, sample, self.config) for sample in samples]
        if self.config.mode == "vote":
            found = [self._sampled(each) for each in asked]
        else:
            found = [
                (count, tuple(self._response(count, ids) for ids in answers))
                for count, answers in self._ids(asked, self.config.generation)
            ]
        return [self._prediction(each, *answer) for each, answer in zip(asked, found, strict=True)]

    def _ids(
        self, asked: Sequence[Asked], generation: dict[str, Any]
    ) -> list[tuple[int, list[list[int]]]]:
        tiles = [each.pixel_values for one in asked for each in one.media]
        found = self.model.batch_ids(
            self.loaded.tokenizer,
            torch.cat(tiles) if tiles else None,
            [each.prompt for each in asked],
            generation,
            num_patches_list=[list(each.num_tiles) for each in asked],
        )
        for each, (count, _) in zip(asked, found, strict=True):
            if count >= self._context:
                raise ValueError(
                    f"sample {each.sample.id}: its prompt has {count} tokens, and the model is "
                    f"made for {self._context}; lower --max-tiles or --frames."
                )
        return found

    def _sampled(self, asked: Asked) -> tuple[int, tuple[Response, ...]]:
        """Several answers to one question, in calls of at most `samples_per_call`."""
        responses: list[Response] = []
        count = 0
        for number, size in self._calls():
            seed = seed_of(self.config.seed, asked.sample.id, number)
            generation = {**self.config.generation, "num_return_sequences": size}
            with torch.random.fork_rng():  # transformers samples from the global generator
                torch.manual_seed(seed)
                count, answers = self._ids([asked], generation)[0]
            responses += [self._response(count, ids, seed) for ids in answers]
        return count, tuple(responses)

    def _calls(self) -> Iterator[tuple[int, int]]:
        """(number, answers) of each call of `generate`."""
        left, number = self.config.samples, 0
        while left > 0:
            size = min(left, self.config.samples_per_call)
            yield number, size
            left, number = left - size, number + 1

    def _response(self, count: int, ids: list[int], seed: int | None = None) -> Response:
        """An answer after a prompt of `count` ids; it ends where the context of the model does."""
        ids = ids[: self._context - count]
        reason = "stop" if ids and ids[-1] == self._stop else "length"
        return Response(self._decoder.answer(ids), len(ids), reason, seed)

    def _prediction(self, asked: Asked, count: int, responses: tuple[Response, ...]) -> Prediction:
        sample = asked.sample
        return Prediction(
            id=sample.id,
            benchmark=self.config.benchmark,
            config=self._hash,
            prompt=asked.prompt,
            num_tiles=asked.num_tiles,
            image_sizes=asked.image_sizes,
            prompt_tokens=count,
            responses=responses,
            answers=sample.answers,
            choices=sample.choices,
            fields=_plain(sample.fields),
        )


def _plain(fields: Any) -> dict[str, Any]:
    """Columns that JSON can hold; pictures and bytes are left out."""
    return {
        name: value
        for name, value in fields.items()
        if isinstance(value, (str, int, float, bool, list, dict)) and not _holds_bytes(value)
    }


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_bytes(each) for each in value.values())
    if isinstance(value, list):
        return any(_holds_bytes(each) for each in value)
    return not isinstance(value, (str, int, float, bool, type(None)))


def seed_of(seed: int, sample: str, call: int) -> int:
    """The seed of one call of `generate`: the same for a sample wherever and whenever it runs."""
    digest = hashlib.blake2b(f"{seed}/{sample}/{call}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
