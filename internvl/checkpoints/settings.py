"""What a self-contained folder holds beside its weights: settings files, tokenizer, this code.

    config.json of any age -> upgraded -> processor files, chat template, generation config
    source's tokenizer files -> the same, without code and templates of their own

`adopt`, `export` and `convert` end here, so that their folders are alike. The folder it writes into
is checked by loading its tokenizer and processor with `internvl.hub.prepare`.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.checkpoints.tensors import write_text
from internvl.source_files import optional_json, read_json

_CONFIG = "configuration_internvl_chat.InternVLChatConfig"
_MODEL = "modeling_internvl_chat.InternVLChatModel"
AUTO_MAP = {
    "AutoConfig": _CONFIG,
    "AutoModel": _MODEL,
    "AutoModelForCausalLM": _MODEL,
    "AutoModelForImageTextToText": _MODEL,
    "AutoModelForMultimodalLM": _MODEL,
}
VISION_AUTO_MAP = {
    "AutoConfig": "configuration_intern_vit.InternVisionConfig",
    "AutoModel": "modeling_intern_vit.InternVisionModel",
}
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
# In the config of a processor file: the class that says the file is one of ours.
_OWN_CLASS = {
    "preprocessor_config.json": ("image_processor_type", "InternVLChatImageProcessor"),
    "processor_config.json": ("processor_class", "InternVLChatProcessor"),
    "video_preprocessor_config.json": ("video_processor_type", "InternVLChatVideoProcessor"),
}
# What transformers 4 wrote into every config: settings of generation, which live in
# generation_config.json, and of classifiers, which no InternVL is. Version 5 refuses some of them.
_LEGACY_NAMES = """
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens output_hidden_states
    output_attentions return_dict torchscript use_bfloat16 tf_legacy_loss pruned_heads
    cross_attention_hidden_size add_cross_attention is_encoder_decoder is_decoder
    tie_encoder_decoder chunk_size_feed_forward id2label label2id problem_type finetuning_task
    task_specific_params tokenizer_class prefix sep_token_id decoder_start_token_id
"""
_LEGACY = frozenset(_LEGACY_NAMES.split())
# Bookkeeping of whoever wrote the file, and attention settings of the official code.
_BOOKKEEPING_NAMES = """
    auto_map _name_or_path _commit_hash transformers_version attn_implementation
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal dtype
    custom_pipelines
"""
_BOOKKEEPING = frozenset(_BOOKKEEPING_NAMES.split())
# Without it 4.57 warns of a wrong pattern in any large tokenizer, and advises to break it.
TRANSFORMERS = "5.23.0"


def dump(content: Mapping[str, Any]) -> str:
    """Serialise a settings file."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------------- config.json
def upgrade_config(
    fields: Mapping[str, Any], *, template: str | None = None, dtype: str | None = None
) -> dict[str, Any]:
    """Bring a config.json of any age into the form that every supported loader reads.

    What the file says is kept, whether this code knows the field or not. Written out are the fields
    that it leaves to a class default, because other loaders have other defaults; removed are
    settings of generation and the bookkeeping of old transformers; LoRA ranks become 0, since the
    weights beside it are merged.

    Args:
        fields: content of the file.
        template: name of the prompt template, for a file that names none.
        dtype: torch name of the dtype of the weights; None keeps the file's.

    Raises:
        ValueError: a model of another family, or a field that cannot be.
    """
    model_type = fields.get("model_type")
    if model_type == hub.VISION_TYPE:
        return _vision_fields(fields, dtype) | {
            "auto_map": VISION_AUTO_MAP,
            "transformers_version": TRANSFORMERS,
        }
    if model_type != hub.CHAT_TYPE:
        raise ValueError(
            f"config.json has model_type {model_type!r}, expected {hub.CHAT_TYPE!r} or "
            f"{hub.VISION_TYPE!r}; it is not an InternVL checkpoint of this family."
        )
    if "quantization_config" in fields:
        raise ValueError(
            "config.json says that the weights are quantised; take the weights they were made of."
        )
    config = hub.ring0("configuration_internvl_chat").InternVLChatConfig.from_dict(dict(fields))
    own = {
        name: getattr(config, name)
        for name in _parameters(type(config))
        if name not in ("vision_config", "llm_config")
    }
    dtype = dtype or _dtype(fields) or _dtype(fields.get("llm_config") or {})
    upgraded = {
        **{name: value for name, value in fields.items() if name not in _LEGACY | _BOOKKEEPING},
        **own,
        "architectures": ["InternVLChatModel"],
        "auto_map": AUTO_MAP,
        "hidden_size": config.llm_config.hidden_size,
        "llm_config": _llm_fields(fields, config.llm_config, dtype),
        "template": config.template or template,
        "tie_word_embeddings": config.tie_word_embeddings,
        "transformers_version": TRANSFORMERS,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "vision_config": _vision_fields(fields.get("vision_config") or {}, dtype),
    }
    upgraded.pop("text_config", None)  # another name of llm_config
    if dtype:
        upgraded["torch_dtype"] = dtype
    return upgraded


def _parameters(config_class: type) -> list[str]:
    names = inspect.signature(config_class).parameters
    return [name for name in names if name != "kwargs"]


def _dtype(fields: Mapping[str, Any]) -> str | None:
    value = fields.get("torch_dtype") or fields.get("dtype")
    return None if value is None else str(value).removeprefix("torch.")


def _vision_fields(fields: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    config_class = hub.ring0("configuration_intern_vit").InternVisionConfig
    kept = {name: value for name, value in fields.items() if name not in _LEGACY | _BOOKKEEPING}
    config = config_class(**{name: value for name, value in kept.items() if name != "model_type"})
    dtype = dtype or _dtype(fields)
    return {
        **kept,
        **{name: getattr(config, name) for name in _parameters(config_class)},
        "architectures": ["InternVisionModel"],
        "model_type": hub.VISION_TYPE,
        **({"torch_dtype": dtype} if dtype else {}),
    }


def _llm_fields(fields: Mapping[str, Any], config: Any, dtype: str | None) -> dict[str, Any]:
    source = fields.get("llm_config") or fields.get("text_config") or {}
    kept = {name: value for name, value in source.items() if name not in _LEGACY | _BOOKKEEPING}
    # vLLM and SGLang choose the language model by its architecture.
    types = hub.ring0("configuration_internvl_chat").LLM_TYPES
    architecture = {kind: name for name, kind in types.items()}.get(config.model_type)
    return {
        **kept,
        "architectures": source.get("architectures") or [architecture],
        "model_type": config.model_type,
        # A leftover of training would turn the cache off in generate().
        "use_cache": True,
        **({"torch_dtype": dtype} if dtype else {}),
    }


# ---------------------------------------------------------------------- processors
def processor_fields(
    config: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]] | None = None,
    repository: Path = hub.REPOSITORY,
) -> dict[str, dict[str, Any]]:
    """Content of the processor files that fit an upgraded config.

    Args:
        config: content of config.json, with every field written out.
        own: settings of processor files of ours to keep; others are built anew.
        repository: where the processor files stand from which they start.

    Raises:
        ValueError: the repository lacks a processor file.
    """
    root = {name: read_json(repository / name) for name in PROCESSOR_FILES}
    kept = {
        name: dict((own or {}).get(name) or {})
        for name, (key, ours) in _OWN_CLASS.items()
        if ((own or {}).get(name) or {}).get(key) == ours
    }
    if config["model_type"] == hub.VISION_TYPE:  # it sees whole images
        changes = {
            "preprocessor_config.json": {
                **_square(config["image_size"]),
                "max_tiles": 1,
                "min_tiles": 1,
                "use_thumbnail": False,
            }
        }
    else:
        changes = _chat_changes(config)
    auto_maps = {name: {"auto_map": root[name]["auto_map"]} for name in changes}
    return {
        name: {**root[name], **changes[name], **kept.get(name, {}), **auto_maps[name]}
        for name in changes
    }


def _square(side: int) -> dict[str, Any]:
    tile = {"height": side, "width": side}
    return {"crop_size": tile, "size": tile}


def _chat_changes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    side = config["force_image_size"] or config["vision_config"]["image_size"]
    patches = side // config["vision_config"]["patch_size"]
    tiled = config["dynamic_image_size"]
    normalisation = {
        name: config[name] for name in ("image_mean", "image_std") if config.get(name) is not None
    }
    return {
        "preprocessor_config.json": {
            **_square(side),
            **normalisation,
            "max_tiles": config["max_dynamic_patch"] if tiled else 1,
            "min_tiles": config["min_dynamic_patch"] if tiled else 1,
            "pad2square": config["pad2square"],
            "use_thumbnail": config["use_thumbnail"],
        },
        "processor_config.json": {
            "image_seq_length": int(patches**2 * config["downsample_ratio"] ** 2),
            "template": config["template"],
        },
        "video_preprocessor_config.json": {**_square(side), **normalisation},
    }


# ---------------------------------------------------------------------- the folder
def write_settings(
    folder: Path,
    config: Mapping[str, Any],
    *,
    tokenizer: Path | None = None,
    generation: Mapping[str, Any] | None = None,
    processors: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write config, processor files, chat template, tokenizer and generation config.

    Args:
        folder: exists; what it holds under these names is replaced.
        config: from `upgrade_config`; `img_context_token_id` is taken from the tokenizer.
        tokenizer: folder of the tokenizer files; None for those in `folder`.
        generation: content of the source's generation_config.json.
        processors: processor files of the source, by name, see `processor_fields`.

    Raises:
        ValueError: a tokenizer or a template that do not fit the config.
        ImportError: the tokenizer needs sentencepiece.
    """
    config = dict(config)
    write_text(folder / "config.json", dump(config))
    for name, fields in processor_fields(config, processors).items():
        write_text(folder / name, dump(fields))
    if config["model_type"] == hub.VISION_TYPE:
        return
    if tokenizer is not None:
        copy_tokenizer(tokenizer, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    prepared = hub.prepare(folder)  # tokenizer, template and config fit each other
    write_text(folder / "chat_template.jinja", prepared.processor.chat_template)
    config["img_context_token_id"] = prepared.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    write_text(folder / "config.json", dump(config))
    settings = generation_fields(prepared, generation or {})
    write_text(folder / "generation_config.json", dump(settings))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy tokenizer files, leaving out what would run code or render another template.

    Raises:
        ValueError: a tokenizer that only code of the source can build.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    path = folder / "tokenizer_config.json"
    fields = optional_json(path)
    # Published ones render the prompt of the language model alone ("You are Qwen"); the template of
    # the checkpoint is in chat_template.jinja.
    fields.pop("chat_template", None)
    fields.pop("processor_class", None)  # processor_config.json says it
    if str(fields.get("tokenizer_class", "")).startswith("InternLM2Tokenizer"):
        fields["tokenizer_class"] = "InternLM2Tokenizer"
        fields["auto_map"] = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    else:
        code = (fields.pop("auto_map", None) or {}).get("AutoTokenizer")
        if code:
            raise ValueError(
                f"the tokenizer in {source} is code of the checkpoint ({code}), which is not run "
                "and not copied; save it as one of transformers' own classes."
            )
    if fields:
        write_text(path, dump(fields))
    hub.ring0("preprocessor.tokenizer_files").make_portable(folder)


def generation_fields(prepared: hub.Prepared, source: Mapping[str, Any]) -> dict[str, Any]:
    """Content of generation_config.json: the source's, with the ids that end an answer."""
    conversation = hub.ring0("conversation").get_conv_template(prepared.config.template)
    llm = prepared.config.llm_config
    stop = prepared.tokenizer.convert_tokens_to_ids(conversation.end_of_turn)
    ends = [*_ids(source.get("eos_token_id", llm.eos_token_id)), stop]
    padding = next(iter(_ids(llm.pad_token_id) or _ids(prepared.tokenizer.pad_token_id)), None)
    kept = {key: value for key, value in source.items() if not key.startswith("_")}
    kept.pop("transformers_version", None)
    return {
        "bos_token_id": llm.bos_token_id,
        "pad_token_id": padding,
        **kept,
        "eos_token_id": list(dict.fromkeys(ends)),
        "use_cache": True,
    }


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) else [value]


# ---------------------------------------------------------------------- code
def code_files() -> dict[str, Path]:
    """The remote code: path in a self-contained folder -> file of this repository."""
    files = [*hub.REPOSITORY.glob("*.py"), *(hub.REPOSITORY / "preprocessor").glob("*.py")]
    return {path.relative_to(hub.REPOSITORY).as_posix(): path for path in sorted(files)}


def write_code(folder: Path) -> None:
    """Copy the remote code, and its licence, into a folder."""
    for name, path in {**code_files(), "LICENSE-CODE": hub.REPOSITORY / "LICENSE"}.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
