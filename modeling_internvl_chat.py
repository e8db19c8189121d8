"""InternVLChatModel: the ViT-MLP-LLM model of the InternVL 2.5 report (section 2.1, Figure 2).

    pixels (N, 3, S, S) -> InternViT (N, 1 + P, C) -> drop class token -> pixel unshuffle (N, Q, 4C)
    -> mlp1 (N, Q, D) ids (B, T) -> embed (B, T, D) -> fuse: the rows of <IMG_CONTEXT> become visual
    tokens -> language model -> text

State-dict keys, module paths and the signatures of `chat`, `batch_chat`, `extract_feature` and
`pixel_shuffle` are those of the published checkpoints and the tools around them. `chat` and its kin
live in `dialogue_internvl_chat.py`, quantised and sharded loading in `placement_internvl_chat.py`.

    # B samples   T text positions   V vocabulary   D decoder width
    # N tiles (all images and frames of the batch)   P patches per tile (1024)   Q visual tokens per
    # tile (256)
    # C ViT width   ph, pw  patch rows, columns   r  patches per side of a visual token
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import is_flash_attn_2_available, logging

from .configuration_intern_vit import InternVisionConfig
from .configuration_internlm2 import InternLM2Config  # noqa: F401  (loaders on 4.57 copy direct imports only)
from .configuration_internvl_chat import InternVLChatConfig
from .conversation import get_conv_template
from .dialogue_internvl_chat import DialogueMixin
from .functional_internvl_chat import (
    check_num_tiles,
    chunked_loss,
    default_vit_batch_size,
    isolate_packed_rows,
    kept_tiles,
    normalize_pixels,
    supervised_loss,
    unshuffle_pixels,
)
from .generation_internvl_chat import PrefillOnceMixin
from .modeling_intern_vit import InternVisionModel
from .placement_internvl_chat import PlacementMixin, as_forward, check_tensor_parallel
from .streaming_internvl_chat import AnswerDecoder  # noqa: F401  (see InternLM2Config above)

logger = logging.get_logger(__name__)

# The nine InternVL tokens close every published vocabulary, `<IMG_CONTEXT>` being the third of
# them.
_IMG_CONTEXT_FROM_END = 7


class InternVLChatModel(
    DialogueMixin, PrefillOnceMixin, PlacementMixin, PreTrainedModel, GenerationMixin
):
    """InternVL 1.5, 2.0 and 2.5 chat models of every size.

    Args:
        config: the configuration.
        vision_model: a vision encoder to use in place of a new one.
        language_model: a language model to use in place of a new one.
        use_flash_attn: what published loading snippets pass; True asks for flash_attention_2 where
            it can run.

    Attributes:
        vit_batch_size: tiles that go through the vision encoder at once when no gradient is wanted;
            None for a default by device: 1 tile of 448 px on a CPU, 32 on an accelerator.
        loss_kernel: computes the loss of `forward(skip_logits=True)`, see `chunked_loss`.

    Raises:
        ValueError: LoRA layers wrapped into the weights, which have to be merged first, or a
            tensor parallel size that does not divide the key heads.
    """

    config_class = InternVLChatConfig
    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _no_split_modules = [  # noqa: RUF012
        "InternVisionEncoderLayer",
        "InternVisionEmbeddings",
        "InternLM2DecoderLayer",
        "LlamaDecoderLayer",
        "Phi3DecoderLayer",
        "Qwen2DecoderLayer",
    ]

    def __init__(
        self,
        config: InternVLChatConfig,
        vision_model: nn.Module | None = None,
        language_model: nn.Module | None = None,
        use_flash_attn: bool | None = None,
    ) -> None:
        super().__init__(config)
        if config.use_backbone_lora or config.use_llm_lora:
            raise ValueError(
                f"config.json says use_backbone_lora={config.use_backbone_lora}, "
                f"use_llm_lora={config.use_llm_lora}: "
                "the weights are wrapped in LoRA layers; `internvl adopt` merges them."
            )
        check_tensor_parallel(config)
        if use_flash_attn:
            _prefer_flash_attention(config)
        # 4.57 gives the sub-models of a config-built model their own dtypes; one dtype for all of
        # them.
        config.vision_config.dtype = config.llm_config.dtype = torch.get_default_dtype()

        self.loss_type = "ForCausalLM"
        self.select_layer = config.select_layer
        self.template = config.template
        self.num_image_token = config.num_image_token
        self.downsample_ratio = config.downsample_ratio
        self.ps_version = config.ps_version
        self.img_context_token_id = config.img_context_token_id
        self.vit_batch_size: int | None = None
        self.loss_kernel: Any = None
        self.conv_template = get_conv_template(config.template) if config.template else None
        self.system_message = _system_message(config, self.conv_template)

        self.vision_model = (
            InternVisionModel(config.vision_config) if vision_model is None else vision_model
        )
        # Before the language model, so that planners of device maps keep it with the vision
        # encoder.
        self.mlp1 = _projector(config)
        self.language_model = _language_model(config) if language_model is None else language_model
        # PEFT looks here for what is tied to the embedding.
        self._tied_weights_keys = _prefixed(self.language_model._tied_weights_keys)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the projector; both sub-models initialise themselves."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:  # an output layer that is being resized has none
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    @property
    def base_model(self) -> Backbone:
        """The model without its output layer, for trainers; see `Backbone`."""
        return Backbone(self)

    # ------------------------------------------------------------------ embeddings
    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the output layer."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output layer."""
        self.language_model.set_output_embeddings(new_embeddings)

    @property
    def device(self) -> torch.device:
        """Device of the first parameter that is in memory: an offloaded one says "meta", where
        `generate` of 4.57 would put its ids."""
        parameters = (parameter.device for parameter in self.parameters())
        meta = torch.device("meta")
        return next((device for device in parameters if device != meta), meta)

    @property
    def context_token_id(self) -> int:
        """Id of `<IMG_CONTEXT>`: set by `chat`, or from the config, or by the rule of the
        published vocabularies."""
        if self.img_context_token_id is not None:
            return self.img_context_token_id
        return self.config.llm_config.vocab_size - _IMG_CONTEXT_FROM_END

    # ------------------------------------------------------------------ vision
    def pixel_shuffle(self, x: torch.Tensor, scale_factor: float = 0.5) -> torch.Tensor:
        """Pixel unshuffle in the order of `ps_version`; see `unshuffle_pixels`."""
        return unshuffle_pixels(x, scale_factor, self.ps_version)

    def extract_feature(
        self, pixel_values: torch.Tensor, vit_batch_size: int | None = None
    ) -> torch.Tensor:
        """Encode tiles (N, 3, H, W) to visual tokens (N, Q, D), ready to stand for `<IMG_CONTEXT>`.

        Args:
            pixel_values: normalised tiles, or uint8 ones, which are normalised on their device with
                `config.image_mean` and `config.image_std`.
            vit_batch_size: tiles to encode at once where no gradient is wanted; None for that of
                the model.

        Raises:
            ValueError: `select_layer` outside the encoder, integer pixels other than uint8, or
                sides that pixel unshuffle cannot merge.
        """
        return as_forward(self, "_visual_tokens")(pixel_values, vit_batch_size)

    def _visual_tokens(
        self, pixel_values: torch.Tensor, vit_batch_size: int | None = None
    ) -> torch.Tensor:
        """`extract_feature`, for use within `forward`."""
        step = vit_batch_size or self.vit_batch_size
        if step is None:
            patches = pixel_values[0, 0].numel() // self.config.vision_config.patch_size**2
            step = default_vit_batch_size(self._vision_device(pixel_values), 1 + patches)
        if torch.is_grad_enabled() or pixel_values.shape[0] <= step:
            return self._encode_tiles(pixel_values)
        return torch.cat([self._encode_tiles(tiles) for tiles in pixel_values.split(step)])

    def _vision_device(self, pixel_values: torch.Tensor) -> torch.device:
        weight = self.vision_model.embeddings.patch_embedding.weight
        return pixel_values.device if weight.device.type == "meta" else weight.device

    def _encode_tiles(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Visual tokens (N, Q, D) of tiles, all at once."""
        vision = self.config.vision_config
        if pixel_values.dtype == torch.uint8:
            pixel_values = normalize_pixels(
                pixel_values.to(self._vision_device(pixel_values)),
                self.config.image_mean,
                self.config.image_std,
            )
        hidden = self.vision_model(
            pixel_values, output_hidden_states=False, num_layers=self.num_vision_layers()
        ).last_hidden_state
        ph, pw = (side // vision.patch_size for side in pixel_values.shape[-2:])
        grid = hidden[:, 1:].unflatten(1, (ph, pw))  # (N, ph, pw, C), class token dropped
        tokens = self.pixel_shuffle(grid, self.downsample_ratio).flatten(1, 2)  # (N, Q, r * r * C)
        return self.mlp1(tokens)

    def get_image_features(
        self, pixel_values: torch.Tensor, image_flags: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `extract_feature`, keeping only the tiles that `image_flags` (N,) marks with 1."""
        features = self.extract_feature(pixel_values)
        return features if image_flags is None else features[kept_tiles(image_flags, features)]

    def num_vision_layers(self) -> int | None:
        """Blocks to run: hidden state `select_layer` of the L + 1 is the output of that many."""
        L = self.config.vision_config.num_hidden_layers
        layers = self.select_layer if self.select_layer >= 0 else L + 1 + self.select_layer
        if not 0 <= layers <= L:
            raise ValueError(
                f"select_layer is {self.select_layer}, but the vision encoder has {L} layers; "
                "correct config.json."
            )
        return layers

    def fuse(
        self, embeds: torch.Tensor, input_ids: torch.Tensor, visual: torch.Tensor
    ) -> torch.Tensor:
        """Put visual tokens in the places of `<IMG_CONTEXT>`, in order.

        Args:
            embeds: (B, T, D) token embeddings.
            input_ids: (B, T) ids.
            visual: (N, Q, D), or any shape ending in D, visual tokens in reading order over the
                batch.

        Raises:
            ValueError: places and visual tokens differ in number.
        """
        places = input_ids == self.context_token_id
        visual = visual.reshape(-1, visual.shape[-1])
        if not torch.compiler.is_compiling() and int(places.sum()) != visual.shape[0]:
            raise ValueError(
                f"the prompt has {int(places.sum())} <IMG_CONTEXT> tokens (id "
                f"{self.context_token_id}) but the images "
                f"give {visual.shape[0]} visual tokens ({self.num_image_token} per tile of "
                f"{self.config.tile_size} px); "
                "build the prompt and pixel_values from the same images, and use the "
                "checkpoint's own tokenizer "
                "(config.img_context_token_id names the id)."
            )
        return embeds.masked_scatter(
            places[..., None].to(embeds.device), visual.to(embeds.device, embeds.dtype)
        )

    def _embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        visual_features: torch.Tensor | None,
        image_flags: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Token embeddings with the images in place."""
        return as_forward(self, "_embeddings")(
            input_ids, inputs_embeds, pixel_values, visual_features, image_flags
        )

    def _embeddings(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        visual_features: torch.Tensor | None,
        image_flags: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """`_embed`, for use within `forward`."""
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is None and visual_features is None:
            return inputs_embeds
        if input_ids is None:
            raise ValueError(
                "images were given without input_ids, so nobody can tell where they belong; pass "
                "input_ids."
            )
        visual = self._visual_tokens(pixel_values) if visual_features is None else visual_features
        if image_flags is None:
            return self.fuse(inputs_embeds, input_ids, visual)
        kept = kept_tiles(image_flags, visual)
        fused = self.fuse(inputs_embeds, input_ids, visual[kept])
        # Padding tiles take part with weight 0, so that every rank runs the encoder backwards
        # (sharded training).
        return fused + (visual[~kept].sum() * 0).to(fused.device, fused.dtype)

    # ------------------------------------------------------------------ forward
    def _decoder_inputs(
        self,
        *,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        image_flags: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        num_tiles: list[int] | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What the language model is given, for what `forward` is given; `kwargs` pass through."""
        check_num_tiles(num_tiles, pixel_values)
        inputs_embeds = self._embeddings(
            input_ids, inputs_embeds, pixel_values, visual_features, image_flags
        )
        kwargs["attention_mask"], kwargs["use_cache"] = isolate_packed_rows(
            kwargs.get("attention_mask"),
            position_ids,
            kwargs.get("use_cache"),
            past_key_values=kwargs.get("past_key_values"),
            borders=kwargs.get("cu_seq_lens_q"),
            attention=self.config.llm_config._attn_implementation,
        )
        return {"inputs_embeds": inputs_embeds, "position_ids": position_ids, **kwargs}

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        image_flags: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        loss_weight: torch.Tensor | list | None = None,
        loss_reduction_all_gather: bool = False,
        *,
        inputs_embeds: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        num_tiles: list[int] | torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | float | None = None,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> tuple | CausalLMOutputWithPast:
        """Compute logits and, with `labels`, the loss.

        Several samples packed in one row are kept apart when `position_ids` restart at 0.

        Args:
            pixel_values: (N, 3, S, S) tiles in reading order over the batch.
            input_ids: (B, T) ids with Q `<IMG_CONTEXT>` per tile.
            attention_mask: (B, T), 1 for tokens, 0 for padding.
            position_ids: (B, T) positions.
            image_flags: (N,) or (N, 1), 1 for a real tile and 0 for a padding tile.
            past_key_values: cache of the positions before `input_ids`.
            labels: (B, T) ids to predict, -100 elsewhere.
            use_cache: return the cache; off for packed rows.
            output_attentions: return attention weights (eager attention only).
            output_hidden_states: return the decoder's hidden states.
            return_dict: False for a plain tuple.
            loss_weight: (B, T) weights of the labels, see `supervised_loss`.
            loss_reduction_all_gather: average the normaliser of the loss over ranks.
            inputs_embeds: (B, T, D) in place of embedding `input_ids`.
            visual_features: (N, Q, D) from `extract_feature`, in place of `pixel_values`.
            num_tiles: tiles of each image, as the processor returns them; they must sum to N.
            logits_to_keep: compute logits only for that many last positions; 0 for all.
            num_items_in_batch: normaliser of the loss from the trainer.
            skip_logits: compute the loss in chunks and no logits, see `chunked_loss`.
            **kwargs: passed to the language model.

        Raises:
            ValueError: images and text that do not fit, or packed rows with a cache.
        """
        inputs = self._decoder_inputs(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            image_flags=image_flags,
            past_key_values=past_key_values,
            use_cache=use_cache,
            inputs_embeds=inputs_embeds,
            visual_features=visual_features,
            num_tiles=num_tiles,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        how = (labels, loss_weight, num_items_in_batch, loss_reduction_all_gather)
        logits = loss = None
        if skip_logits and labels is not None:
            outputs = self.language_model.base_model(**inputs, return_dict=True)
            head = self.language_model.get_output_embeddings()
            loss = chunked_loss(outputs.last_hidden_state, head, *how, kernel=self.loss_kernel)
        else:
            inputs["logits_to_keep"] = logits_to_keep
            outputs = self.language_model(**inputs, return_dict=True)
            logits = outputs.logits
            loss = None if labels is None else supervised_loss(logits, *how)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result.to_tuple() if return_dict is False else result


class Backbone:
    """The chat model up to its last hidden state, as trainers call it to compute logits themselves.

    transformers' own multimodal models have it as a module at `base_model`; TRL calls it there,
    with images. Published weights have no such module, so this is a view. It stands for the
    language model, which `base_model_prefix` names, in everything but the call.
    """

    def __init__(self, model: InternVLChatModel) -> None:
        self._model = model

    def __call__(self, **inputs: Any) -> Any:
        """Take what `forward` takes and return the decoder's output, `last_hidden_state` first."""
        decoder = self._model.language_model.base_model
        return decoder(**{**self._model._decoder_inputs(**inputs), "return_dict": True})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model.language_model, name)


def _projector(config: InternVLChatConfig) -> nn.Sequential:
    """mlp1: from r * r * C merged channels to the width of the language model."""
    merged = config.vision_config.hidden_size * round(1 / config.downsample_ratio) ** 2
    D = config.llm_config.hidden_size
    return nn.Sequential(nn.LayerNorm(merged), nn.Linear(merged, D), nn.GELU(), nn.Linear(D, D))


def _language_model(config: InternVLChatConfig) -> nn.Module:
    if config.llm_config.model_type == "internlm2":
        from .modeling_internlm2 import InternLM2ForCausalLM

        return InternLM2ForCausalLM(config.llm_config)
    return AutoModelForCausalLM.from_config(config.llm_config)


def _prefixed(tied: dict[str, str] | list[str] | None) -> dict[str, str] | list[str] | None:
    """Tied weights of the language model by their names in the whole: pairs, on 4.57 a list."""
    if isinstance(tied, dict):
        return {f"language_model.{k}": f"language_model.{v}" for k, v in tied.items()}
    return tied and [f"language_model.{name}" for name in tied]


def _system_message(config: InternVLChatConfig, conversation: Any) -> str | None:
    if config.system_message is not None:
        return config.system_message
    return None if conversation is None else conversation.system_message


def _prefer_flash_attention(config: InternVLChatConfig) -> None:
    """Honour `use_flash_attn=True` where the kernels exist; elsewhere attention stays as
    transformers chose."""
    if not (torch.cuda.is_available() and is_flash_attn_2_available()):
        logger.warning_once(
            "use_flash_attn=True was asked for, but flash-attn or a CUDA device is missing; "
            "attention is "
            f"{config.vision_config._attn_implementation or 'sdpa'}, which gives the same answers."
        )
        return
    for part in (config.vision_config, config.llm_config):
        part._attn_implementation = "flash_attention_2"


# Kept for tools that read it from this module.
__all__ = ["InternVLChatConfig", "InternVLChatModel", "InternVisionConfig", "InternVisionModel"]
