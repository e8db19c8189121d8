"""Prefill once, then branch: what `generate` does before transformers' own takes over.

    prompt (B, T) -> cache of its first T - 1 positions -> a copy per beam or answer -> transformers

transformers repeats the prompt first and prefills every copy. Here the copies begin at the last
position of the prompt, so N answers cost one prefill, and the ids are those of transformers' own.
Assisted decoding and prompt lookup, which work on ids, find the images in the cache.

# B samples   T text positions
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from .functional_internvl_chat import check_num_tiles


def embedding_device(model: Any) -> torch.device:
    """Where the token embedding computes: its own device, or that of its hook when its weight is
    offloaded."""
    embedding = model.get_input_embeddings()
    if embedding.weight.device.type != "meta":
        return embedding.weight.device
    return torch.device(getattr(embedding._hf_hook, "execution_device", None) or "cpu")


def setting(model: Any, generation_config: Any, kwargs: dict[str, Any], name: str) -> Any:
    """A generation setting: of the call, else of its config, else of the model's."""
    for value in (
        kwargs.get(name),
        getattr(generation_config, name, None),
        getattr(model.generation_config, name, None),
    ):
        if value is not None:
            return value
    return None


def copies_per_prompt(model: Any, generation_config: Any, kwargs: dict[str, Any]) -> int:
    """Rows that transformers will make of each prompt: its beams or its answers."""
    counts = (
        setting(model, generation_config, kwargs, name)
        for name in ("num_beams", "num_return_sequences")
    )
    return max(count or 1 for count in counts)


def is_assisted(model: Any, generation_config: Any, kwargs: dict[str, Any]) -> bool:
    """Whether candidates are proposed and checked: prompt lookup, or an assistant."""
    names = ("prompt_lookup_num_tokens", "assistant_model", "assistant_early_exit")
    return any(setting(model, generation_config, kwargs, name) for name in names)


def rotary_regime(config: Any, length: int) -> int:
    """Which rotary table a language model uses for that many positions.

    LongRoPE (Phi-3) changes its table beyond the context it was first trained on, dynamic NTK
    (InternLM2) with every length beyond it. Keys made under another table are of no use.

    Args:
        config: of the language model.
        length: positions of the whole sequence.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "dynamic":
        return length if length > config.max_position_embeddings else 0
    if kind in ("longrope", "su"):
        first = rope.get("original_max_position_embeddings")
        first = first or getattr(config, "original_max_position_embeddings", None)
        return int(length > (first or config.max_position_embeddings))
    return 0


def can_prefill(
    model: Any,
    generation_config: Any,
    kwargs: dict[str, Any],
    input_ids: torch.Tensor | None,
    prompt: torch.Tensor,
) -> bool:
    """Whether the cache is ours to fill.

    It is transformers' own when the call names a kind of cache, positions or no cache at all, when
    it wants to see hidden states or attentions, which are those of the whole prompt, when a cache
    given has a row per copy already, when transformers is to find the padding itself, and when the
    rotary table changes at the last position.
    """
    config, length = model.config.get_text_config(decoder=True), prompt.shape[1]
    if rotary_regime(config, length) != rotary_regime(config, length - 1):
        return False
    others = ("cache_implementation", "prefill_chunk_size")
    others += ("output_attentions", "output_hidden_states")
    cache = kwargs.get("past_key_values")
    if setting(model, generation_config, kwargs, "use_cache") is False:
        return False
    if any(setting(model, generation_config, kwargs, name) for name in others):
        return False
    if kwargs.get("position_ids") is not None or not isinstance(cache, (DynamicCache, type(None))):
        return False
    if cache is not None and cache.get_seq_length():
        return cache.layers[0].keys.shape[0] == prompt.shape[0]
    padding = setting(model, generation_config, kwargs, "pad_token_id")
    hidden = kwargs.get("attention_mask") is None and input_ids is not None and padding is not None
    return not (hidden and bool((input_ids == padding).any()))


@torch.no_grad()
def prefill(
    model: Any,
    inputs: dict[str, torch.Tensor],
    attention_mask: torch.Tensor | None,
    cache: Cache | None = None,
) -> Cache:
    """Fill a cache with all positions of the prompt but the last.

    Args:
        model: the chat model.
        inputs: `input_ids` (B, T) or `inputs_embeds` (B, T, D).
        attention_mask: (B, T), 0 for padding on the left; None for no padding.
        cache: holds the first positions already, and receives the others; None for a new one.

    Returns:
        The cache.
    """
    ((name, whole),) = inputs.items()
    if cache is None:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    start, end = cache.get_seq_length(), whole.shape[1] - 1
    if end <= start:
        return cache
    positions = None
    if attention_mask is not None:
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, start:end]
        padded = not bool((attention_mask == 1).all())
        attention_mask = attention_mask[:, :end] if padded else None
    outputs = model(
        **{name: whole[:, start:end]},
        attention_mask=attention_mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return outputs.past_key_values


def branch(cache: Cache, copies: int = 1) -> Cache:
    """A cache that goes on by itself, each row `copies` times.

    The tensors are shared until one of the two grows: a dynamic cache never writes into them.
    """
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    if copies > 1:
        new.batch_repeat_interleave(copies)
    return new


class PrefillOnceMixin:
    """`generate` of `InternVLChatModel`; stands before transformers' own in its bases."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: Any = None,
        *args: Any,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        visual_features: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_flags: torch.Tensor | None = None,
        num_tiles: list[int] | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate, with transformers' contract.

        The vision encoder runs once, before the prompt is repeated for beams or several answers, so
        every sequence sees its own sample's tiles.

        Args:
            inputs: the same as `input_ids`.
            generation_config: as in transformers.
            *args: as in transformers.
            pixel_values: (N, 3, S, S) tiles in reading order over the batch.
            input_ids: (B, T) prompts, left-padded, with Q `<IMG_CONTEXT>` per tile.
            visual_features: (N, Q, D) from `extract_feature`, in place of `pixel_values`.
            inputs_embeds: (B, T, D) embedded prompts.
            image_flags: (N,) 1 for a real tile, 0 for a padding tile.
            num_tiles: tiles of each image, as the processor returns them; they must sum to N.
            **kwargs: `attention_mask` and all that transformers' `generate` takes.

        Returns:
            Prompt and new ids for `input_ids` with or without `pixel_values`; new ids alone for
            `visual_features` or `inputs_embeds`, where penalties see only what was generated, as in
            the official `generate`.

        Raises:
            ValueError: images and text that do not fit.
        """
        check_num_tiles(num_tiles, pixel_values)
        input_ids = inputs if input_ids is None else input_ids
        only_new = visual_features is not None or (inputs_embeds is not None and input_ids is None)
        if pixel_values is not None or visual_features is not None:
            inputs_embeds = self._embed(
                input_ids, inputs_embeds, pixel_values, visual_features, image_flags
            )
        prompt = input_ids if inputs_embeds is None else inputs_embeds
        assisted = is_assisted(self, generation_config, kwargs)
        copies = copies_per_prompt(self, generation_config, kwargs)
        shared = prompt is not None and (copies > 1 or (assisted and inputs_embeds is not None))
        if shared and can_prefill(self, generation_config, kwargs, input_ids, prompt):
            name = "input_ids" if inputs_embeds is None else "inputs_embeds"
            cache = kwargs.get("past_key_values")
            cache = prefill(self, {name: prompt}, kwargs.get("attention_mask"), cache)
            kwargs["past_key_values"] = branch(cache, copies)
        if assisted and inputs_embeds is not None:
            return self._generate_assisted(input_ids, generation_config, only_new, *args, **kwargs)
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        return super().generate(None if only_new else input_ids, generation_config, *args, **kwargs)

    def _generate_assisted(
        self,
        input_ids: torch.LongTensor | None,
        generation_config: Any,
        only_new: bool,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Generate from ids whose embeddings are in the cache: candidates are looked up in ids."""
        if input_ids is None:
            raise ValueError(
                "prompt lookup and assistants need input_ids, but only inputs_embeds were given; "
                "pass both."
            )
        output = super().generate(input_ids, generation_config, *args, **kwargs)
        if not only_new:
            return output
        if isinstance(output, torch.Tensor):
            return output[:, input_ids.shape[1] :]
        output.sequences = output.sequences[:, input_ids.shape[1] :]
        return output

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; assisted decoding that begins with a filled cache goes on after it.

        transformers 5 would run the whole prompt a second time there. That the ids are whole, and
        not the new ones alone, follows from their positions.
        """
        cache, positions = kwargs.get("past_key_values"), kwargs.get("position_ids")
        done = 0 if cache is None else cache.get_seq_length()
        if (
            done
            and inputs_embeds is None
            and kwargs.get("is_first_iteration")
            and kwargs.get("next_sequence_length") is None
            and positions is not None
            and positions.shape[-1] == input_ids.shape[1] > done
        ):
            kwargs["next_sequence_length"] = input_ids.shape[1] - done
        return super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, **kwargs
        )
