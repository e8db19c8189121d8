"""Cheaper linear layers for decoding on a CPU: packed bfloat16 weights, and int8 weights.

    nn.Linear of the language model -> PackedLinear   the same weights in oneDNN's own order
                                    -> Int8Linear     a byte per weight, a scale per output row

A decoder that produces one token at a time reads every weight of its linear layers for each of
them. Plain bfloat16 layers put their weights into another order at every call; packing does that
once. int8 halves the bytes. Both are off by default; docs/decoding.md has what they gain and what
they change. The vision encoder and the projector keep their layers: they work on hundreds of rows
at a time. Nothing here trains, and nothing here runs on an accelerator.

# M rows (all positions of the batch)   K input features   N output features
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

logger = logging.getLogger(__name__)

# Up to so many rows torch's int8 kernel, made for single tokens, is the faster way; beyond, it is
# faster to widen the weights once per call. They meet at 32 rows without bfloat16 units, earlier
# with them (benchmarks/decode_options.py, last rows).
KERNEL_ROWS = 16
# Weights to widen or to round at once: 4 MB of float32 stay in a core's cache.
BLOCK = 2**20
Place = tuple[nn.Module, str, nn.Linear]


def supported() -> bool:
    """Whether this CPU and this build of torch have oneDNN's bfloat16 layers (`pack_linears`)."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def has_bf16_units() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16).

    Where it does not, many rows are multiplied faster in float32.
    """
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


# ---------------------------------------------------------------------- layers
class _FixedLinear(nn.Module):
    """A linear layer that is neither trained, nor moved, nor loaded into."""

    remedy = ""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        self.bias = linear.bias
        self.train(linear.training)

    def extra_repr(self) -> str:
        """The sizes, as `nn.Linear` shows them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )

    def _check(self, x: torch.Tensor) -> None:
        """Refuse what would give wrong numbers, or no gradient, without a word."""
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{type(self).__name__} got an input that wants a gradient, but has none to give; "
                f"run it under torch.inference_mode(), or, to train, {self.remedy}."
            )
        if x.dtype != self.dtype or x.device.type != "cpu":
            raise ValueError(
                f"{type(self).__name__} got {x.dtype} on {x.device}, expected {self.dtype} on the "
                f"CPU; to change either, {self.remedy}."
            )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        probe = fn(torch.empty(0, dtype=self.dtype))
        if probe.dtype != self.dtype or probe.device.type != "cpu":
            raise ValueError(
                f"the language model has {type(self).__name__} layers, which stay {self.dtype} on "
                f"the CPU, and was told to become {probe.dtype} on {probe.device}; first "
                f"{self.remedy}, then convert the whole model (the parts before this one already "
                "are)."
            )
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        raise ValueError(
            f"{prefix.rstrip('.')} is a {type(self).__name__}, whose weights cannot be replaced; "
            f"first {self.remedy}."
        )


class PackedLinear(_FixedLinear):
    """A bfloat16 linear layer whose weights are in the order of oneDNN's kernels.

    Attributes:
        packed: the weights, opaque; `packed.to_dense()` gives them back bit by bit.
        weight: the plain weights where somebody else (a tied embedding) has them anyway, else None.
    """

    remedy = "call undo() on what pack_linears returned"

    def __init__(self, linear: nn.Linear, shared: bool) -> None:
        super().__init__(linear)
        self.weight: Any = linear.weight if shared else None
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., K) to (..., N)."""
        self._check(x)
        if torch.compiler.is_compiling():
            raise ValueError(
                f"torch.compile cannot hold oneDNN's weights; first {self.remedy}, or do not "
                "compile the language model."
            )
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight is None:
            destination[prefix + "weight"] = self.packed.to_dense()


class Int8Linear(_FixedLinear):
    """A linear layer with int8 weights: symmetric, rounded to nearest, one scale per output row.

    Attributes:
        quantized: (N, K) int8, within +-127.
        scale: (N,) bfloat16.
    """

    remedy = "load the model anew; its int8 weights cannot be turned back"
    quantized: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, scale: torch.Tensor) -> None:
        super().__init__(linear)
        self.register_buffer("quantized", _round(linear.weight, scale), persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., K) to (..., N); float32 rows go through torch's kernel in bfloat16."""
        self._check(x)
        rows = x.reshape(-1, self.in_features)
        out = (self._kernel if rows.shape[0] <= KERNEL_ROWS else self._widened)(rows)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def _kernel(self, rows: torch.Tensor) -> torch.Tensor:
        """(M, K) through torch's kernel, which reads bfloat16 and int8 and sums in float32."""
        low = rows.to(torch.bfloat16).contiguous()
        return torch._weight_int8pack_mm(low, self.quantized, self.scale).to(rows.dtype)

    def _widened(self, rows: torch.Tensor) -> torch.Tensor:
        """(M, K) times weights that are widened block by block; int8 fits bfloat16 exactly."""
        compute = rows.dtype if has_bf16_units() else torch.float32
        out = rows.new_empty(rows.shape[0], self.out_features)
        rows = rows.to(compute)
        for block in _blocks(self.quantized):
            product = F.linear(rows, self.quantized[block].to(compute))
            out[:, block] = product * self.scale[block].to(compute)
        return out

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise ValueError(
            f"{prefix.rstrip('.')} has int8 weights, which no checkpoint of this family stores; "
            "save the model before quantize_int8, or load it anew."
        )


def _blocks(weight: torch.Tensor) -> Iterator[slice]:
    """Blocks of output rows of a weight (N, K)."""
    step = max(1, BLOCK // weight.shape[1])
    return (slice(start, start + step) for start in range(0, weight.shape[0], step))


def _scale(name: str, weight: torch.Tensor) -> torch.Tensor:
    """(N,) scales in bfloat16, the type that the kernel takes; weights are rounded to *these*, so
    that the rounding of the scale is no error of its own.

    Raises:
        ValueError: weights that are not finite.
    """
    largest = torch.cat([weight[block].abs().amax(1) for block in _blocks(weight)]).float()
    if not bool(largest.isfinite().all()):
        raise ValueError(
            f"{name} has weights that are not finite, so they have no int8 form; check the "
            "checkpoint."
        )
    scale = (largest / 127).to(torch.bfloat16)
    return torch.where(scale > 0, scale, torch.ones_like(scale))  # rows of zeros


def _round(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(N, K) int8: the multiples of the scales nearest to the weights."""
    quantized = torch.empty(weight.shape, dtype=torch.int8)
    for block in _blocks(weight):
        multiples = weight[block].float() / scale[block, None].float()
        quantized[block] = multiples.round_().clamp_(-127, 127).to(torch.int8)
    return quantized


# ---------------------------------------------------------------------- the model's layers
def _language_model(model: Any) -> Any:
    """The language model of a chat model, or the language model that was given."""
    language_model = getattr(model, "language_model", model)
    get_head = getattr(language_model, "get_output_embeddings", None)
    if get_head is None or get_head() is None:
        raise ValueError(
            f"{type(model).__name__} is no chat model and no language model with an output layer; "
            "the vision encoder gains nothing from layers made for single tokens."
        )
    return language_model


def _places(model: Any, head: bool, dtypes: tuple[torch.dtype, ...]) -> dict[str, Place]:
    """Where the linear layers of the language model are, each checked.

    Raises:
        ValueError: the first layer that cannot be replaced, with the reason and the remedy.
    """
    language_model = _language_model(model)
    if language_model.training:
        raise ValueError("the model is in training mode; call eval() first, or keep its layers.")
    output = language_model.get_output_embeddings()
    modules = dict(language_model.named_modules())
    for path, module in modules.items():
        _check_hands(path, module)
    places = {}
    for path, parent in modules.items():
        for name, module in parent.named_children():
            if isinstance(module, nn.Linear) and (head or module is not output):
                where = f"{path}.{name}".lstrip(".")
                _check_layer(where, module, dtypes)
                places[where] = (parent, name, module)
    if not places:
        raise ValueError(f"{type(language_model).__name__} has no linear layers to replace.")
    return places


def _check_hands(path: str, module: nn.Module) -> None:
    """Refuse what is in the hands of others."""
    if isinstance(module, _FixedLinear):
        raise ValueError(f"{path} is a {type(module).__name__} already; first {module.remedy}.")
    if "base_layer" in module._modules:
        raise ValueError(
            f"{path} carries an adapter ({type(module).__name__}); merge it first: "
            "model = model.merge_and_unload()."
        )
    if hasattr(module, "_hf_hook"):
        raise ValueError(
            f"{path or 'the language model'} is moved between devices by accelerate; load the "
            "model without device_map, on the CPU."
        )


def _check_layer(name: str, linear: nn.Linear, dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuse a layer that is more than plain weights on the CPU."""
    weight = linear.weight
    if type(linear) is not nn.Linear or type(weight.data) is not torch.Tensor:
        raise ValueError(
            f"{name} is a {type(linear).__name__} with a weight of type "
            f"{type(weight.data).__name__}, expected a plain nn.Linear; it is quantised, "
            "parametrised or sharded already, so load the model without that."
        )
    if weight.device.type != "cpu":
        raise ValueError(f"{name} is on {weight.device}, expected the CPU; move the model first.")
    if weight.dtype not in dtypes:
        names = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(
            f"{name} is {weight.dtype}, expected {names}; load the model with that dtype."
        )
    hooks = linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks
    if hooks or "forward" in vars(linear):
        raise ValueError(
            f"{name} has hooks or a forward of its own, which its replacement would not run; "
            "remove them first."
        )


# ---------------------------------------------------------------------- packed bfloat16
class PackedLinears:
    """The layers that `pack_linears` replaced; `undo()`, or the end of a `with`, brings them back.

    Attributes:
        extra_bytes: memory that packing costs: the output layer, where its weights are also the
            embedding. The plain weights of all other layers are let go until `undo`.
    """

    def __init__(self) -> None:
        self.extra_bytes = 0
        self._replaced: list[tuple[nn.Module, str, nn.Linear]] = []

    def __len__(self) -> int:
        return len(self._replaced)

    def __enter__(self) -> PackedLinears:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def _replace(self, place: Place, shared: bool) -> None:
        parent, name, linear = place
        packed = PackedLinear(linear, shared)
        self._replaced.append(place)
        setattr(parent, name, packed)
        if shared:
            self.extra_bytes += linear.weight.nbytes
        else:
            linear.weight.data = linear.weight.data.new_empty(0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def undo(self) -> None:
        """Put the layers back, the same objects with the same weights; a second call does nothing.

        Raises:
            ValueError: somebody else has replaced a packed layer in the meantime.
        """
        while self._replaced:
            parent, name, linear = self._replaced[-1]
            packed = getattr(parent, name)
            if not isinstance(packed, PackedLinear):
                raise ValueError(
                    f"{name} of {type(parent).__name__} is a {type(packed).__name__}, expected the "
                    "PackedLinear that was put there; whoever replaced it has its weights now."
                )
            if packed.weight is None:
                linear.weight.data = packed.packed.to_dense()
            setattr(parent, name, linear.train(packed.training))
            self._replaced.pop()


@torch.inference_mode(False)
@torch.no_grad()
def pack_linears(model: Any, *, head: bool = True) -> PackedLinears:
    """Keep the bfloat16 weights of the language model in the order of oneDNN's kernels.

        with pack_linears(model):
            model.chat(...)

    The same products are summed, in float32, and rounded to bfloat16 once; the order of a sum may
    differ, so single logits may differ in their last bit. The memory stays as it is, except that a
    tied output layer needs N x K x 2 bytes of its own. `state_dict` and `save_pretrained` give
    the plain weights.

    Args:
        model: `InternVLChatModel` or its language model, bfloat16, on the CPU, in eval mode.
        head: pack the output layer, too.

    Returns:
        What can be undone.

    Raises:
        ValueError: a CPU or torch without oneDNN's bfloat16 layers; a model in training mode, in
            another dtype or elsewhere, with an adapter that is not merged, hooks (accelerate), or
            layers that are quantised or packed already. The model is unchanged then.
    """
    if not supported():
        raise ValueError(
            "this CPU, or this build of torch, has no bfloat16 layers in oneDNN "
            "(internvl.chat.linears.supported() is False); keep the layers as they are."
        )
    places = _places(model, head, (torch.bfloat16,))
    owners = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    packed = PackedLinears()
    try:
        for place in places.values():
            packed._replace(place, shared=owners[id(place[2].weight)] > 1)
    except BaseException:
        packed.undo()
        raise
    logger.info(
        "packed %d linear layers; %.0f MB of memory more", len(packed), packed.extra_bytes / 1e6
    )
    return packed


# ---------------------------------------------------------------------- int8
@dataclass(frozen=True)
class Quantized:
    """What `quantize_int8` did.

    Attributes:
        layers: linear layers with int8 weights.
        bytes_before: bytes of their weights before.
        bytes_after: bytes of their weights and scales now.
        tied_bytes: bytes of weights that stay besides, because the embedding uses them.
    """

    layers: int
    bytes_before: int
    bytes_after: int
    tied_bytes: int


@torch.inference_mode(False)
@torch.no_grad()
def quantize_int8(model: Any, *, head: bool = True) -> Quantized:
    """Round the weights of the language model's linear layers to int8, in place and for good.

    This changes answers: docs/decoding.md has by how much. A layer at a time, so memory only falls;
    a tied output layer gets N x K bytes of its own, and its embedding stays.

    Args:
        model: `InternVLChatModel` or its language model, bfloat16 or float32, on the CPU, in eval
            mode.
        head: quantise the output layer, too.

    Returns:
        The layers and their bytes.

    Raises:
        ValueError: a model in training mode, in another dtype or elsewhere, with an adapter that is
            not merged, hooks (accelerate), layers that are packed or quantised already, or weights
            that are not finite. The model is unchanged then.
    """
    places = _places(model, head, (torch.bfloat16, torch.float32))
    scales = {name: _scale(name, linear.weight) for name, (_, _, linear) in places.items()}
    embedding = _language_model(model).get_input_embeddings().weight
    before = after = tied = 0
    for name in scales:
        parent, child, linear = places.pop(name)  # the last reference, so that memory falls
        before += linear.weight.nbytes
        tied += linear.weight.nbytes if linear.weight is embedding else 0
        quantized = Int8Linear(linear, scales[name])
        after += quantized.quantized.nbytes + quantized.scale.nbytes
        setattr(parent, child, quantized)
    logger.info("%d linear layers from %.0f to %.0f MB", len(scales), before / 1e6, after / 1e6)
    return Quantized(len(scales), before, after, tied)
