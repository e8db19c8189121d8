"""LoRA adapters with PEFT: which layers of which model, and what TRL's trainers need beside them.

    lora_config(model.config, "llm") -> peft.get_peft_model -> train -> save_pretrained
    adapter folder -> hub.load(base, adapter=folder), AutoModel.from_pretrained(folder), export

The layers, alpha = 2 r and the dropout of 0.05 are those of the official fine-tuning code.
docs/adapters.md shows the whole way.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from peft import LoraConfig

Part = Literal["llm", "vision", "both"]
PARTS = ("llm", "vision", "both")

_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Linear layers of a decoder layer, by the model type of the language model.
LLM_TARGETS: dict[str, tuple[str, ...]] = {
    "internlm2": ("wqkv", "wo", "w1", "w2", "w3"),
    "llama": _SEVEN,
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "qwen2": _SEVEN,
}
VISION_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
PROJECTOR = "mlp1"


def target_pattern(config: Any, part: Part = "llm") -> str:
    r"""A regular expression that matches the paths of the layers to wrap, and no others.

    That of the language model ends in its one group of names, `...\.(q_proj|k_proj)`, because
    vLLM reads the names from there.

    Args:
        config: `InternVLChatConfig`.
        part: "llm", "vision", or "both".

    Raises:
        ValueError: an unknown part, or a language model without a preset.
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}, expected one of {PARTS}.")
    family = config.llm_config.model_type
    if family not in LLM_TARGETS:
        raise ValueError(
            f"there is no LoRA preset for the language model {family!r}, only for "
            f"{sorted(LLM_TARGETS)}; pass target_modules."
        )
    llm = rf"language_model\.model\.layers\.\d+\.\w+\.({'|'.join(LLM_TARGETS[family])})"
    names = "|".join(name.replace(".", r"\.") for name in VISION_TARGETS)
    vision = rf"vision_model\.encoder\.layers\.\d+\.({names})"
    return {"llm": llm, "vision": vision, "both": f"{vision}|{llm}"}[part]


def lora_config(
    config: Any,
    part: Part = "llm",
    rank: int = 16,
    *,
    alpha: int | None = None,
    dropout: float = 0.05,
    train_mlp1: bool = False,
    **options: Any,
) -> LoraConfig:
    """The LoRA settings of the official fine-tuning code for a model.

    Args:
        config: `InternVLChatConfig`, as `model.config`.
        part: what to wrap: "llm", "vision", or "both".
        rank: r of the factors; official recipes take 16, and 128 for the largest data sets.
        alpha: the update is scaled by alpha / r; None for 2 r.
        dropout: dropout before the factors.
        train_mlp1: also train the projector, whole; the adapter then holds a copy of it, which
            servers do not take: merge such an adapter.
        **options: further settings of `peft.LoraConfig`, such as those of
            `internvl.checkpoints.special_tokens.token_options`.

    Raises:
        ImportError: peft is not installed.
        ValueError: as in `target_pattern`, or a rank below 1.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("adapters need peft: pip install 'internvl[train]'") from error
    if rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1.")
    saved = [*([PROJECTOR] if train_mlp1 else []), *(options.pop("modules_to_save", None) or [])]
    settings = {
        "r": rank,
        "lora_alpha": 2 * rank if alpha is None else alpha,
        "lora_dropout": dropout,
        "target_modules": options.pop("target_modules", None) or target_pattern(config, part),
        "modules_to_save": saved or None,
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**{**settings, **options})


# ---------------------------------------------------------------------- TRL
def trl_processor(processor: Any) -> Any:
    """A copy of a processor that TRL's trainers can use for images of several tiles.

    GRPO hands on every output of the processor, which must be one it knows, so `num_tiles` is left
    out; and it asks the image processor for the tiles of each image, with `crop_to_patches=True`,
    under the name that transformers' own InternVL processor has for them, `num_patches`.

    Args:
        processor: `InternVLChatProcessor`; stays as it is, and shares its tokenizer with the copy.
    """
    adapted = copy.copy(processor)
    adapted.return_num_tiles = False
    adapted.image_processor = _CountingImages(processor.image_processor)
    adapted.save_pretrained = processor.save_pretrained  # checkpoints hold the given one
    return adapted


class _CountingImages:
    """An image processor that also says how many tiles each image has, as TRL asks."""

    def __init__(self, image_processor: Any) -> None:
        self._image_processor = image_processor

    def __call__(self, images: Any, *, crop_to_patches: bool = False, **options: Any) -> Any:
        output = self._image_processor(images, **options)
        if crop_to_patches:
            import torch

            output["num_patches"] = torch.tensor(output["num_tiles"], dtype=torch.long)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_image_processor"), name)
