"""The language model of a chat checkpoint as a folder of its own, for engines that know only text.

    chat checkpoint -> config.json of the language model, its weights, tokenizer, chat template

plain `AutoModelForCausalLM`, `lm_eval --model hf --apply_chat_template` and OpenCompass'
`HuggingFacewithChatTemplate` load the folder. An InternLM2 needs its code, which is put beside the
weights (`trust_remote_code=True`); all others are classes of transformers.

Weights are copied shard by shard, so a 78B model needs no more memory than one shard.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.checkpoints import settings
from internvl.checkpoints.staging import staging
from internvl.checkpoints.tensors import Layout, Weights, layout, write_text, write_weights
from internvl.source_files import DATA, optional_json, read_json, resolve

PREFIX = "language_model."
_INTERNLM2 = {
    "AutoConfig": "configuration_internlm2.InternLM2Config",
    "AutoModel": "modeling_internlm2.InternLM2Model",
    "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
}
# What the classes above and the slow tokenizer import, all of it.
_INTERNLM2_FILES = (
    "configuration_intern_vit.py",
    "configuration_internlm2.py",
    "modeling_internlm2.py",
)
_TOKENIZER_FILE = "tokenization_internlm2.py"


@dataclass(frozen=True)
class LanguageExport:
    """What was written.

    Attributes:
        out: the folder.
        architecture: class of the language model.
        tensors: weights in it.
        bytes: their size.
        end_of_turn: the token that ends an answer.
        needs_code: whether it loads with `trust_remote_code=True` only.
    """

    out: Path
    architecture: str
    tensors: int
    bytes: int
    end_of_turn: str
    needs_code: bool


def export_language_model(
    source: str | Path | None,
    out: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    max_shard_size: int | str = "5GB",
) -> LanguageExport:
    """Write the language model of a chat checkpoint as a checkpoint of its own.

    Its tokenizer ends a text with the end-of-turn token of the template, so that an engine which
    stops at "the" end-of-sequence token stops where an answer ends (InternLM2's own is `</s>`). Its
    chat template is that of the chat checkpoint, system message included.

    Args:
        source: folder or Hub id of a chat checkpoint; None for the demo.
        out: the folder to make; must not exist, or be empty.
        subfolder: folder within the source.
        revision: branch, tag or commit of a Hub repository.
        max_shard_size: most bytes of a weight file.

    Returns:
        What was written.

    Raises:
        FileExistsError: `out` holds something.
        ValueError: as in `internvl.hub.load`, or weights that do not fit the config.
    """
    folder = resolve(hub.DEMO if source is None else source, subfolder, revision, DATA)
    prepared = hub.prepare(folder)
    out = Path(out).expanduser().absolute()
    with Weights(folder) as weights:
        sizes = _sizes(folder, weights, prepared.config)
        with staging(out) as target:
            write_weights(target, sizes, lambda name: weights.read(PREFIX + name), max_shard_size)
            fields = _config(read_json(folder / "config.json"), prepared)
            write_text(target / "config.json", settings.dump(fields))
            _write_tokenizer(folder, target, prepared)
            _write_code(target, fields)
            write_text(target / "README.md", _card(folder, source, fields))
    return LanguageExport(
        out,
        fields["architectures"][0],
        len(sizes),
        sum(sizes.values()),
        _end_of_turn(prepared),
        "auto_map" in fields,
    )


def describe(export: LanguageExport) -> str:
    """Say what was written, and how lm-eval reads it."""
    code = ",trust_remote_code=True" if export.needs_code else ""
    return (
        f"written  {export.out} ({export.architecture}, {export.tensors} tensors, "
        f"{export.bytes / 2**30:.2f} GiB, an answer ends with {export.end_of_turn})\n"
        f"run      lm_eval run --model hf --model_args pretrained={export.out}{code} "
        "--apply_chat_template --tasks ..."
    )


def _sizes(folder: Path, weights: Weights, config: Any) -> dict[str, int]:
    """Bytes of each weight of the language model, by its name without the prefix."""
    whole = layout(config)
    wanted = Layout(
        {name: shape for name, shape in whole.shapes.items() if name.startswith(PREFIX)},
        frozenset(name for name in whole.tied if name.startswith(PREFIX)),
    )
    stored = {name: each for name, each in weights.stored.items() if name.startswith(PREFIX)}
    faults = wanted.misfits({name: each.shape for name, each in stored.items()})
    if faults:
        raise ValueError(
            f"the language model in {folder} does not fit its config.json ({'; '.join(faults)}); "
            "the two belong to different models, or the checkpoint is incomplete."
        )
    return {name.removeprefix(PREFIX): stored[name].bytes for name in wanted.shapes}


def _config(fields: dict[str, Any], prepared: hub.Prepared) -> dict[str, Any]:
    """config.json of the language model: what the chat checkpoint says of it, and how it ends."""
    upgraded = settings.upgrade_config(fields)
    llm = dict(upgraded["llm_config"])
    llm["tie_word_embeddings"] = bool(prepared.config.llm_config.tie_word_embeddings)
    llm["eos_token_id"] = prepared.tokenizer.convert_tokens_to_ids(_end_of_turn(prepared))
    llm["transformers_version"] = settings.TRANSFORMERS
    if llm["model_type"] == "internlm2":
        llm["auto_map"] = _INTERNLM2
    return llm


def _end_of_turn(prepared: hub.Prepared) -> str:
    return hub.ring0("conversation").get_conv_template(prepared.config.template).end_of_turn


def _write_tokenizer(source: Path, target: Path, prepared: hub.Prepared) -> None:
    """Tokenizer, chat template and generation config, with one end of an answer in all of them."""
    settings.copy_tokenizer(source, target)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        fields = optional_json(target / name)
        if fields:
            fields["eos_token"] = _end_of_turn(prepared)
            write_text(target / name, settings.dump(fields))
    write_text(target / "chat_template.jinja", prepared.processor.chat_template)
    generation = settings.generation_fields(prepared, prepared.generation)
    write_text(target / "generation_config.json", settings.dump(generation))


def _write_code(target: Path, fields: dict[str, Any]) -> None:
    """The remote code that the folder needs, and its licence."""
    files = list(_INTERNLM2_FILES) if "auto_map" in fields else []
    if "auto_map" in optional_json(target / "tokenizer_config.json"):
        files.append(_TOKENIZER_FILE)
    for name in files:
        shutil.copyfile(hub.REPOSITORY / name, target / name)
    if files:
        shutil.copyfile(hub.REPOSITORY / "LICENSE", target / "LICENSE-CODE")


def _card(folder: Path, source: str | Path | None, fields: dict[str, Any]) -> str:
    shown = folder.resolve().name if source is None or Path(source).exists() else source
    return (
        f"# Language model of {shown}\n\n"
        f"The {fields['architectures'][0]} of the chat checkpoint, taken out by "
        "`internvl eval engine export-llm`, with its chat template. It has seen pictures in "
        "training and cannot see any here. Licence: that of the checkpoint it is a part of.\n"
    )
