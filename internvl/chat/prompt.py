"""From turns to what `generate` is given: media, ids, embeddings with the images, settings.

The steps of `chat()`, one by one, for callers that keep some of their results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from internvl import hub
from internvl.chat.accounting import Account, account_for
from internvl.chat.loop_guard import LoopGuard
from internvl.chat.media import Limits, Media, read_image, read_video
from internvl.chat.prefix_cache import Position
from internvl.chat.request import Request, Turn, compose, conversation_of, render

_IMAGE_TOKEN = "<IMG_CONTEXT>"


@dataclass
class Prompt:
    """A question on its way through the model.

    Attributes:
        turn: the question and its media.
        ids: of the whole prompt.
        positions: what each of them holds, see `prefix_cache`.
        tiles: tiles in the prompt.
        encoded: those that the vision encoder had to run for.
        inputs: tensors for `generate`.
        settings: other keywords for it.
        assisted: whether `generate` works on ids and returns the prompt in front.
        reused: positions that were in the cache.
        guard: what stops an endless answer, if anything.
    """

    turn: Turn
    ids: list[int]
    positions: list[Position]
    tiles: int
    encoded: int
    inputs: dict[str, Any]
    settings: dict[str, Any]
    assisted: bool
    reused: int = 0
    guard: LoopGuard | None = None


class PromptMaker:
    """The steps from turns to `generate` for one checkpoint.

    Args:
        model: an InternVLChatModel.
        processor: of the checkpoint.
        tokenizer: of the checkpoint.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any) -> None:
        self.model, self.processor, self.tokenizer = model, processor, tokenizer
        self.template = conversation_of(model.config)

    @property
    def image_token(self) -> int:
        """Id of `<IMG_CONTEXT>`."""
        return self.tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)

    def media(self, images: Any, videos: Any, limits: Limits) -> tuple[Media, ...]:
        """Read images and videos, one or a list of each; a `Media` is taken as it is."""
        nest = hub.ring0("preprocessor.image_processing_internvl_chat").nest_images
        sources = [source for sample in nest(images) for source in sample]
        clips = hub.ring0("preprocessor.video_processing_internvl_chat").list_videos(videos)
        made = [
            each if isinstance(each, Media) else read_image(self.processor, each, limits)
            for each in sources
        ]
        made += [
            each if isinstance(each, Media) else read_video(self.processor, each, limits)
            for each in clips
        ]
        return tuple(made)

    def compose(self, turns: Sequence[Turn], image_labels: bool | str) -> Request:
        """Write the tags of the images; see `request.compose`."""
        return compose(turns, self.processor.frame_prefix, image_labels=image_labels)

    def ids(self, request: Request, system_message: str | None) -> list[int]:
        """Ids of the whole prompt."""
        template = self.template.copy()
        if system_message is not None:
            template.system_message = system_message
        pieces = render(request, template, self.model.num_image_token)
        return hub.ring0("conversation").encode(pieces, self.tokenizer)

    def account(self, ids: list[int], max_new_tokens: int) -> Account:
        """What a prompt costs."""
        itemsize = self.model.dtype.itemsize
        return account_for(ids, self.model.config, self.image_token, max_new_tokens, itemsize)

    def settings(self, generation: dict[str, Any]) -> dict[str, Any]:
        """Keywords for `generate`."""
        module = hub.ring0("dialogue_internvl_chat")
        end = self.template.end_of_turn
        settings = module.turn_settings(self.tokenizer, end, generation)
        if not settings.get("do_sample"):  # they would only bring a warning
            for name in ("temperature", "top_p", "top_k"):
                settings.pop(name, None)
        if self.is_assisted(settings):
            module.check_prompt_lookup(self.model, settings)
        return settings

    def is_assisted(self, settings: dict[str, Any]) -> bool:
        """Whether candidates are proposed and checked."""
        return hub.ring0("generation_internvl_chat").is_assisted(self.model, None, settings)

    def inputs(self, ids: list[int], features: torch.Tensor | None) -> dict[str, Any]:
        """Ids (1, T), their embeddings with the images in place, and the mask."""
        device = hub.ring0("generation_internvl_chat").embedding_device(self.model)
        self.model.img_context_token_id = self.image_token
        rows = torch.tensor([ids], device=device)
        embeds = self.model.get_input_embeddings()(rows)
        if features is not None:
            embeds = self.model.fuse(embeds, rows, features)
        mask = torch.ones(1, len(ids), dtype=torch.long, device=embeds.device)
        return {"input_ids": rows, "inputs_embeds": embeds, "attention_mask": mask}

    def decoder(self, *, keep_grounding: bool) -> Any:
        """What turns ids into an answer."""
        return hub.ring0("streaming_internvl_chat").AnswerDecoder(
            self.tokenizer, self.template.end_of_turn, keep_grounding=keep_grounding
        )


def chat_model(model: Any) -> Any:
    """The InternVLChatModel itself, out of a PEFT model around it.

    The layers that PEFT put into it stay, and compute.

    Raises:
        ValueError: another model, or a PEFT method that works on the prompt.
    """
    configs = getattr(model, "peft_config", None) or {}
    if any(getattr(config, "is_prompt_learning", False) for config in configs.values()):
        raise ValueError(
            "the model has a PEFT adapter that adds soft prompts, which a session cannot keep "
            "apart from the dialogue; use LoRA or another method that changes layers."
        )
    inner = model.get_base_model() if configs and hasattr(model, "get_base_model") else model
    if not hasattr(inner, "extract_feature") or getattr(inner, "conv_template", None) is None:
        raise ValueError(
            f"the model is a {type(inner).__name__}; a session needs an InternVLChatModel with a "
            "prompt template."
        )
    return inner
