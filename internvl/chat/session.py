"""A dialogue that keeps what it computed: a new turn costs only its new tokens.

    question + media -> tiles -> visual tokens (FeatureStore) --.
    turns -> pieces -> ids -> positions -> common prefix (PrefixCache) -> embeddings -> generate

The answers are those of `chat()` for the same turns. What is kept is found by content, so nothing
stale is ever used: an edited question, another system message, other tile limits, a switched
adapter or new weights make exactly what depends on them be computed again.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteriaList

from internvl import hub
from internvl.chat import session_files
from internvl.chat.accounting import Account, check_context
from internvl.chat.features import FeatureStore, store_of
from internvl.chat.loop_guard import FINISH_REASON as REPETITION
from internvl.chat.loop_guard import LoopGuard
from internvl.chat.media import Limits, Media, recut
from internvl.chat.prefix_cache import PrefixCache, positions_of
from internvl.chat.prompt import Prompt, PromptMaker, chat_model
from internvl.chat.request import Request, Turn, generation_settings
from internvl.chat.weights import WeightsWatch

DEFAULT_KV_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Reply:
    """How an answer came about.

    Attributes:
        text: the answer.
        finish_reason: "stop" (the model ended its turn), "length", "repetition" (the loop guard
            stopped it) or "stopped" (a closed or cancelled stream, or a stopping criterion).
        detail: why the loop guard stopped it, or "".
        prompt_tokens: ids of the whole prompt.
        reused_tokens: those whose keys and values were there already.
        ids: of the answer, with the one that ended it.
        tiles: tiles in the prompt.
        encoded_tiles: those that the vision encoder had to run for.
    """

    text: str
    finish_reason: str
    detail: str
    prompt_tokens: int
    reused_tokens: int
    ids: tuple[int, ...]
    tiles: int
    encoded_tiles: int


class ChatSession:
    """A dialogue with images and videos in any turn.

    Args:
        model: an InternVLChatModel, or a PEFT model around one.
        processor: of the checkpoint.
        tokenizer: of the checkpoint; that of the processor when None.
        system_message: replaces that of the checkpoint.
        generation: settings of every answer (`max_new_tokens`, `do_sample`, ...); those of the
            checkpoint and greedy decoding otherwise.
        limits: how images and videos are read.
        image_labels: True writes `Image-k: ` before images once there are several, as in `chat()`
            and the processor, so that the second image changes the prompt from the first one on;
            "always" labels the first one at once, so that every turn goes on from the last; False
            writes none.
        keep_grounding: leave the tags `<ref> <box> <quad>` in answers.
        loop_guard: stop an answer that repeats itself without end.
        reuse: keep keys, values and visual tokens. False computes everything anew, for comparison.
        features: where visual tokens are kept; by default one store for all sessions of a model.
        max_kv_bytes: most memory of keys and values kept between turns; beyond it they are dropped,
            and the next turn computes its whole prompt.

    Attributes:
        last: the `Reply` of the last answer; None before it.

    Raises:
        ValueError: a model that is not an InternVL chat model, or soft prompts of PEFT.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        tokenizer: Any = None,
        system_message: str | None = None,
        generation: dict[str, Any] | None = None,
        limits: Limits | None = None,
        image_labels: bool | str | None = None,
        keep_grounding: bool = False,
        loop_guard: bool = False,
        reuse: bool = True,
        features: FeatureStore | None = None,
        max_kv_bytes: int = DEFAULT_KV_BYTES,
    ) -> None:
        self.model = chat_model(model)
        self.processor = processor
        self.tokenizer = processor.tokenizer if tokenizer is None else tokenizer
        self._maker = PromptMaker(self.model, processor, self.tokenizer)
        self.system_message = (
            self.model.system_message if system_message is None else system_message
        )
        defaults = self.model.generation_config.to_diff_dict()
        self.generation = generation_settings(defaults, **(generation or {}))
        self._limits = limits or Limits()
        self.image_labels = processor.image_labels if image_labels is None else image_labels
        self.keep_grounding, self.loop_guard, self.reuse = keep_grounding, loop_guard, reuse
        self.features = features if features is not None else store_of(self.model)
        self.max_kv_bytes = max_kv_bytes
        self.last: Reply | None = None
        self._turns: list[Turn] = []
        self._prefix = PrefixCache(self.model.config.llm_config)
        self._watch = WeightsWatch()
        self._busy = threading.Lock()

    # ------------------------------------------------------------------ the dialogue
    @property
    def turns(self) -> tuple[Turn, ...]:
        """Questions with their media, and answers."""
        return tuple(self._turns)

    @property
    def history(self) -> list[tuple[str, str]]:
        """The turns as `chat()` takes them, `<image>` tags written out."""
        if not self._turns:
            return []
        request = self._maker.compose([*self._turns, Turn("")], self.image_labels)
        return list(request.history or [])

    @property
    def limits(self) -> Limits:
        """How images and videos are read. Setting it cuts the images of all turns again; videos
        stay as they were read."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._turns = [
            replace(turn, media=tuple(recut(self.processor, m, limits) for m in turn.media))
            for turn in self._turns
        ]
        self._limits = limits

    def ask(self, text: str, images: Any = None, videos: Any = None, **generation: Any) -> str:
        """Ask, and keep question and answer.

        Args:
            text: the question. Its images stand before it, unless it says itself where, with one
                `<image>` for each image and frame.
            images: one image or a list: path, PIL image, array, bytes, data URL, or a `Media`.
            videos: one video or a list: path, folder, list of frames, or a `Media`.
            **generation: settings of this answer.

        Returns:
            The answer; how it came about is in `last`.

        Raises:
            ContextError: the prompt is too long; the message says what to lower.
            FileNotFoundError: a path that does not exist.
            ValueError: an image that cannot be read, or tags and images that do not agree.
            RuntimeError: the session is answering another question.
        """
        with self._answering():
            prompt = self._begin(text, images, videos, generation)
            ids = self._new_ids(prompt)[0]
            answer = self._decoder.answer(ids)
            self._finish(prompt, ids, answer)
        return answer

    def stream(
        self,
        text: str,
        images: Any = None,
        videos: Any = None,
        *,
        cancel: threading.Event | None = None,
        **generation: Any,
    ) -> Generator[str, None, None]:
        """Ask as `ask` does, and hand the answer out in pieces as it comes.

        Closing the iterator or setting `cancel` stops the answer after the token it is at. What was
        said so far becomes the answer of the turn; nothing said leaves no turn.

        Args:
            text: as in `ask`.
            images: as in `ask`.
            videos: as in `ask`.
            cancel: stops the answer when set.
            **generation: as in `ask`; beams, prompt lookup and assistants cannot be streamed.

        Raises:
            ValueError: as in `ask`; like all errors, at the first step of the iteration.
        """
        streaming = hub.ring0("streaming_internvl_chat")
        with self._answering():
            prompt = self._begin(text, images, videos, generation)
            if prompt.assisted:
                raise ValueError("prompt lookup and assistants cannot be streamed; call ask().")
            results: list[Any] = []
            said: list[str] = []
            settings = {**prompt.inputs, **prompt.settings}
            ids = streaming.stream_ids(self.model.generate, settings, cancel, results)
            try:
                for piece in self._decoder.stream(ids):
                    said.append(piece)
                    yield piece
            finally:
                ids.close()
                if results:  # nothing went wrong
                    output = getattr(results[0], "sequences", results[0])
                    self._finish(prompt, output[0].tolist(), "".join(said))

    def sample(
        self, text: str, images: Any = None, videos: Any = None, *, answers: int, **generation: Any
    ) -> list[str]:
        """Answer a question several times, from one prefill; the dialogue stays as it is.

        Args:
            text: as in `ask`.
            images: as in `ask`.
            videos: as in `ask`.
            answers: how many.
            **generation: as in `ask`; without a setting for it, answers are sampled.

        Raises:
            ValueError: as in `ask`.
        """
        with self._answering():
            settings = {"do_sample": True, **generation, "num_return_sequences": answers}
            prompt = self._begin(text, images, videos, settings, answers)
            rows = self._new_ids(prompt)
            self._settle(prompt, rows[0] if answers == 1 else [])
            decoder = self._decoder
            return [decoder.answer(ids) for ids in rows]

    def read(self, images: Any = None, videos: Any = None) -> tuple[list[Media], list[Media]]:
        """Read images and videos once, to ask about them several times; `Media` of either kind
        are sorted.

        Returns:
            Images and videos, for `ask` and its like.
        """
        media = self._read(images, videos)
        return [m for m in media if not m.is_video], [m for m in media if m.is_video]

    def answer_with(self, text: str, answer: str, images: Any = None, videos: Any = None) -> None:
        """Add a turn whose answer is known: one chosen among several, or another model's.

        Args:
            text: the question.
            answer: the answer.
            images: as in `ask`.
            videos: as in `ask`.

        Raises:
            ValueError: an empty answer, which would leave the turn open.
        """
        if not answer:
            raise ValueError("the answer is empty; a turn of the dialogue needs one.")
        with self._answering():
            turn = Turn(text, self._read(images, videos), answer)
            self._ids(turn)  # so that tags and images that do not agree are found here
            self._turns.append(turn)

    def edit(
        self, index: int, text: str, images: Any = None, videos: Any = None, **generation: Any
    ) -> str:
        """Ask another question in the place of an earlier one, and forget what followed.

        Args:
            index: of the turn.
            text: the new question.
            images: its images; those of the turn when neither images nor videos are given.
            videos: its videos.
            **generation: as in `ask`.

        Returns:
            The answer; when it fails the dialogue stays as it was.

        Raises:
            IndexError: there is no such turn.
        """
        self._check_idle()
        before, last = list(self._turns), self.last
        if not -len(before) <= index < len(before):
            raise IndexError(f"there is no turn {index}; the dialogue has {len(before)}.")
        if images is None and videos is None:
            media = before[index].media
            images = [each for each in media if not each.is_video]
            videos = [each for each in media if each.is_video]
        self._turns = before[: range(len(before))[index]]
        try:
            return self.ask(text, images, videos, **generation)
        except BaseException:
            self._turns, self.last = before, last
            raise

    def undo(self) -> Turn:
        """Take the last turn back, and return it.

        Raises:
            IndexError: there is none.
        """
        self._check_idle()
        if not self._turns:
            raise IndexError("the dialogue has no turn to undo.")
        return self._turns.pop()

    def reset(self) -> None:
        """Forget all turns; what was computed for them may still serve."""
        self._check_idle()
        self._turns, self.last = [], None

    def fork(self) -> ChatSession:
        """A dialogue that goes on from here by itself; nothing is computed or copied for it."""
        self._check_idle()
        other = copy.copy(self)
        other._turns, other.generation = list(self._turns), dict(self.generation)
        other._prefix, other._busy = self._prefix.fork(), threading.Lock()
        return other

    # ------------------------------------------------------------------ files
    def save(self, path: str | Path) -> None:
        """Write turns, images and settings to a folder, images without loss.

        Keys and values are not written: the next turn after `load` computes them.

        Args:
            path: the folder; a session saved there before is replaced as a whole.

        Raises:
            ValueError: a setting that JSON cannot hold, or a folder of something else.
        """
        settings = {
            "system_message": self.system_message,
            "generation": self.generation,
            "limits": vars(self._limits),
            "image_labels": self.image_labels,
            "keep_grounding": self.keep_grounding,
            "loop_guard": self.loop_guard,
        }
        session_files.write(Path(path), self._turns, settings)

    @classmethod
    def load(cls, path: str | Path, model: Any, processor: Any, **options: Any) -> ChatSession:
        """Read a dialogue that `save` wrote, to go on with it.

        Args:
            path: the folder.
            model: as for a new session; it need not be the one of before.
            processor: of that model.
            **options: of a new session; they take the place of the saved ones.

        Raises:
            FileNotFoundError: there is no such session.
            ValueError: its files are damaged.
        """
        settings, stored = session_files.read(Path(path))
        try:
            settings["limits"] = Limits(**settings["limits"])
            session = cls(model, processor, **{**settings, **options})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the settings of the session in {path} are damaged: {error}"
            ) from error
        for turn in stored:
            media = [session_files.to_media(processor, each, session.limits) for each in turn.media]
            session._turns.append(Turn(turn.question, tuple(media), turn.answer))
        return session

    # ------------------------------------------------------------------ costs
    def account(
        self, text: str, images: Any = None, videos: Any = None, **generation: Any
    ) -> Account:
        """What a question would cost, without asking it; see `Account`."""
        _, ids = self._ids(Turn(text, self._read(images, videos)))
        return self._maker.account(ids, self._merged(generation)["max_new_tokens"])

    def memory(self) -> dict[str, int]:
        """Bytes held: keys and values, tiles and images of the turns, visual tokens (shared by the
        sessions of the model), and the limits of the first and the last."""
        media = {id(each): each.nbytes for turn in self._turns for each in turn.media}
        return {
            "kv_bytes": self._prefix.nbytes,
            "kv_tokens": len(self._prefix),
            "max_kv_bytes": self.max_kv_bytes,
            "media_bytes": sum(media.values()),
            "feature_bytes": self.features.nbytes,
            "max_feature_bytes": self.features.max_bytes,
        }

    def release(self) -> None:
        """Give back the memory of keys, values and visual tokens; the dialogue stays."""
        self._prefix.clear()
        self.features.clear()

    # ------------------------------------------------------------------ steps
    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """One question at a time, and a cache that survives what goes wrong."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(_BUSY)
        try:
            yield
        except BaseException as error:
            if _is_out_of_memory(error):
                self.release()
                error.add_note(
                    "The session gave back its caches and goes on; lower max_tiles, num_frames or "
                    "max_new_tokens, or the number of answers."
                )
            else:
                self._prefix.recover()
            raise
        finally:
            self._busy.release()

    def _check_idle(self) -> None:
        if self._busy.locked():
            raise RuntimeError(_BUSY)

    def _merged(self, generation: dict[str, Any]) -> dict[str, Any]:
        """Settings of the session, replaced by those of an answer."""
        given = {name: value for name, value in generation.items() if value is not None}
        return {**self.generation, **given}

    def _read(self, images: Any, videos: Any) -> tuple[Media, ...]:
        return self._maker.media(images, videos, self._limits)

    def _ids(self, turn: Turn) -> tuple[Request, list[int]]:
        """The whole dialogue with one more turn, and its ids."""
        request = self._maker.compose([*self._turns, turn], self.image_labels)
        return request, self._maker.ids(request, self.system_message)

    @torch.no_grad()
    def _begin(
        self, text: str, images: Any, videos: Any, generation: dict[str, Any], answers: int = 1
    ) -> Prompt:
        """Everything up to the call of `generate`."""
        settings = self._maker.settings(self._merged(generation))
        if settings.setdefault("num_return_sequences", answers) != answers:
            raise ValueError(
                "ask() and stream() give one answer, but num_return_sequences is "
                f"{settings['num_return_sequences']}; call sample() for several."
            )
        turn = Turn(text, self._read(images, videos))
        request, ids = self._ids(turn)
        account = self._maker.account(ids, settings["max_new_tokens"])
        check_context(account, request.media, self.processor)
        encoded, features, tiles = 0, None, []
        if request.pixel_values is not None:
            keys = [key for each in request.media for key in each.keys]
            store = self.features if self.reuse else FeatureStore(0)
            features, encoded = store.encode(self.model, request.pixel_values, keys)
            version = store.version(self.model)
            tiles = [(version, key) for key in keys]
        prompt = Prompt(
            turn=turn,
            ids=ids,
            positions=positions_of(ids, self._maker.image_token, tiles, self.model.num_image_token),
            encoded=encoded,
            tiles=len(tiles),
            inputs=self._maker.inputs(ids, features),
            settings=settings,
            assisted=self._maker.is_assisted(settings),
        )
        if self.loop_guard:
            prompt.guard = LoopGuard(self.tokenizer, len(ids) if prompt.assisted else 0)
            own = settings.get("stopping_criteria", [])
            settings["stopping_criteria"] = StoppingCriteriaList([*own, prompt.guard])
        if not prompt.assisted:  # penalties see the answer and not the prompt, as in chat()
            del prompt.inputs["input_ids"]
        self._reuse_prefix(prompt)
        return prompt

    def _reuse_prefix(self, prompt: Prompt) -> None:
        """Add the cache to the inputs, when the generation can go on from one."""
        can_prefill = hub.ring0("generation_internvl_chat").can_prefill
        embeds = prompt.inputs["inputs_embeds"]
        if self.reuse and can_prefill(self.model, None, prompt.settings, None, embeds):
            weights = self._watch.version([self.model.language_model])
            cache, prompt.reused = self._prefix.begin(prompt.positions, weights)
            prompt.inputs["past_key_values"] = cache

    @property
    def _decoder(self) -> Any:
        return self._maker.decoder(keep_grounding=self.keep_grounding)

    def _new_ids(self, prompt: Prompt) -> list[list[int]]:
        output = self.model.generate(**prompt.inputs, **prompt.settings)
        rows = getattr(output, "sequences", output)
        return rows[:, len(prompt.ids) if prompt.assisted else 0 :].tolist()

    def _settle(self, prompt: Prompt, ids: list[int]) -> None:
        """Keep what the generation left in the cache, within the limit."""
        if "past_key_values" not in prompt.inputs:
            self._prefix.clear()
            return
        self._prefix.settle([*prompt.positions, *ids])
        if self._prefix.nbytes > self.max_kv_bytes:
            self._prefix.clear()

    def _finish(self, prompt: Prompt, ids: list[int], answer: str) -> None:
        """Keep the turn and say how it came about."""
        beams = prompt.settings.get("num_beams", 1) or 1
        self._settle(prompt, ids if beams == 1 else [])
        found = prompt.guard.reasons[0] if prompt.guard and prompt.guard.reasons else None
        if prompt.settings["eos_token_id"] in ids:
            reason = "stop"
        elif found is not None:
            reason = REPETITION
        else:
            full = len(ids) >= prompt.settings["max_new_tokens"]
            reason = "length" if full else "stopped"
        self.last = Reply(
            text=answer,
            finish_reason=reason,
            detail=str(found) if reason == REPETITION else "",
            prompt_tokens=len(prompt.ids),
            reused_tokens=prompt.reused,
            ids=tuple(ids),
            tiles=prompt.tiles,
            encoded_tiles=prompt.encoded,
        )
        if answer:  # a turn without one would leave the template open in the middle
            self._turns.append(replace(prompt.turn, answer=answer))


_BUSY = "the session is answering another question; wait for it, or ask a fork()."


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
    )
