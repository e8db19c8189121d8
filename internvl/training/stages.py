"""The stages: what learns, and how the rest is kept still (report section 3.2, Figure 4).

    stage   1          1.5          2
    learns  mlp1       ViT, mlp1    ViT, mlp1, LLM

A frozen part has no gradients and stays in eval mode, so that its drop path is off; where nothing
before it learns either, autograd keeps none of its activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from internvl import hub

PartName = Literal["vit", "mlp", "llm"]
MODULES: dict[str, str] = {"vit": "vision_model", "mlp": "mlp1", "llm": "language_model"}


@dataclass(frozen=True)
class Stage:
    """Which parts learn.

    Attributes:
        name: for messages.
        train: parts that learn, of "vit", "mlp" and "llm".
    """

    name: str
    train: tuple[PartName, ...]

    def __post_init__(self) -> None:
        """Refuse parts that no model has."""
        unknown = sorted(set(self.train) - set(MODULES))
        if unknown or not self.train:
            raise ValueError(
                f"stage {self.name!r} trains {list(self.train)}; expected some of {list(MODULES)}."
            )


STAGES = {
    "1": Stage("1", ("mlp",)),
    "1.5": Stage("1.5", ("vit", "mlp")),
    "2": Stage("2", ("vit", "mlp", "llm")),
}


def apply_stage(model: Any, stage: Stage) -> None:
    """Freeze what the stage does not train, and let the rest learn.

    Args:
        model: an InternVLChatModel, without adapters.
        stage: the stage.
    """
    for part, name in MODULES.items():
        getattr(model, name).requires_grad_(part in stage.train)
    # Layers behind `select_layer` compute nothing; a data-parallel run would wait for them.
    for layer in model.vision_model.encoder.layers[model.num_vision_layers() :]:
        layer.requires_grad_(False)
    set_modes(model)


def set_modes(model: Any) -> None:
    """Put parts that learn nothing in eval mode; `model.train()` puts all in training mode.

    Args:
        model: an InternVLChatModel, or a PeftModel or a data-parallel wrapper around one.
    """
    inner = chat_model(model)
    for name in MODULES.values():
        part = getattr(inner, name)
        if not any(weight.requires_grad for weight in part.parameters()):
            part.eval()


def set_drop_path(model: Any, rate: float) -> None:
    """Set the stochastic depth of the vision encoder: 0 at the first layer, `rate` at the last.

    Args:
        model: an InternVLChatModel.
        rate: probability; "ViT Drop Path" of Table 3.

    Raises:
        ValueError: not a probability.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path is {rate}; expected a probability within [0, 1).")
    drop_path = hub.ring0("modeling_intern_vit").InternDropPath
    layers = model.vision_model.encoder.layers
    model.config.vision_config.drop_path_rate = rate
    for index, layer in enumerate(layers):
        share = rate * index / max(1, len(layers) - 1)
        layer.drop_path1 = drop_path(share) if share else nn.Identity()
        layer.drop_path2 = drop_path(share) if share else nn.Identity()


def chat_model(model: Any) -> Any:
    """The InternVLChatModel within wrappers."""
    while not hasattr(model, "mlp1"):
        inner = getattr(model, "module", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None:
            raise TypeError(f"{type(model).__name__} holds no InternVLChatModel.")
        model = inner
    return model


def trainable(model: Any) -> dict[str, int]:
    """Parameters that learn, by part."""
    inner = chat_model(model)
    return {
        part: sum(w.numel() for w in getattr(inner, name).parameters() if w.requires_grad)
        for part, name in MODULES.items()
    }
