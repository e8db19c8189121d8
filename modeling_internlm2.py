"""InternLM2 and InternLM2.5: the decoder of the 2B, 8B and 26B checkpoints, in their published
weight layout.

What differs from Llama: query, key and value weights are fused and interleaved by key head
(`wqkv`), the norms, the MLP and the output layer have other names, and positions beyond the trained
length use dynamic NTK scaling. The official decoder keeps the longest table of cosines it ever
computed, so its answers depend on earlier calls; here they follow from the current length alone.

    # B samples   T positions   D width   n query heads   k key heads   g = n / k   d width of a
    # head
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import use_kernel_forward_from_hub
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_intern_vit import same_settings  # noqa: F401  (its closure, for 4.57)
from .configuration_internlm2 import InternLM2Config

# 4.57 also asks for cache_position and calls the embeddings `input_embeds`.
_MASK_PARAMETERS = inspect.signature(create_causal_mask).parameters


@use_kernel_forward_from_hub("RMSNorm")
class InternLM2RMSNorm(nn.Module):
    """Root mean square norm, computed in float32 and scaled in the input dtype."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(dtype)


def rotary_tables(
    config: InternLM2Config, position_ids: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary embedding, each (B, T, d).

    Dynamic NTK: for a sample of length L = largest position + 1 beyond the M trained positions, the
    base becomes base * (f * L / M - (f - 1)) ** (d / (d - 2)). There is no buffer, hence nothing
    that loading could leave uninitialised, and no state.

    Args:
        config: the rotary settings.
        position_ids: (B, T) positions.
        dtype: dtype of the tables; they are computed in float32.
    """
    d = config.head_dim
    positions = position_ids.float()
    exponents = (
        torch.arange(0, d, 2, dtype=torch.int64, device=positions.device).float() / d
    )  # (d / 2)
    base = torch.full_like(positions[..., None], float(config.rope_theta))  # (B, T, 1)
    scaling = config.rope_scaling or {}
    if scaling.get("type") == "linear":
        positions = positions / scaling["factor"]
    elif scaling.get("type") == "dynamic":
        # A packed row is as many rows as its positions restart.
        samples = (position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1).cumsum(-1)
        longest = torch.zeros_like(positions).scatter_reduce(-1, samples, positions, "amax")
        stretch = (longest.gather(-1, samples) + 1) / config.max_position_embeddings  # L / M
        ntk = (scaling["factor"] * stretch - (scaling["factor"] - 1)).clamp(min=1.0)
        base = base * ntk[..., None] ** (d / (d - 2))
    frequencies = 1.0 / base**exponents  # (B, T, d / 2)
    angles = positions[..., None] * frequencies  # (B, T, d / 2)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate (B, heads, T, d) by tables (B, T, d), halves of a head being the pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain grouped-query attention with a float32 softmax."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class InternLM2Attention(nn.Module):
    """Causal grouped-query attention with the fused, interleaved projection."""

    def __init__(self, config: InternLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        fused = (config.num_attention_heads + 2 * config.num_key_value_heads) * self.head_dim
        self.wqkv = nn.Linear(config.hidden_size, fused, bias=config.bias)
        self.wo = nn.Linear(
            config.num_attention_heads * self.head_dim, config.hidden_size, bias=config.bias
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        cache_position: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (B, T, D) to (B, T, D) and the attention weights, where the implementation gives
        them."""
        B, T, _ = hidden_states.shape
        g = self.num_key_value_groups
        # (B, T, k, g + 2, d): slots 0..g-1 are queries, then the key, then the value of that group.
        fused = self.wqkv(hidden_states).view(B, T, -1, g + 2, self.head_dim)
        query = fused[..., :g, :].reshape(B, T, -1, self.head_dim).transpose(1, 2)
        key, value = fused[..., g, :].transpose(1, 2), fused[..., g + 1, :].transpose(1, 2)
        query, key = rotate(query, *tables), rotate(key, *tables)
        if past_key_values is not None:
            # A static cache of 4.57 is told the place; 5.x counts by itself and ignores it.
            place = {"cache_position": cache_position}
            key, value = past_key_values.update(key, value, self.layer_idx, place)
        # See modeling_intern_vit.py for why `ALL_ATTENTION_FUNCTIONS.get_interface(` stands in a
        # comment.
        attend = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        dropout = self.config.attention_dropout if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return self.wo(attended.reshape(B, T, -1)), weights


class InternLM2MLP(nn.Module):
    """Gated MLP: w2(act(w1 x) * w3 x)."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., D) to (..., D)."""
        return self.w2(self.act_fn(self.w1(x)) * self.w3(x))


class InternLM2DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, config: InternLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.attention = InternLM2Attention(config, layer_idx)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.ffn_norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (B, T, D) to (B, T, D) and the attention weights."""
        attended, weights = self.attention(self.attention_norm(hidden_states), *args, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.feed_forward(self.ffn_norm(hidden_states)), weights


class InternLM2PreTrainedModel(PreTrainedModel):
    """What the decoder and the language model share."""

    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternLM2DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _supports_cache_class = True
    _supports_static_cache = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.padding_idx is not None and not getattr(
                module.weight, "_is_hf_initialized", False
            ):
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, InternLM2RMSNorm):
            nn.init.ones_(module.weight)


class InternLM2Model(InternLM2PreTrainedModel):
    """Embedding, layers and final norm."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, config.pad_token_id
        )
        self.layers = nn.ModuleList(
            InternLM2DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.tok_embeddings = value

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder over (B, T) ids or (B, T, D) embeddings.

        Rows packed from several samples are kept apart when `position_ids` restart at 0,
        `attention_mask` is None and no cache is used.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "InternLM2Model needs either input_ids or inputs_embeds, got both or neither."
            )
        if inputs_embeds is None:
            inputs_embeds = self.tok_embeddings(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if cache_position is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            cache_position = (
                torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
            )
        if position_ids is None:
            position_ids = cache_position[None]
        causal_mask = self._causal_mask(
            inputs_embeds, attention_mask, past_key_values, position_ids, cache_position
        )

        tables = rotary_tables(self.config, position_ids, inputs_embeds.dtype)
        hidden_states = inputs_embeds
        collected, attentions = [hidden_states], []
        for layer in self.layers:
            hidden_states, weights = layer(
                hidden_states,
                tables,
                causal_mask,
                past_key_values,
                cache_position,
                position_ids=position_ids,
                **kwargs,
            )
            if output_hidden_states:
                collected.append(hidden_states)
            if output_attentions:
                attentions.append(weights)
        hidden_states = self.norm(hidden_states)
        collected[-1] = hidden_states if output_hidden_states else collected[-1]
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=tuple(collected) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _causal_mask(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor,
        cache_position: torch.Tensor,
    ) -> Any:
        known = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "input_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "cache_position": cache_position,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        return create_causal_mask(
            **{name: known[name] for name in known if name in _MASK_PARAMETERS}
        )


class InternLM2ForCausalLM(InternLM2PreTrainedModel, GenerationMixin):
    """The decoder with its output layer."""

    _tp_plan = {"output": "colwise_gather_output"}  # noqa: RUF012
    _fsdp_plan = {"output": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.vocab_size = config.vocab_size
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.tok_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the output layer."""
        return self.output

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output layer."""
        self.output = new_embeddings

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> tuple | CausalLMOutputWithPast:
        """Compute logits (B, T, V), of the last `logits_to_keep` positions only when it is not
        0, and the loss."""
        loss_kwargs = {key: kwargs.pop(key) for key in ("num_items_in_batch",) if key in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache_position=cache_position,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.output(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_kwargs
            )
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result.to_tuple() if return_dict is False else result
