"""The vision encoder whose features are evaluated (report section 7): loaded, and proven frozen.

    pixels (N, 3, H, W) -> InternViT -> Features: class token (N, C), patches (N, P, C) of one layer
                                     -> maps: (N, C, ph, pw) of several layers

It comes from an InternViT folder or out of a chat checkpoint, of which only the encoder is read.
Layers count hidden states: 0 is the embeddings, l the output of the l-th block, -1 the last.

    # N images   P patches (ph * pw)   C width   L blocks   ph, pw  patch rows and columns
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from internvl import hub
from internvl.source_files import DATA, SETTINGS, check_weights, read_json, resolve, some


@dataclass(frozen=True)
class Features:
    """What an encoder says of a batch of images, in float32.

    Attributes:
        class_token: (N, C).
        patches: (N, P, C), row-major.
        grid: (ph, pw) with ph * pw = P.
    """

    class_token: torch.Tensor
    patches: torch.Tensor
    grid: tuple[int, int]

    @property
    def tokens(self) -> torch.Tensor:
        """All tokens, (N, 1 + P, C), the class token first."""
        return torch.cat([self.class_token[:, None], self.patches], dim=1)


class Encoder(nn.Module):
    """An InternViT with what is needed to feed it.

    Args:
        model: `InternVisionModel`.
        image_size: side in pixels of the images that it is given; position embeddings are
            interpolated when the model was trained at another one.
        mean: per channel, of values in [0, 1].
        std: per channel.
        layer: hidden state that `features` returns: -1 the last, as in Tables 14 and 15.
        freeze: no gradients, and eval mode whatever `train()` says.
        autocast: dtype to compute in under autocast, bfloat16 for instance; None for that of the
            weights.

    Raises:
        ValueError: an image size that is no multiple of the patch size, or no such layer.
    """

    def __init__(
        self,
        model: Any,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        layer: int = -1,
        freeze: bool = True,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        if image_size < self.patch_size or image_size % self.patch_size:
            raise ValueError(
                f"image_size is {image_size}, expected a multiple of the patch size "
                f"{self.patch_size}; correct --size."
            )
        self.image_size, self.autocast = image_size, autocast
        self.mean, self.std = tuple(mean), tuple(std)
        self.layer = self._blocks(layer)
        self.frozen = freeze
        if freeze:
            self.requires_grad_(False)
        self.train(not freeze)

    @property
    def width(self) -> int:
        """C."""
        return self.model.config.hidden_size

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        return self.model.config.num_attention_heads

    @property
    def num_layers(self) -> int:
        """L."""
        return self.model.config.num_hidden_layers

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.model.config.patch_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> Encoder:
        """As in torch, but a frozen encoder stays in eval mode: no drop path, no dropout."""
        return super().train(mode and not self.frozen)

    def features(self, pixel_values: torch.Tensor, *, layer: int | None = None) -> Features:
        """Encode images.

        Args:
            pixel_values: (N, 3, H, W) normalised by `mean` and `std`; H and W multiples of the
                patch size.
            layer: hidden state to return; that of the encoder when None.

        Raises:
            ValueError: no such layer, or pixels of another shape.
        """
        blocks = self.layer if layer is None else self._blocks(layer)
        hidden = self._hidden_states(pixel_values, [blocks])[0]
        return Features(hidden[:, 0], hidden[:, 1:], self._grid(pixel_values))

    def maps(self, pixel_values: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """The patches of several layers as pictures.

        Args:
            pixel_values: as in `features`.
            layers: hidden states, in any order. MMSegmentation counts blocks from 0: its
                `out_indices` 11 is layer 12 here.

        Returns:
            (N, C, ph, pw) for each layer, float32.

        Raises:
            ValueError: no such layer, or pixels of another shape.
        """
        rows, cols = self._grid(pixel_values)
        found = self._hidden_states(pixel_values, [self._blocks(layer) for layer in layers])
        return [each[:, 1:].transpose(1, 2).unflatten(2, (rows, cols)) for each in found]

    def fingerprint(self) -> str:
        """The sha256 over names, dtypes, shapes and bits of all weights.

        Equal before and after a probe was trained: the encoder was frozen. Loaded in the dtype that
        the files have, it equals `internvl.training.progressive.vision_digest` of them.
        """
        lines = []
        for name, tensor in sorted(self.model.state_dict().items()):
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            shape = "x".join(map(str, tensor.shape))
            dtype = _SAFETENSORS.get(tensor.dtype, str(tensor.dtype))
            digest = hashlib.sha256(data).hexdigest()
            lines.append(f"vision_model.{name} {dtype} {shape} {digest}\n")
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _hidden_states(self, pixels: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Hidden states (N, 1 + P, C), float32; blocks after the last one asked for do not run."""
        device = self.device
        precision: Any = contextlib.nullcontext()
        if self.autocast is not None:
            precision = torch.autocast(device.type, dtype=self.autocast)
        with precision, torch.no_grad() if self.frozen else contextlib.nullcontext():
            output = self.model(
                pixels.to(device), output_hidden_states=len(layers) > 1, num_layers=max(layers)
            )
        if len(layers) == 1:
            return [output.last_hidden_state.float()]
        return [output.hidden_states[layer].float() for layer in layers]

    def _grid(self, pixels: torch.Tensor) -> tuple[int, int]:
        side = self.patch_size
        if pixels.ndim != 4 or pixels.shape[2] % side or pixels.shape[3] % side:
            raise ValueError(
                f"pixel_values has shape {tuple(pixels.shape)}, expected (images, 3, height, "
                f"width) with multiples of the patch size {side}."
            )
        return pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size

    def _blocks(self, layer: int) -> int:
        """Blocks to run for a layer; negative ones count from the last."""
        blocks = layer if layer >= 0 else self.num_layers + 1 + layer
        if not 0 <= blocks <= self.num_layers:
            raise ValueError(
                f"layer is {layer}, but the encoder has {self.num_layers} blocks; expected "
                f"{-self.num_layers - 1} to {self.num_layers}."
            )
        return blocks


_SAFETENSORS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def load_encoder(
    source: str | Path | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    image_size: int | None = None,
    layer: int | None = None,
    freeze: bool = True,
    dtype: str | torch.dtype = "float32",
    autocast: torch.dtype | None = None,
    attn_implementation: str | None = None,
    device: str | torch.device | None = None,
) -> Encoder:
    """Load a vision encoder with the classes of this repository.

    Args:
        source: folder or Hub id of an InternViT, or of a chat checkpoint, of which only the encoder
            is read into memory; None for the demo of this repository.
        subfolder: folder within the source.
        revision: branch, tag or commit of a Hub repository.
        image_size: side in pixels of the images; that of the checkpoint when None.
        layer: hidden state of `Encoder.features`; None for the one that the chat checkpoint's
            language model reads (`select_layer`), and the last of an InternViT.
        freeze: see `Encoder`.
        dtype: of the weights, "auto" for that of the checkpoint.
        autocast: see `Encoder`.
        attn_implementation: as in transformers; None for sdpa.
        device: where to put it; None for the CPU.

    Raises:
        FileNotFoundError: a folder that does not exist.
        ValueError: as `internvl.hub.load`; an image size or a layer that does not fit.
    """
    given = hub.DEMO if source is None else source
    fields = read_json(resolve(given, subfolder, revision, SETTINGS) / "config.json")
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    options = {key: value for key, value in options.items() if value is not None}
    if fields.get("model_type") == hub.CHAT_TYPE:
        prepared = hub.prepare(given, subfolder=subfolder, revision=revision)
        folder = resolve(given, subfolder, revision, DATA)
        model = _vision_part(folder, prepared.config, options)
        images = prepared.processor.image_processor
        layer = prepared.config.select_layer if layer is None else layer
    else:
        loaded = hub.load(given, subfolder=subfolder, revision=revision, **options)
        model, images = loaded.model, loaded.processor
    return Encoder(
        model if device is None else model.to(device),
        image_size=images.tile_size if image_size is None else image_size,
        mean=images.image_mean,
        std=images.image_std,
        layer=-1 if layer is None else layer,
        freeze=freeze,
        autocast=autocast,
    )


def random_encoder(like: Encoder, seed: int, *, freeze: bool = True) -> Encoder:
    """An encoder of the same shape with new weights: the floor that trained ones have to pass.

    Args:
        like: gives shape, image size, normalisation, layer, dtype and device.
        seed: of the weights.
        freeze: see `Encoder`.
    """
    model_class = type(like.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(type(like.model.config).from_dict(like.model.config.to_dict()))
    return Encoder(
        model.to(like.device, next(like.model.parameters()).dtype),
        image_size=like.image_size,
        mean=like.mean,
        std=like.std,
        layer=like.layer,
        freeze=freeze,
        autocast=like.autocast,
    )


def _vision_part(folder: Path, config: Any, options: dict[str, Any]) -> Any:
    """The encoder out of a chat checkpoint, complete, and nothing else of it.

    Raises:
        ValueError: weights that are missing or do not fit the config.
    """
    check_weights(folder)
    if config.use_backbone_lora:
        raise ValueError(
            f"{folder} has use_backbone_lora={config.use_backbone_lora}: the encoder is wrapped in "
            "LoRA layers; `internvl adopt` merges them."
        )
    if isinstance(options["dtype"], str) and options["dtype"] != "auto":
        found = getattr(torch, options["dtype"], None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"dtype is {options['dtype']!r}, expected auto or that of weights.")
        options = {**options, "dtype": found}
    model, report = hub.ring0("modeling_intern_vit").InternVisionModel.from_pretrained(
        folder,
        config=config.vision_config,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # so that all of them are named below
        output_loading_info=True,
        **options,
    )
    faults = sorted(
        f"{kind.replace('_', ' ')}: {key if isinstance(key, str) else key[0]}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        for key in report.get(kind) or ()
    )
    if faults:
        raise ValueError(
            f"the encoder in {folder} does not fit its config.json ({some(faults)}); the two "
            "belong to different models, or the checkpoint is incomplete."
        )
    return model
