"""The model behind the app: what it can do, and whose turn it is."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.app.bounds import Bounds
from internvl.app.line import Line
from internvl.chat.accounting import Account
from internvl.chat.features import FeatureStore
from internvl.chat.prompt import PromptMaker
from internvl.chat.request import Turn, conversation_of, generation_settings
from internvl.chat.session import ChatSession
from internvl.context import context_length, kv_bytes_per_token


class Engine:
    """A loaded checkpoint and the line before it.

    Args:
        loaded: of `hub.load`.
        name: what visitors read; a folder shows its last part only.
        bounds: of the app.

    Attributes:
        line: who uses the model stands in it.
        decoding: held while a file is decoded.

    Raises:
        ValueError: a vision encoder, which cannot chat.
    """

    def __init__(
        self, loaded: hub.Loaded, name: str | None = None, bounds: Bounds | None = None
    ) -> None:
        if loaded.tokenizer is None:
            raise ValueError(
                f"{name} is a vision encoder, which cannot chat; name a chat checkpoint."
            )
        self.loaded, self.bounds = loaded, bounds or Bounds()
        self.name = _short(name)
        self.line = Line(self.bounds.waiting)
        self.decoding = threading.BoundedSemaphore(self.bounds.decoding)
        model = ChatSession(loaded.model, loaded.processor, tokenizer=loaded.tokenizer).model
        self.model = model
        self._counting = threading.Lock()
        counter = copy.deepcopy(loaded.tokenizer)
        self._maker = PromptMaker(model, loaded.processor, counter)
        self.context = context_length(model.config.llm_config)
        self.generation = generation_settings(model.generation_config.to_diff_dict())
        images, videos = loaded.processor.image_processor, loaded.processor.video_processor
        self.max_tiles = images.max_tiles
        self.num_frames = min(videos.num_frames, self.bounds.frames)
        self.system_message = model.system_message or ""

    @property
    def new_tokens(self) -> int:
        """Longest answer that a visitor may ask for."""
        return min(self.bounds.new_tokens, self.context // 2)

    def session(self) -> ChatSession:
        """A dialogue of its own. Tags of boxes stay in its answers, and endless ones are stopped.

        Its visual tokens are kept with it and not with the model, so that they go when it goes.
        """
        return ChatSession(
            self.loaded.model,
            self.loaded.processor,
            tokenizer=self.loaded.tokenizer,
            keep_grounding=True,
            loop_guard=True,
            features=FeatureStore(self.bounds.memory_bytes // 4),
            max_kv_bytes=self.bounds.memory_bytes // 2,
        )

    def turn(self) -> AbstractContextManager[None]:
        """Wait for the model and have it for oneself, as a context manager.

        Raises:
            BusyError: too many wait, or it did not become free in time.
        """
        return self.line.turn(self.bounds.patience_seconds)

    def account(self, turns: Sequence[Turn], system_message: str, max_new_tokens: int) -> Account:
        """What a dialogue would cost whose last turn is the question; never waits for the model.

        A tokenizer serves one thread at a time, so this has its own.

        Args:
            turns: as in `request.compose`.
            system_message: of the prompt.
            max_new_tokens: longest answer.

        Raises:
            ValueError: tags and images that do not agree in number.
        """
        with self._counting:
            maker = self._maker
            request = maker.compose(turns, self.loaded.processor.image_labels)
            return maker.account(maker.ids(request, system_message), max_new_tokens)

    def describe(self) -> dict[str, Any]:
        """Facts about the checkpoint, for people and programs."""
        model, config = self.model, self.model.config
        parts = {
            "vision encoder": model.vision_model,
            "projector": model.mlp1,
            "language model": model.language_model,
        }
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        vision, llm = config.vision_config, config.llm_config
        return {
            "name": self.name,
            "template": conversation_of(config).name,
            "parameters": {**counts, "total": sum(counts.values())},
            "vision_encoder": f"InternViT, {_shape(vision)}",
            "language_model": f"{_family(llm)}, {_shape(llm)}",
            "layers": llm.num_hidden_layers,
            "heads": llm.num_attention_heads,
            "context": self.context,
            "tile_size": config.tile_size,
            "tokens_per_tile": model.num_image_token,
            "max_tiles": self.max_tiles,
            "kv_bytes_per_token": kv_bytes_per_token(llm, model.dtype.itemsize),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "attention": llm._attn_implementation,
            "system_prompt": self.system_message,
        }


def _short(name: str | None) -> str:
    if name is None:
        return "InternVL demo"
    return Path(name).name if Path(name).exists() else name


def _shape(part: Any) -> str:
    return f"{part.num_hidden_layers} layers of {part.hidden_size}"


def _family(llm: Any) -> str:
    architectures = getattr(llm, "architectures", None) or [llm.model_type]
    return architectures[0].removesuffix("ForCausalLM")
