"""Recipes of quantisation: a name -> the config that `from_pretrained` takes.

A recipe says how the linear layers of the language model are stored. Which layers stay as they are
is said by the model (`modules_to_not_convert` in placement_internvl_chat.py): vision encoder,
projector and output layer. Nothing of ours is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A way to store weights.

    Attributes:
        package: what has to be installed.
        stored: what is kept of a weight, in words.
        bits: bits per weight, scales included, for layers of thousands of columns.
        build: makes the config.
        cuda: whether only CUDA devices have kernels for it.
    """

    package: str
    stored: str
    bits: float
    build: Callable[[], Any]
    cuda: bool = False


def _bnb_int8() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def _bnb_nf4() -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,  # transformers' default is float32
    )


def _torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _torchao_int4() -> Any:
    from torchao.quantization import Int4WeightOnlyConfig
    from transformers import TorchAoConfig

    # The one layout whose kernel is in torch itself; that of the default is in another package.
    return TorchAoConfig(
        Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d")
    )


RECIPES = {
    "bnb-int8": Recipe("bitsandbytes", "int8, a float32 scale per row", 8.01, _bnb_int8),
    "bnb-nf4": Recipe(
        "bitsandbytes", "4-bit normal floats, an 8-bit scale per 64 weights", 4.13, _bnb_nf4
    ),
    "torchao-int8": Recipe("torchao", "int8, a scale per row", 8.01, _torchao_int8),
    "torchao-int4": Recipe(
        "torchao", "int4, a scale and a zero point per 128 weights", 4.25, _torchao_int4, cuda=True
    ),
}
# The package behind the `quant_method` of a config; other methods are transformers' affair.
_PACKAGES = {recipe.package: recipe.package for recipe in RECIPES.values()}


def recipe(name: str) -> Any:
    """Make the config of a recipe.

    Args:
        name: one of `RECIPES`.

    Returns:
        A `BitsAndBytesConfig` or `TorchAoConfig` without a skip list: the model adds its own.

    Raises:
        ValueError: no such recipe.
        ImportError: its package is not installed; the message names the extra that brings it.
    """
    if name not in RECIPES:
        raise ValueError(f"quantization is {name!r}, expected one of {', '.join(RECIPES)}.")
    require(RECIPES[name].package, f"the recipe {name!r}")
    return RECIPES[name].build()


def checked(quantization: Any, device_map: Any = None) -> Any:
    """The config of a recipe's name, or the config given, if it can work here.

    Args:
        quantization: name of a recipe, a quantisation config of transformers, or its fields.
        device_map: where the model goes, as in transformers; None for the CPU.

    Raises:
        ValueError: no such recipe, or one without kernels for this device.
        ImportError: as in `recipe`.
    """
    if isinstance(quantization, str):
        config = recipe(quantization)
        if RECIPES[quantization].cuda and (device_map is None or not _has_cuda()):
            raise ValueError(
                f"the recipe {quantization!r} has kernels for CUDA devices only; pass a device_map "
                "that names one, or take bnb-nf4, which runs on a CPU as well."
            )
        return config
    fields = quantization if isinstance(quantization, dict) else vars(quantization)
    method = fields.get("quant_method")
    if package := _PACKAGES.get(str(getattr(method, "value", method))):
        require(package, f"quantisation by {package}")
    return quantization


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def require(package: str, what: str) -> None:
    """Check that a package is installed.

    Raises:
        ImportError: it is not.
    """
    if find_spec(package) is None:
        raise ImportError(f"{what} needs {package}: pip install 'internvl[quant]'")
