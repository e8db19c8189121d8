"""chat, batch_chat and chat_stream of InternVLChatModel: questions with tiles in, answers out.

    questions + tile counts -> turns -> pieces -> ids -> generate -> text

`chat` is `batch_chat` of one question, and `chat_stream` is `chat` in instalments: one path, one
answer. Objects of the caller (generation settings, histories, the tokenizer) are read and never
changed.
"""

from __future__ import annotations

import copy
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .conversation import (
    IMAGE_PLACEHOLDER,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    Conversation,
    Piece,
    Visual,
    encode,
    prompt_text,
    render,
)

History = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """One question, ready for the model."""

    question: str  # as it enters the history: with the automatic `<image>` prefix
    pieces: list[Piece]
    ids: list[int]


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
    ) -> list[str] | tuple[list[str], list[list[tuple[str, str]]]]:
        """Answer several questions at once; text, images, videos and histories mix freely.

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
        inputs = self._generation_inputs(tokenizer, requests, pixel_values)
        output = self.generate(**inputs, **self._generation_settings(tokenizer, generation_config))
        sequences = getattr(output, "sequences", output)
        if len(sequences) != len(requests):
            raise ValueError(
                f"generation gave {len(sequences)} sequences for {len(requests)} questions, but "
                "chat returns one answer "
                "per question; call generate() for num_return_sequences > 1."
            )
        answers = [
            self._answer(text)
            for text in tokenizer.batch_decode(sequences, skip_special_tokens=True)
        ]
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

        Raises:
            ValueError: as in `chat`; raised at the first step of the iteration.
        """
        counts = None if num_patches_list is None else [list(num_patches_list)]
        tokens = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
        requests = self._requests(tokenizer, pixel_values, [question], counts, [history], tokens)
        inputs = self._generation_inputs(tokenizer, requests, pixel_values)
        settings = self._generation_settings(tokenizer, generation_config)
        stop = _Stop(cancel)
        criteria = StoppingCriteriaList([*settings.pop("stopping_criteria", []), stop])
        tokens_out = _TokenQueue()

        def run() -> None:
            try:
                self.generate(**inputs, **settings, stopping_criteria=criteria, streamer=tokens_out)
                tokens_out.finish(None)
            except BaseException as error:  # noqa: BLE001  (handed to the consumer, who raises it)
                tokens_out.finish(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield from _stripped(_decoded(tokens_out, tokenizer), self.conv_template.end_of_turn)
        finally:
            stop.now.set()
            thread.join()

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
            requests.append(Request(question, pieces, encode(pieces, tokenizer)))
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

    def _generation_inputs(
        self, tokenizer: Any, requests: Sequence[Request], pixel_values: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Left-padded embeddings: with them alone, penalties see the answer and not the prompt,
        as officially."""
        width = max(len(request.ids) for request in requests)
        padding = _padding_id(tokenizer)
        ids = torch.tensor([[padding] * (width - len(r.ids)) + r.ids for r in requests])
        mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in requests])
        device = self._input_device()
        with torch.no_grad():
            embeds = self._embed(ids.to(device), None, pixel_values, None, None)
        return {"inputs_embeds": embeds, "attention_mask": mask.to(embeds.device)}

    def _input_device(self) -> torch.device:
        """Where the token embedding computes: its own device, or that of its hook when its
        weight is offloaded."""
        embedding = self.get_input_embeddings()
        if embedding.weight.device.type != "meta":
            return embedding.weight.device
        return torch.device(getattr(embedding._hf_hook, "execution_device", None) or "cpu")

    def _generation_settings(self, tokenizer: Any, generation_config: Any) -> dict[str, Any]:
        """Copy the caller's settings, with the end-of-turn token and the padding of the
        tokenizer."""
        end = tokenizer.convert_tokens_to_ids(self.conv_template.end_of_turn)
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

    def _answer(self, text: str) -> str:
        return text.split(self.conv_template.end_of_turn)[0].strip()


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
        turns.append((user, _with_visuals(text, remaining)))
        turns.append((assistant, answer))
    return turns


def _with_visuals(text: str | None, images: Iterator[int]) -> list[str | Visual] | str | None:
    if not text or IMAGE_PLACEHOLDER not in text:
        return text
    head, *tails = text.split(IMAGE_PLACEHOLDER)
    content: list[str | Visual] = [head]
    for tail in tails:
        content += [Visual(next(images)), tail]
    return content


def _collapsed(pieces: Sequence[Piece], tokens: tuple[str, str, str]) -> str:
    """The prompt with every image written as its tag."""
    shown = [p for p in pieces if not (p.control and p.text in (tokens[0], tokens[2]))]
    return prompt_text(
        [Piece(IMAGE_PLACEHOLDER, True) if p.control and p.text == tokens[1] else p for p in shown]
    )


# ---------------------------------------------------------------------- streaming
class _Stop(StoppingCriteria):
    """Stops the generation when the consumer is gone, or when the caller says so."""

    def __init__(self, cancel: threading.Event | None) -> None:
        self.now = threading.Event()
        self.cancel = cancel

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        stop = self.now.is_set() or (self.cancel is not None and self.cancel.is_set())
        return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)


class _TokenQueue(BaseStreamer):
    """Hands the ids that `generate` streams to another thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue = queue.SimpleQueue()

    def put(self, value: torch.Tensor) -> None:
        """Receive ids; the (empty) prompt comes first and adds nothing."""
        self._queue.put(value.reshape(-1).tolist())

    def end(self) -> None:
        """`generate` is done; `finish` follows."""

    def finish(self, error: BaseException | None) -> None:
        """End the stream, with the error that ended it."""
        self._queue.put((error,))

    def __iter__(self) -> Iterator[list[int]]:
        while isinstance(item := self._queue.get(), list):
            yield item
        if item[0] is not None:
            raise item[0]


def _decoded(stream: Iterator[list[int]] | _TokenQueue, tokenizer: Any) -> Iterator[str]:
    """Decode ids as they come; a text that ends within a character waits for its other bytes.

    Decoding starts a little before the new ids, because a token's text may depend on the one before
    it.
    """

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    ids: list[int] = []
    start = read = 0
    for new in stream:
        ids += new
        before, now = decode(ids[start:read]), decode(ids[start:])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            yield now[len(before) :]
            start, read = read, len(ids)
    before, now = decode(ids[start:read]), decode(ids[start:])
    if len(now) > len(before):
        yield now[len(before) :]


def _stripped(texts: Iterator[str], end: str) -> Iterator[str]:
    """Cut at the end-of-turn text and strip white space at both ends, without looking further
    ahead than needed."""
    held, begun = "", False
    for text in texts:
        held += text
        if end in held:
            held = held.split(end)[0]
            break
        if not begun:
            held = held.lstrip()
            begun = bool(held)
        # White space may turn out to be the end, and so may the beginning of the end-of-turn text.
        safe = len(held.rstrip())
        for size in range(min(len(end) - 1, len(held)), 0, -1):
            if held.endswith(end[:size]):
                safe = min(safe, len(held[:-size].rstrip()))
                break
        if safe:
            yield held[:safe]
            held = held[safe:]
    held = held.rstrip() if begun else held.strip()
    if held:
        yield held
