"""The only door from the workshop to the remote code at the repository root, and to checkpoints.

`ring0` imports the remote code of this repository; `load` brings a checkpoint, published or ours,
into it:

    source (folder, Hub id, None = demo) -> checked files -> config -> model + processor + tokenizer

Nothing of `source` is ever executed, unless the caller asks for it: the classes are those of this
repository, weights are safetensors, tokenizers are transformers' own (or our `InternLM2Tokenizer`).
"""

from __future__ import annotations

import importlib
import logging
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from internvl.source_files import (
    CODE,
    DATA,
    SETTINGS,
    check_weights,
    optional_json,
    read_json,
    resolve,
    some,
)

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parent.parent
DEMO = REPOSITORY / "demo"
CHAT_TYPE, VISION_TYPE = "internvl_chat", "intern_vit_6b"
_PACKAGE = "internvl_hub"
_PROCESSOR_FIELDS = ("frame_prefix", "image_labels", "image_seq_length", "template")


def ring0(name: str) -> ModuleType:
    """Import a remote-code module of this repository, e.g. ``ring0("modeling_internvl_chat")``.

    The root files use relative imports, as the Hub loader demands, so they are imported as members
    of a synthetic package whose search path is the repository root.
    """
    if _PACKAGE not in sys.modules:
        spec = ModuleSpec(_PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(REPOSITORY)]
        sys.modules[_PACKAGE] = module_from_spec(spec)
    return importlib.import_module(f"{_PACKAGE}.{name}")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint, ready to use.

    Attributes:
        model: `InternVLChatModel` (wrapped in a PeftModel with an adapter), or `InternVisionModel`;
            in eval mode.
        processor: `InternVLChatProcessor`, or `InternVLChatImageProcessor` for a vision encoder.
        tokenizer: the tokenizer; None for a vision encoder.
    """

    model: Any
    processor: Any
    tokenizer: Any


def load(
    source: str | Path | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    dtype: Any = "auto",
    device_map: Any = None,
    attn_implementation: Any = None,
    adapter: str | Path | None = None,
    quantization: Any = None,
    trust_source_code: bool = False,
) -> Loaded:
    """Load a checkpoint with the classes of this repository.

    Args:
        source: folder, or Hub id ("OpenGVLab/InternVL2_5-8B"); None for the demo of this
            repository. A folder of an InternViT gives the vision encoder alone.
        subfolder: folder within the source.
        revision: branch, tag or commit of a Hub repository.
        dtype: torch dtype or its name; "auto" takes the one of the config.
        device_map: as in transformers; None for the CPU.
        attn_implementation: as in transformers; None for sdpa.
        adapter: folder or Hub id of a PEFT adapter to put on the model.
        quantization: name of a recipe of `internvl.quantization` ("bnb-nf4"), or a quantisation
            config of transformers; vision encoder, projector and output layer stay as they are.
        trust_source_code: run the modeling, tokenizer and processor code that the source carries,
            in place of ours.

    Returns:
        Model, processor and tokenizer.

    Raises:
        FileNotFoundError: a folder that does not exist.
        ValueError: files that are missing, damaged or pickled; weights that do not fit the config;
            a template or a tokenizer that does not fit the model. What, and who can correct it, is
            in the message.
        ImportError: an optional package is needed; the message names the extra that brings it.
    """
    patterns = CODE if trust_source_code else DATA
    folder = resolve(DEMO if source is None else source, subfolder, revision, patterns)
    fields = read_json(folder / "config.json")
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} is a PEFT adapter; pass it as `adapter`, and its base model as `source`."
        )
    check_weights(folder)
    options = {
        "dtype": _dtype(dtype),
        "device_map": device_map,
        "attn_implementation": attn_implementation,
    }
    options = {key: value for key, value in options.items() if value is not None}
    model_type = fields.get("model_type")
    if model_type not in (CHAT_TYPE, VISION_TYPE):
        raise ValueError(_unknown_type(folder, model_type))
    if quantization is not None:
        options["quantization_config"] = _quantization(folder, fields, quantization, device_map)
    config = build_config(fields)
    code = _Code(folder, subfolder) if trust_source_code else None
    tokenizer = None
    if model_type == VISION_TYPE:
        processor = _image_processor(folder, vision=config)
    else:  # before minutes of loading
        tokenizer = _tokenizer(folder, config, code)
        _check_tokenizer(folder, tokenizer, config)
        processor = _processor(folder, config, tokenizer, code)
    if code is not None:
        logger.warning("running the code that %s carries", code.root)
        model = code.load("AutoModel", use_safetensors=True, **options)
    else:
        model = _model(folder, config, options)
    if tokenizer is not None:
        model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    if adapter is not None:
        model = _with_adapter(model, resolve(adapter))
    return Loaded(model.eval(), processor, tokenizer)


# ---------------------------------------------------------------------- models
def _unknown_type(folder: Path, model_type: Any) -> str:
    if model_type in ("internvl", "internvl_vision"):
        return (
            f"{folder} is in the layout of transformers' own InternVL (model_type {model_type!r}); "
            "load it with transformers, or convert it: `internvl convert --to official`."
        )
    return (
        f"{folder} has model_type {model_type!r} in config.json, expected {CHAT_TYPE!r} or "
        f"{VISION_TYPE!r}; it is not an InternVL checkpoint of this family."
    )


def _dtype(dtype: Any) -> Any:
    """Turn the name of a dtype into the dtype; "auto" and None stay."""
    import torch

    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f'dtype is {dtype!r}, expected "auto" or the name of a torch dtype such as "bfloat16".'
        )
    return found


def _quantization(folder: Path, fields: dict[str, Any], quantization: Any, device_map: Any) -> Any:
    """The quantisation config to load with.

    Raises:
        ValueError: no such recipe, a vision encoder, weights that are quantised already, or a
            device without kernels.
        ImportError: a package is missing.
    """
    if fields["model_type"] == VISION_TYPE:
        raise ValueError(
            f"{folder} is a vision encoder, which is not quantised; leave `quantization` out."
        )
    if stored := fields.get("quantization_config"):
        raise ValueError(
            f"{folder} is quantised already ({stored.get('quant_method')}); leave `quantization` "
            "out, or load the weights it was made of."
        )
    from internvl.quantization import checked

    return checked(quantization, device_map)


def build_config(fields: dict[str, Any]) -> Any:
    """Build `InternVLChatConfig` or `InternVisionConfig` from the content of a config.json."""
    if fields["model_type"] == VISION_TYPE:
        return ring0("configuration_intern_vit").InternVisionConfig.from_dict(fields)
    return ring0("configuration_internvl_chat").InternVLChatConfig.from_dict(fields)


def _model(folder: Path, config: Any, options: dict[str, Any]) -> Any:
    """Load weights, and refuse to go on with a model that did not get all of its own and only
    those.

    Raises:
        ValueError: names of weights that are missing, unexpected or of another shape.
    """
    if config.model_type == VISION_TYPE:
        model_class = ring0("modeling_intern_vit").InternVisionModel
    else:
        model_class = ring0("modeling_internvl_chat").InternVLChatModel
    model, report = model_class.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # so that all of them are named below, and not only the first
        output_loading_info=True,
        **options,
    )
    faults = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        names = sorted(_mismatch(key) for key in report.get(kind) or ())
        if names:
            faults.append(f"{kind.replace('_', ' ')}: {some(names)}")
    if faults:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json ({'; '.join(faults)}); the two "
            "belong to different models, or the checkpoint is incomplete."
        )
    return model


def _mismatch(key: Any) -> str:
    """A key, or for (key, shape found, shape expected) all three."""
    if isinstance(key, str):
        return key
    name, found, expected = key
    return f"{name} has {tuple(found)}, expected {tuple(expected)}"


class _Code:
    """A source whose own code is to run: its root has the code, its subfolder the checkpoint."""

    def __init__(self, folder: Path, subfolder: str | None) -> None:
        depth = len(Path(subfolder or "").parts)
        self.root = folder.parents[depth - 1] if depth else folder
        self.where = {"subfolder": subfolder} if depth else {}

    def load(self, auto_class: str, **options: Any) -> Any:
        """Load with one of transformers' Auto classes."""
        import transformers

        auto = getattr(transformers, auto_class)
        return auto.from_pretrained(self.root, trust_remote_code=True, **self.where, **options)


def _with_adapter(model: Any, folder: Path) -> Any:
    """Put a PEFT adapter on a model.

    Raises:
        ImportError: peft is not installed.
        ValueError: not an adapter, a pickled one, or one for another model.
    """
    fields = optional_json(folder / "adapter_config.json")
    if not fields:
        raise ValueError(
            f"{folder} has no adapter_config.json, so it is not a PEFT adapter; check `adapter`."
        )
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ValueError(
            f"{folder} has no adapter_model.safetensors; pickled adapters are refused, save it "
            "anew."
        )
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise ImportError("adapters need peft: pip install 'internvl[train]'") from error
    from safetensors import safe_open

    try:
        adapted = PeftModel.from_pretrained(model, folder, use_safetensors=True)
    except (IndexError, RuntimeError, ValueError) as error:  # rows, shapes, or no such layers
        raise ValueError(f"the adapter in {folder} does not fit the model: {error}") from error
    with safe_open(weights, framework="pt") as file:
        stored = set(file.keys())
    expected = set(get_peft_model_state_dict(adapted))
    if stored != expected:
        raise ValueError(
            f"the adapter in {folder} does not fit the model (missing: "
            f"{some(sorted(expected - stored)) or 'none'}; unexpected: "
            f"{some(sorted(stored - expected)) or 'none'}); use the base model it was trained on, "
            f"{fields.get('base_model_name_or_path')!r}."
        )
    return adapted


# ---------------------------------------------------------------------- tokenizer
def _tokenizer(folder: Path, config: Any, code: _Code | None = None) -> Any:
    """A tokenizer of transformers' own, or our InternLM2 one.

    Raises:
        ValueError: the folder has none, or only one that is code.
    """
    from transformers import AutoTokenizer

    fields = optional_json(folder / "tokenizer_config.json")
    if not fields and not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} has no tokenizer_config.json and no tokenizer.json; add the checkpoint's "
            "tokenizer."
        )
    if code is not None:
        return code.load("AutoTokenizer")
    if str(fields.get("tokenizer_class", "")).startswith("InternLM2Tokenizer"):
        try:
            module = ring0("tokenization_internlm2")
        except ImportError as error:
            raise ImportError(
                f"the tokenizer in {folder} needs sentencepiece: pip install 'internvl[internlm]'"
            ) from error
        return module.InternLM2Tokenizer.from_pretrained(folder)
    own_code = (fields.get("auto_map") or {}).get("AutoTokenizer")
    if own_code:
        raise ValueError(
            f"the tokenizer in {folder} is code of the checkpoint ({own_code}), which "
            "is not run; if you have read it, pass trust_source_code=True."
        )
    try:
        # With the config at hand nobody goes looking for the code of one; and with the whole one,
        # not that of the language model, transformers 5 takes the class that tokenizer_config.json
        # names.
        return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except (OSError, TypeError) as error:
        raise ValueError(f"the tokenizer in {folder} could not be loaded: {error}") from error


def _conversation(config: Any) -> Any:
    """The prompt template of a config, with the system message that the config sets.

    Raises:
        ValueError: no template, or one that nobody knows.
    """
    conversation = ring0("conversation")
    if not config.template:
        raise ValueError(
            "config.json has no `template`, so nobody knows the prompt format of this checkpoint; "
            f"set it to one of {sorted(conversation.TEMPLATES)}."
        )
    template = conversation.get_conv_template(config.template)
    if config.system_message is not None:
        template.system_message = config.system_message
    return template


def _check_tokenizer(folder: Path, tokenizer: Any, config: Any) -> None:
    """Check that a tokenizer, a template and a model belong together.

    Raises:
        ValueError: control tokens that the tokenizer lacks, or ids beyond the embedding.
    """
    conversation = ring0("conversation")
    vocabulary = tokenizer.get_vocab()
    needed = (*conversation.IMAGE_TOKENS, *_conversation(config).control)
    missing = [token for token in needed if token not in vocabulary]
    if missing:
        raise ValueError(
            f"the tokenizer in {folder} has no {', '.join(missing)}, which images and the template "
            f"{config.template!r} need; use the tokenizer of the chat checkpoint, not that of its "
            "language model."
        )
    rows, last = config.llm_config.vocab_size, max(vocabulary.values())
    if last >= rows:
        raise ValueError(
            f"the tokenizer in {folder} has ids up to {last}, but the embedding has {rows} rows "
            "(llm_config.vocab_size); tokenizer and weights belong to different checkpoints."
        )


# ---------------------------------------------------------------------- processor
@dataclass(frozen=True)
class Prepared:
    """A checkpoint without its weights: all that is needed to see what the model would be given.

    Attributes:
        config: `InternVLChatConfig`.
        processor: `InternVLChatProcessor`.
        tokenizer: the tokenizer.
        generation: content of generation_config.json.
    """

    config: Any
    processor: Any
    tokenizer: Any
    generation: dict[str, Any]


def prepare(
    source: str | Path | None = None, *, subfolder: str | None = None, revision: str | None = None
) -> Prepared:
    """Load the config, processor and tokenizer of a chat checkpoint, and none of its weights.

    Args:
        source: as in `load`.
        subfolder: as in `load`.
        revision: as in `load`.

    Raises:
        FileNotFoundError: as in `load`.
        ValueError: as in `load`, and for a vision encoder, which has no prompt.
    """
    folder = resolve(DEMO if source is None else source, subfolder, revision, SETTINGS)
    fields = read_json(folder / "config.json")
    if fields.get("model_type") != CHAT_TYPE:
        raise ValueError(_unknown_type(folder, fields.get("model_type")))
    config = build_config(fields)
    tokenizer = _tokenizer(folder, config)
    _check_tokenizer(folder, tokenizer, config)
    processor = _processor(folder, config, tokenizer)
    return Prepared(config, processor, tokenizer, optional_json(folder / "generation_config.json"))


def _image_processor(folder: Path, *, chat: Any = None, vision: Any = None) -> Any:
    """Our image processor: from the folder's file when it is one of ours, else from the config.

    What published checkpoints carry is a CLIP processor that the official code does not look at.
    """
    image_processor = ring0(
        "preprocessor.image_processing_internvl_chat"
    ).InternVLChatImageProcessor
    fields = optional_json(folder / "preprocessor_config.json")
    if fields.get("image_processor_type") == image_processor.__name__:
        return image_processor(**fields)
    if chat is None:  # an encoder alone sees whole images
        return image_processor(size=vision.image_size, max_tiles=1, use_thumbnail=False)
    tiled = chat.dynamic_image_size
    return image_processor(
        size=chat.tile_size,
        min_tiles=chat.min_dynamic_patch if tiled else 1,
        max_tiles=chat.max_dynamic_patch if tiled else 1,
        use_thumbnail=chat.use_thumbnail,
        pad2square=chat.pad2square,
    )


def _processor(folder: Path, config: Any, tokenizer: Any, code: _Code | None = None) -> Any:
    """Our processor: with the folder's settings when they are of our kind, else with the config's.

    Raises:
        ValueError: settings that contradict the config.
    """
    fields = optional_json(folder / "processor_config.json")
    if code is not None and "auto_map" in fields:
        return code.load("AutoProcessor")
    module = ring0("preprocessor.processing_internvl_chat")
    own = fields.get("processor_class") == module.InternVLChatProcessor.__name__
    settings = {key: fields[key] for key in _PROCESSOR_FIELDS if own and key in fields}
    settings = {
        "image_seq_length": config.num_image_token,
        "template": config.template,
        **settings,
    }
    images = _image_processor(folder, chat=config)
    facts = {
        "side of a tile in preprocessor_config.json": (images.tile_size, config.tile_size),
        "image_seq_length in processor_config.json": (
            settings["image_seq_length"],
            config.num_image_token,
        ),
        "template in processor_config.json": (settings["template"], config.template),
        # The model normalises tiles that come as bytes.
        "image_mean in preprocessor_config.json": (images.image_mean, config.image_mean),
        "image_std in preprocessor_config.json": (images.image_std, config.image_std),
    }
    for name, (found, expected) in facts.items():
        if found != expected:
            raise ValueError(
                f"{folder}: {name} is {found!r}, but config.json says {expected!r}; correct one."
            )
    jinja = folder / "chat_template.jinja"
    if own and jinja.is_file():
        template = jinja.read_text(encoding="utf-8")
    else:  # published ones carry the system message of another model, and know no images
        template = ring0("conversation").chat_template(_conversation(config))
    tokenizer.chat_template = template
    processor = module.InternVLChatProcessor(images, tokenizer, chat_template=template, **settings)
    video = optional_json(folder / "video_preprocessor_config.json")
    if video.get("video_processor_type") == type(processor.video_processor).__name__:
        processor.video_processor = type(processor.video_processor)(**video)
    return processor
