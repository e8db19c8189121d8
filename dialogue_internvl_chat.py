"""chat, batch_chat and chat_stream of InternVLChatModel: questions with tiles in, answers out.

    questions + tile counts -> turns -> pieces -> ids -> generate -> text

`chat` is `batch_chat` of one question, and `chat_stream` is `chat` in instalments: one path, one
answer. Objects of the caller (generation settings, histories, the tokenizer) are read and never
changed.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .conversation import (
    IMAGE_PLACEHOLDER,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    Conversation,
    Piece,
    encode,
    place_visuals,
    prompt_text,
    render,
)
from .functional_internvl_chat import distinct_tiles, plan_batches
from .generation_internvl_chat import embedding_device, is_assisted, setting
from .streaming_internvl_chat import AnswerDecoder, stream_ids

History = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """One question, ready for the model."""

    question: str  # as it enters the history: with the automatic `<image>` prefix
    pieces: list[Piece]
    ids: list[int]
    num_tiles: int


class DialogueMixin:
    """The chat methods; mixed into `InternVLChatModel`."""

    def chat(
        self,
        tokenizer: Any,
        pixel_values: torch.Tensor | None,
        question: str,
        generation_config: Any,
        history: History | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        IMG_START_TOKEN: str = IMG_START_TOKEN,
        IMG_END_TOKEN: str = IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
        verbose: bool = False,
        *,
        keep_grounding: bool = False,
    ) -> str | tuple[str, list[tuple[str, str]]]:
        """Answer a question about images, with or without earlier turns.

        Args:
            tokenizer: the checkpoint's tokenizer.
            pixel_values: (N, 3, S, S) tiles of all images of all turns, in the order of their
                `<image>` tags.
            question: the question. `<image>` marks the place of an image; it is put in front when
                the dialogue begins (`history` is None) with tiles and without a tag.
            generation_config: dict of generation settings, or a GenerationConfig; the end-of-turn
                token of the template takes the place of any `eos_token_id`.
            history: earlier (question, answer) pairs.
            return_history: also return the history with this turn added.
            num_patches_list: tiles of each image, over all turns; None for one image of all the
                tiles.
            IMG_START_TOKEN: token before an image.
            IMG_END_TOKEN: token after an image.
            IMG_CONTEXT_TOKEN: token that stands for a visual token.
            verbose: write prompt (visual tokens collapsed) and answer to standard output.
            keep_grounding: leave the tags `<ref> <box> <quad>` in the answer; they are special
                tokens, which decoding leaves out.

        Returns:
            The answer, or the answer and the new history.

        Raises:
            ValueError: tags, images and tiles that do not agree in number.
        """
        answers = self.batch_chat(
            tokenizer,
            pixel_values,
            [question],
            generation_config,
            num_patches_list=None if num_patches_list is None else [list(num_patches_list)],
            history=[history],
            return_history=return_history,
            IMG_START_TOKEN=IMG_START_TOKEN,
            IMG_END_TOKEN=IMG_END_TOKEN,
            IMG_CONTEXT_TOKEN=IMG_CONTEXT_TOKEN,
            verbose=verbose,
            keep_grounding=keep_grounding,
        )
        if return_history:
            return answers[0][0], answers[1][0]
        return answers[0]

    def batch_chat(
        self,
        tokenizer: Any,
        pixel_values: torch.Tensor | None,
        questions: Sequence[str],
        generation_config: Any,
        num_patches_list: Sequence[int | Sequence[int]] | None = None,
        history: Sequence[History | None] | None = None,
        return_history: bool = False,
        IMG_START_TOKEN: str = IMG_START_TOKEN,
        IMG_END_TOKEN: str = IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
        verbose: bool = False,
        image_counts: Sequence[int] | None = None,
        *,
        batch_size: int | None = None,
        keep_grounding: bool = False,
    ) -> list[str] | tuple[list[str], list[list[tuple[str, str]]]]:
        """Answer several questions at once; text, images, videos and histories mix freely.

        Every distinct tile is encoded once. Questions of like length run together, so that little
        is padding, see `plan_batches`.

        Args:
            tokenizer: the checkpoint's tokenizer.
            pixel_values: (N, 3, S, S) tiles of all questions, one question after the other.
            questions: the questions, as in `chat`.
            generation_config: as in `chat`.
            num_patches_list: per question an int (tiles of its one image) or a list (tiles of each
                image or frame, over all its turns); 0 or [] for none. None for one question whose
                tiles are one image, or for questions without images.
            history: per question its earlier (question, answer) pairs, or None.
            return_history: also return the histories with these turns added.
            IMG_START_TOKEN: as in `chat`.
            IMG_END_TOKEN: as in `chat`.
            IMG_CONTEXT_TOKEN: as in `chat`.
            verbose: as in `chat`.
            image_counts: old name of `num_patches_list`.
            batch_size: most questions that run together; None for as many as fit in length.
            keep_grounding: as in `chat`.

        Returns:
            The answers, or the answers and the new histories, in the order of the questions.

        Raises:
            ValueError: tags, images and tiles that do not agree in number; which question is named.
        """
        tokens = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
        counts = num_patches_list if num_patches_list is not None else image_counts
        requests = self._requests(tokenizer, pixel_values, questions, counts, history, tokens)
        if not requests:
            return ([], []) if return_history else []
        settings = turn_settings(tokenizer, self.conv_template.end_of_turn, generation_config)
        self._check_one_answer(settings)
        decoder = AnswerDecoder(
            tokenizer, self.conv_template.end_of_turn, keep_grounding=keep_grounding
        )
        new_ids = self._answer(tokenizer, pixel_values, requests, settings, batch_size)
        answers = [decoder.answer(ids[0]) for ids in new_ids]
        if verbose:
            for request, answer in zip(requests, answers, strict=True):
                sys.stdout.write(_collapsed(request.pieces, tokens) + answer + "\n")
        if not return_history:
            return answers
        earlier = history if history is not None else [None] * len(requests)
        return answers, [
            [*(past or []), (request.question, answer)]
            for past, request, answer in zip(earlier, requests, answers, strict=True)
        ]

    def batch_ids(
        self,
        tokenizer: Any,
        pixel_values: torch.Tensor | None,
        questions: Sequence[str],
        generation_config: Any,
        num_patches_list: Sequence[int | Sequence[int]] | None = None,
        history: Sequence[History | None] | None = None,
        *,
        batch_size: int | None = None,
    ) -> list[tuple[int, list[list[int]]]]:
        """Answer as `batch_chat` does, and return ids: what counts tokens or samples needs them.

        Args:
            tokenizer: as in `batch_chat`.
            pixel_values: as in `batch_chat`.
            questions: as in `batch_chat`.
            generation_config: as in `batch_chat`; `num_return_sequences` may ask for several
                answers, which come from one prefill.
            num_patches_list: as in `batch_chat`.
            history: as in `batch_chat`.
            batch_size: as in `batch_chat`.

        Returns:
            Per question the length of its prompt in ids, and the new ids of each answer, with the
            end-of-turn token where the model gave one and without padding behind it.

        Raises:
            ValueError: as in `batch_chat`.
        """
        tokens = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
        requests = self._requests(
            tokenizer, pixel_values, questions, num_patches_list, history, tokens
        )
        if not requests:
            return []
        end = self.conv_template.end_of_turn
        settings = turn_settings(tokenizer, end, generation_config)
        stop = tokenizer.convert_tokens_to_ids(end)
        new_ids = self._answer(tokenizer, pixel_values, requests, settings, batch_size)
        return [
            (len(request.ids), [_until(ids, stop) for ids in answers])
            for request, answers in zip(requests, new_ids, strict=True)
        ]

    def chat_stream(
        self,
        tokenizer: Any,
        pixel_values: torch.Tensor | None,
        question: str,
        generation_config: Any,
        history: History | None = None,
        num_patches_list: Sequence[int] | None = None,
        *,
        cancel: threading.Event | None = None,
        keep_grounding: bool = False,
    ) -> Iterator[str]:
        """Answer as `chat` does, in pieces of text as they come.

        The pieces join to exactly what `chat` returns, and no piece ends within a character.
        Closing the iterator, or setting `cancel`, stops the generation after the token it is at.

        Args:
            tokenizer: as in `chat`.
            pixel_values: as in `chat`.
            question: as in `chat`.
            generation_config: as in `chat`; beams cannot be streamed.
            history: as in `chat`.
            num_patches_list: as in `chat`.
            cancel: stops the generation when set; what was generated so far has been yielded.
            keep_grounding: as in `chat`.

        Raises:
            ValueError: as in `chat`; raised at the first step of the iteration.
        """
        counts = None if num_patches_list is None else [list(num_patches_list)]
        tokens = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
        requests = self._requests(tokenizer, pixel_values, [question], counts, [history], tokens)
        settings = turn_settings(tokenizer, self.conv_template.end_of_turn, generation_config)
        self._check_one_answer(settings)
        if is_assisted(self, settings.get("generation_config"), settings):
            raise ValueError(
                "prompt lookup and assistants hand out candidates before they are checked, so they "
                "cannot be streamed; call chat()."
            )
        inputs = self._generation_inputs(
            tokenizer, requests, self._features(pixel_values, requests)
        )
        decoder = AnswerDecoder(
            tokenizer, self.conv_template.end_of_turn, keep_grounding=keep_grounding
        )
        inputs.pop("input_ids")
        ids = stream_ids(self.generate, {**inputs, **settings}, cancel)
        try:
            yield from decoder.stream(ids)
        finally:
            ids.close()

    def select_best_response(self, *args: Any, **kwargs: Any) -> list[str]:
        """What VLMEvalKit's best-of-N calls on a reward model, which no chat checkpoint is.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "select_best_response needs a reward model such as VisualPRM-8B, and this checkpoint "
            "has no reward head; name one as `reward_model_path`, or score answers with a function "
            "of yours: internvl eval best-of."
        )

    # ------------------------------------------------------------------ steps
    def _requests(
        self,
        tokenizer: Any,
        pixel_values: torch.Tensor | None,
        questions: Sequence[str],
        num_patches_list: Sequence[int | Sequence[int]] | None,
        history: Sequence[History | None] | None,
        tokens: tuple[str, str, str],
    ) -> list[Request]:
        """Turn questions into ids, and check every count on the way."""
        conversation = self._conversation()
        if isinstance(questions, str):
            raise ValueError(
                "questions is one string, expected a list of questions; call chat() for a single "
                "one."
            )
        histories = list(history) if history is not None else [None] * len(questions)
        if len(histories) != len(questions):
            raise ValueError(
                f"{len(questions)} questions but {len(histories)} histories; give one (or None) "
                "for each."
            )
        tiles = 0 if pixel_values is None else pixel_values.shape[0]
        counts = _tile_counts(num_patches_list, len(questions), tiles)
        total = sum(map(sum, counts))
        if total != tiles:
            raise ValueError(
                f"num_patches_list names {total} tiles but pixel_values has {tiles}; pass the "
                "tiles of every image of "
                "every turn, and the number of tiles of each."
            )
        self.img_context_token_id = tokenizer.convert_tokens_to_ids(tokens[1])
        requests = []
        for index, (question, past, images) in enumerate(
            zip(questions, histories, counts, strict=True)
        ):
            if past is None and images and IMAGE_PLACEHOLDER not in question:
                question = f"{IMAGE_PLACEHOLDER}\n{question}"
            turns = _turns(conversation, past or [], question, images, index)
            pieces = render(conversation, turns, self.num_image_token, tokens)
            requests.append(Request(question, pieces, encode(pieces, tokenizer), sum(images)))
        return requests

    def _conversation(self) -> Conversation:
        if self.conv_template is None:
            raise ValueError(
                "config.json has no `template`, so nobody knows the prompt format of this "
                "checkpoint; set it to one of "
                "the names in conversation.py."
            )
        conversation = self.conv_template.copy()
        if self.system_message is not None:
            conversation.system_message = self.system_message
        return conversation

    def _answer(
        self,
        tokenizer: Any,
        pixel_values: torch.Tensor | None,
        requests: Sequence[Request],
        settings: dict[str, Any],
        batch_size: int | None,
    ) -> list[list[list[int]]]:
        """New ids of each answer of each request, padding included."""
        config = settings.get("generation_config")
        if is_assisted(self, config, settings):
            batch_size = 1  # all that transformers' assisted decoding takes
        count = setting(self, config, settings, "num_return_sequences") or 1
        features = self._features(pixel_values, requests)
        answers: list[list[list[int]]] = [[] for _ in requests]
        for batch in plan_batches([len(request.ids) for request in requests], batch_size):
            inputs = self._generation_inputs(
                tokenizer, [requests[i] for i in batch], [features[i] for i in batch]
            )
            rows = self._new_ids(inputs, settings).tolist()
            for place, index in enumerate(batch):
                answers[index] = rows[place * count : (place + 1) * count]
        return answers

    @torch.no_grad()
    def _features(
        self, pixel_values: torch.Tensor | None, requests: Sequence[Request]
    ) -> list[torch.Tensor | None]:
        """Visual tokens (n, Q, D) of each request; every distinct tile is encoded once."""
        if pixel_values is None:
            return [None] * len(requests)
        kept, places = distinct_tiles(pixel_values)
        distinct = pixel_values if len(kept) == len(places) else pixel_values[kept]
        encoded = self.extract_feature(distinct)
        features: list[torch.Tensor | None] = []
        start = 0
        for request in requests:
            own = places[start : start + request.num_tiles]
            start += len(own)
            features.append(encoded[own] if own else None)
        return features

    @torch.no_grad()
    def _generation_inputs(
        self,
        tokenizer: Any,
        requests: Sequence[Request],
        features: Sequence[torch.Tensor | None],
    ) -> dict[str, torch.Tensor]:
        """Left-padded ids, their embeddings with the images in place, and the mask."""
        width = max(len(request.ids) for request in requests)
        padding = _padding_id(tokenizer)
        ids = torch.tensor([[padding] * (width - len(r.ids)) + r.ids for r in requests])
        mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in requests])
        ids = ids.to(embedding_device(self))
        visual = [each for each in features if each is not None]
        embeds = self._embed(ids, None, None, torch.cat(visual) if visual else None, None)
        mask = mask.to(embeds.device)
        return {"input_ids": ids, "inputs_embeds": embeds, "attention_mask": mask}

    def _new_ids(self, inputs: dict[str, torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
        """Generate, and return the new ids.

        From the embeddings alone, so that penalties see the answer and not the prompt, as
        officially; prompt lookup and assistants need the ids too.
        """
        config = settings.get("generation_config")
        ids = inputs["input_ids"]
        if is_assisted(self, config, settings):
            check_prompt_lookup(self, settings)
            output = self.generate(**inputs, **settings)
            return getattr(output, "sequences", output)[:, ids.shape[1] :]
        embedded = {name: value for name, value in inputs.items() if name != "input_ids"}
        output = self.generate(**embedded, **settings)
        return getattr(output, "sequences", output)

    def _check_one_answer(self, settings: dict[str, Any]) -> None:
        answers = setting(self, settings.get("generation_config"), settings, "num_return_sequences")
        if answers not in (None, 1):
            raise ValueError(
                f"num_return_sequences is {answers}, but chat returns one answer per question; "
                "call generate() for several."
            )


def turn_settings(tokenizer: Any, end_of_turn: str, generation_config: Any) -> dict[str, Any]:
    """Copy a caller's settings, with the end-of-turn token and the padding of the tokenizer.

    Args:
        tokenizer: the checkpoint's tokenizer.
        end_of_turn: token that ends an answer.
        generation_config: dict of generation settings, a GenerationConfig, or None.

    Returns:
        Keywords for `generate`.
    """
    end = tokenizer.convert_tokens_to_ids(end_of_turn)
    if generation_config is None or isinstance(generation_config, dict):
        settings = dict(generation_config or {})
        settings["eos_token_id"] = end
        settings.setdefault("pad_token_id", _padding_id(tokenizer))
        settings.setdefault("use_cache", True)
        return settings
    own = copy.deepcopy(generation_config)
    own.eos_token_id = end
    if own.pad_token_id is None:
        own.pad_token_id = _padding_id(tokenizer)
    return {"generation_config": own}


def check_prompt_lookup(model: Any, settings: dict[str, Any]) -> None:
    """Check that penalties do not meet prompt lookup or an assistant.

    Raises:
        ValueError: they do.
    """
    for name, neutral in (("repetition_penalty", 1.0), ("no_repeat_ngram_size", 0)):
        value = setting(model, settings.get("generation_config"), settings, name)
        if value not in (None, neutral):
            raise ValueError(
                f"{name}={value} with prompt lookup or an assistant would punish the words of the "
                "question too, which chat() does not do; leave one of them out."
            )


def _until(ids: list[int], stop: int) -> list[int]:
    """Ids up to the first `stop`, with it; all of them when there is none."""
    return ids[: ids.index(stop) + 1] if stop in ids else ids


def _padding_id(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0  # masked, so its embedding is never attended to


def _tile_counts(
    num_patches_list: Sequence[int | Sequence[int]] | None, questions: int, tiles: int
) -> list[list[int]]:
    """Tiles of each image, per question."""
    if num_patches_list is None:
        if tiles and questions != 1:
            raise ValueError(
                f"{questions} questions share {tiles} tiles and num_patches_list is missing; "
                "pass the number of tiles of "
                "each question's image (a list of numbers for several images, 0 for none)."
            )
        return [[tiles] if tiles else [] for _ in range(questions)]
    if len(num_patches_list) != questions:
        raise ValueError(
            f"{questions} questions but num_patches_list has {len(num_patches_list)} entries; "
            "give one for each."
        )
    counts = [
        [int(n)] if not isinstance(n, Sequence) and not hasattr(n, "__len__") else list(n)
        for n in num_patches_list
    ]
    counts = [[int(n) for n in images] for images in counts]
    if any(n < 0 for images in counts for n in images):
        raise ValueError(
            f"num_patches_list has a negative entry: {counts}; tiles are counted from 0."
        )
    return [[n for n in images if n] for images in counts]


def _turns(
    conversation: Conversation, history: History, question: str, images: list[int], index: int
) -> list[tuple[str, Any]]:
    """Put the images of a question into its turns, one `<image>` after the other.

    Only questions hold tags: in an answer, `<image>` is text that the model wrote.
    """
    user, assistant = conversation.roles
    asked = [*(past for past, _ in history), question]
    tags = sum(text.count(IMAGE_PLACEHOLDER) for text in asked if text)
    if tags != len(images):
        raise ValueError(
            f"question {index} has {tags} {IMAGE_PLACEHOLDER} tags over its {len(asked)} turns "
            f"but {len(images)} images "
            f"(tiles {images}); write one tag per image, in order, and pass the images of every "
            "turn."
        )
    remaining = iter(images)
    turns: list[tuple[str, Any]] = []
    for text, answer in zip(asked, [*(a for _, a in history), None], strict=True):
        turns.append((user, place_visuals(text, remaining)))
        turns.append((assistant, answer))
    return turns


def _collapsed(pieces: Sequence[Piece], tokens: tuple[str, str, str]) -> str:
    """The prompt with every image written as its tag."""
    shown = [p for p in pieces if not (p.control and p.text in (tokens[0], tokens[2]))]
    return prompt_text(
        [Piece(IMAGE_PLACEHOLDER, True) if p.control and p.text == tokens[1] else p for p in shown]
    )
