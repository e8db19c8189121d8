"""How the weights of a chat model are stored and spread: quantised, over ranks, or over both.

What transformers has no setting for: which modules quantisation must leave alone, which sizes of
tensor parallelism a model can have, and weights that FSDP2 has to gather outside `forward`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# What quantisation configs call the list of modules to leave alone.
_SKIP_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")
# By this torch's FSDPModule, which sharded models become, is known.
_FSDP_METHOD = "set_reshard_after_forward"


class PlacementMixin:
    """Loading and saving of `InternVLChatModel`; stands before transformers' own in its bases.

    Attributes:
        modules_to_not_convert: modules that quantisation leaves alone.
    """

    # Whole paths, because quantisers compare them with the start of a name. A language model has
    # one of the two output layers.
    modules_to_not_convert = (
        "vision_model",
        "mlp1",
        "language_model.lm_head",
        "language_model.output",
    )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        quantization_config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load as transformers does; quantisation leaves vision, projector and output layer alone.

        transformers itself would leave only the output layer alone, and round the vision encoder
        and the projector like all other linear layers. No attribute of a model tells it otherwise,
        so the skip list goes into the config of the quantisation, which `save_pretrained` writes
        down for other tools, too.

        Args:
            pretrained_model_name_or_path: as in transformers.
            *model_args: as in transformers.
            quantization_config: as in transformers, and not modified. Without a skip list it gets
                `modules_to_not_convert`; with one it keeps it, and a warning names what is missing.
            **kwargs: as in transformers; `load_in_8bit` and `load_in_4bit`, which the published
                model cards pass, work on transformers 5 as well.

        Raises:
            ValueError: `load_in_8bit` or `load_in_4bit` beside a `quantization_config`.
        """
        names = ("load_in_8bit", "load_in_4bit")
        bits = {name: kwargs.pop(name) for name in names if name in kwargs}
        if any(bits.values()):
            if quantization_config is not None:
                raise ValueError(
                    f"{' and '.join(bits)} came with a quantization_config; pass one of the two."
                )
            quantization_config = BitsAndBytesConfig(**bits)
        if quantization_config is not None:
            modules = cls.modules_to_not_convert
            kwargs["quantization_config"] = with_skip_list(quantization_config, modules)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does; a model sharded by FSDP2 with its own code.

        FSDP2 makes the model an instance of a subclass that torch defines, and transformers would
        save the code of torch, and name that class in config.json. Call it on every rank.

        Args:
            *args: as in transformers.
            **kwargs: as in transformers.
        """
        kind = type(self)
        if not _is_fsdp(self):
            return super().save_pretrained(*args, **kwargs)
        own = next(parent for parent in kind.__mro__ if not hasattr(parent, _FSDP_METHOD))
        names = kind.__name__, kind.__module__
        kind.__name__, kind.__module__ = own.__name__, own.__module__
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            kind.__name__, kind.__module__ = names


def with_skip_list(config: Any, modules: tuple[str, ...]) -> Any:
    """A quantisation config that leaves modules alone, unless its caller chose a list himself.

    Args:
        config: the config, or its fields.
        modules: paths of the modules, the last two being output layers, one of which exists.
    """
    if isinstance(config, dict):
        config = AutoQuantizationConfig.from_dict(config)
    field = next((name for name in _SKIP_LISTS if hasattr(config, name)), None)
    if field is None:  # the method names what it quantises (GPTQ)
        return config
    given = getattr(config, field)
    parameter = inspect.signature(type(config).__init__).parameters.get(field)
    if given is None or (parameter is not None and given == parameter.default):
        config = copy.copy(config)
        setattr(config, field, list(modules))
        return config
    missing = [module for module in modules if not _is_named(module, given)]
    if len(set(missing) & set(modules[-2:])) == 1:  # the other output layer is named
        missing = [module for module in missing if module not in modules[-2:]]
    if missing:
        logger.warning(
            f"{field} is {given}, so these are quantised too, which costs accuracy: {missing}; "
            "leave the list out for the one that suits the model."
        )
    return config


def _is_named(module: str, names: list[str]) -> bool:
    """Whether a skip list holds a module, by its path, by the end of it or by a parent."""
    return any(module.endswith(name) or module.startswith(f"{name}.") for name in names)


def check_tensor_parallel(config: Any) -> None:
    """Check that tensor parallelism cuts no key head in two.

    Args:
        config: of the chat model.

    Raises:
        ValueError: the number of processes does not divide the key heads.
    """
    distributed, llm = getattr(config, "distributed_config", None), config.llm_config
    size = getattr(distributed, "tp_size", 1)
    if size == 1 or isinstance(distributed.tp_plan, dict):
        return  # whoever writes a plan knows what it cuts
    # Not in the plan of Phi-3, which gathers its fused projections: every rank has all heads.
    plan = (llm.base_model_tp_plan or {}).items()
    by_head = any(style == "colwise" and key.endswith(("k_proj", "wqkv")) for key, style in plan)
    if by_head and llm.num_key_value_heads % size:
        raise ValueError(
            f"tp_size is {size}, but the language model has {llm.num_key_value_heads} key heads, "
            f"which {size} processes cannot share evenly; take a tp_size that divides them."
        )


def _is_fsdp(model: Any) -> bool:
    """Whether FSDP2 shards a model, found out without an import of torch.distributed.fsdp."""
    return hasattr(model, _FSDP_METHOD)


def as_forward(model: Any, name: str) -> Callable[..., Any]:
    """A method of a model that uses weights outside `forward`.

    FSDP2 gathers weights around `forward` only, and is to be told of other methods. They must not
    be those that `forward` calls in its turn, hence the alias.

    Args:
        model: sharded or not.
        name: of the method.
    """
    if not _is_fsdp(model):
        return getattr(model, name)
    alias = f"{name}_as_forward"
    if alias not in vars(model):
        from torch.distributed.fsdp import register_fsdp_forward_method

        setattr(model, alias, getattr(model, name))
        register_fsdp_forward_method(model, alias)
    return getattr(model, alias)
