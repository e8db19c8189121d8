"""`internvl train assemble`: a new checkpoint from a vision encoder and a language model.

    ViT (InternViT folder, or a chat checkpoint)  -> last layers dropped -> vision_model.*
    seed                                          -> new projector       -> mlp1.*
    LLM (Qwen2, Llama, InternLM2, Phi-3 folder)   -> rows for new tokens -> language_model.*
    tokenizer of the LLM                          -> + the nine tokens of InternVL

It is what stage 1 of a new model starts from (report 2.1, Table 2). Nothing is trained here: until
stage 1 the projector makes noise of images. Nothing of either source is executed or unpickled, and
one shard is in memory at a time.
"""

from __future__ import annotations

import logging
import math
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from internvl import hub
from internvl.checkpoints import settings
from internvl.checkpoints.card import source_card, write_card
from internvl.checkpoints.staging import refuse_existing, staging
from internvl.checkpoints.tensors import Layout, Weights, common_dtype, layout, write_weights
from internvl.source_files import optional_json, some
from internvl.training.progressive import (
    LANGUAGE,
    PROJECTOR,
    VISION,
    Checkpoint,
    check_written,
    file_states,
    files_of,
    fresh_projector,
    open_checkpoint,
)
from internvl.training.vocabulary import (
    NEW_TOKENS,
    LanguageModel,
    Tokens,
    extend_tokenizer,
    open_language_model,
    resize_rows,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

NewRows = Literal["mean", "official"]
_POSITIONS = VISION + "embeddings.position_embedding"
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Options:
    """How the parts are joined.

    Attributes:
        vit_depth: layers of the encoder to keep; None for all. The report keeps 45 of the 48 of
            InternViT-6B, because the last three "were more tuned to the CLIP loss objective".
        tile_size: side of a tile in pixels; None for that of the encoder. Another one resizes the
            position embedding, bicubic, as the official code does.
        template: name of the prompt template.
        max_dynamic_patch: most tiles of an image.
        new_rows: how rows of new tokens begin. "mean": as the mean of those of the tokens that
            there were, in the embedding and in the output layer. "official": so in the output layer
            only; in the embedding they are drawn from N(0, initializer_range), or are spare rows of
            the language model where it has some.
        add_template_tokens: also add control tokens of the template that the tokenizer lacks.
        untie: give the output layer a tensor of its own where the language model ties it to the
            embedding. The published 1B and 4B are such.
        dtype: torch name of the dtype to write; "auto" for that of the language model.
        seed: of the projector, and of "official" rows.
        max_shard_size: most bytes of a weight file.

    Raises:
        ValueError: a choice that there is not.
    """

    vit_depth: int | None = None
    tile_size: int | None = None
    template: str = "internvl2_5"
    max_dynamic_patch: int = 12
    new_rows: NewRows = "mean"
    add_template_tokens: bool = False
    untie: bool = False
    dtype: str = "auto"
    seed: int = 42
    max_shard_size: int | str = "5GB"

    def __post_init__(self) -> None:
        if self.new_rows not in ("mean", "official"):
            raise ValueError(f'new_rows is {self.new_rows!r}, expected "mean" or "official".')
        if self.dtype not in ("auto", *_BYTES):
            raise ValueError(f"dtype is {self.dtype!r}, expected auto or one of {sorted(_BYTES)}.")
        if self.max_dynamic_patch < 1:
            raise ValueError(f"max_dynamic_patch is {self.max_dynamic_patch}, expected at least 1.")
        hub.ring0("conversation").get_conv_template(self.template)  # raises on an unknown one


@dataclass(frozen=True)
class Assembly:
    """What was put together.

    Attributes:
        vit: the encoder, as given.
        llm: the language model, as given.
        out: the folder.
        layers: of the encoder, there and kept.
        rows: of the embedding, before and now.
        new_tokens: the tokens that the tokenizer did not have.
        tied: whether embedding and output layer are one tensor.
        template: name of the prompt template.
        parameters: elements of all tensors.
        bytes: size of the weights.
        files: names in the folder.
        notes: what was done to the parts, in sentences.
    """

    vit: str
    llm: str
    out: Path
    layers: tuple[int, int]
    rows: tuple[int, int]
    new_tokens: tuple[str, ...]
    tied: bool
    template: str
    parameters: int
    bytes: int
    files: tuple[str, ...]
    notes: tuple[str, ...]


def assemble(
    vit: str | Path,
    llm: str | Path,
    out: str | Path,
    options: Options | None = None,
    **changes: Any,
) -> Assembly:
    """Write a checkpoint whose projector is new.

    A run that was stopped leaves OUT.partial, and the next one goes on from there.

    Args:
        vit: folder or Hub id of an InternViT, or of a chat checkpoint, whose encoder is taken.
        llm: folder or Hub id of a Qwen2, Llama, InternLM2 or Phi-3, with its tokenizer.
        out: the folder to make; must not exist, or be empty.
        options: how; None for the defaults.
        **changes: fields of `Options`, by name.

    Raises:
        FileNotFoundError: no such encoder or language model.
        FileExistsError: `out` holds something.
        ValueError: a language model of another family; weights that do not fit their config; a
            tokenizer that does not fit the weights or the template; a depth that there is not.
        ImportError: the tokenizer needs sentencepiece.
    """
    options = replace(options or Options(), **changes)
    out = Path(out).expanduser().absolute()
    refuse_existing(out)
    with ExitStack() as stack:
        encoder = open_checkpoint(vit, stack, chat=False)
        language = open_language_model(llm, stack)
        vocabulary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tokens = extend_tokenizer(
            language,
            vocabulary,
            options.template,
            add_template_tokens=options.add_template_tokens,
        )
        plan = _Plan(encoder, language, tokens, options)
        journal = {
            "vit": encoder.state(),
            "llm": [str(language.folder.resolve()), file_states(language.folder)],
            "options": asdict(options),
        }
        with staging(out, journal) as staged:
            write_weights(staged, plan.sizes, plan.read, options.max_shard_size, resume=True)
            _write_around(staged, plan, vocabulary, out.name)
            with Weights(staged) as written:
                check_written(written, staged)
        return Assembly(
            vit=str(vit),
            llm=str(llm),
            out=out,
            layers=plan.layers,
            rows=(tokens.rows_before, tokens.rows),
            new_tokens=tuple(tokens.added),
            tied=plan.tied,
            template=options.template,
            parameters=sum(math.prod(shape) for shape in plan.shapes.values()),
            bytes=sum(plan.sizes.values()),
            files=files_of(out),
            notes=tuple(plan.notes()),
        )


def describe(assembly: Assembly) -> str:
    """Say in a few lines what was put together."""
    there, kept = assembly.layers
    dropped = f", the last {there - kept} of {there} dropped" if kept < there else ""
    before, now = assembly.rows
    layers = "one tensor" if assembly.tied else "two tensors"
    return "\n".join(
        [
            f"encoder    {assembly.vit}: {kept} layers{dropped}",
            f"language   {assembly.llm}",
            f"tokens     {len(assembly.new_tokens)} new; {now} rows, {before} before; embedding "
            f"and output layer are {layers}",
            f"template   {assembly.template}",
            *(f"note       {note}" for note in assembly.notes),
            f"written    {assembly.out} ({assembly.parameters:,} parameters, "
            f"{assembly.bytes / 2**30:.2f} GiB, {len(assembly.files)} files)",
            "next       stage 1: the projector is random",
        ]
    )


# ---------------------------------------------------------------------- the whole
class _Plan:
    """Every tensor of the new checkpoint, and how it is read.

    Attributes:
        fields: content of config.json.
        shapes: name -> shape of what is stored.
        sizes: name -> bytes.
        tied: whether embedding and output layer are one tensor.
        layers: of the encoder, there and kept.

    Raises:
        ValueError: parts that do not fit together.
    """

    def __init__(
        self, encoder: Checkpoint, language: LanguageModel, tokens: Tokens, options: Options
    ) -> None:
        self.encoder, self.language, self.tokens, self.options = encoder, language, tokens, options
        self.chat = encoder.fields["model_type"] == hub.CHAT_TYPE
        self.vision = encoder.config.vision_config if self.chat else encoder.config
        depth = self.vision.num_hidden_layers
        kept = depth if options.vit_depth is None else options.vit_depth
        if not 1 <= kept <= depth:
            raise ValueError(
                f"vit_depth is {kept}, but {encoder.given} has {depth} layers; keep at least one, "
                "at most all."
            )
        self.layers = (depth, kept)
        patch, tile = self.vision.patch_size, options.tile_size
        if tile is not None and (tile < 1 or tile % (2 * patch)):
            raise ValueError(
                f"tile_size is {tile}, expected a multiple of {2 * patch}: a visual token is made "
                f"of 2 x 2 patches of {patch} px."
            )
        self.llm_dtype = common_dtype(language.parameters.values())
        self.dtype = self.llm_dtype if options.dtype == "auto" else options.dtype
        config = hub.build_config(self._config())
        self.fields = settings.upgrade_config(config.to_dict(), dtype=self.dtype)
        self.config = hub.build_config(self.fields)
        wanted = layout(self.config)
        self.shapes = wanted.shapes
        self.sizes = {n: math.prod(s) * _BYTES[self.dtype] for n, s in self.shapes.items()}
        self.tied = LANGUAGE + language.head not in self.shapes
        self._check_language(wanted)
        self._projector = fresh_projector(self.shapes, options.seed, self.dtype)

    def _config(self) -> dict[str, Any]:
        """The config.json: facts of the parts, and what all published 2.5 models share."""
        options, encoder = self.options, self.encoder.config
        tile = options.tile_size or (encoder.tile_size if self.chat else self.vision.image_size)
        llm = {**self.language.fields, "vocab_size": self.tokens.rows}
        if options.untie:
            llm["tie_word_embeddings"] = False
        taken: dict[str, Any] = {"select_layer": -1}
        if self.chat:
            taken |= {"image_mean": encoder.image_mean, "image_std": encoder.image_std}
            if options.vit_depth is None:
                taken["select_layer"] = encoder.select_layer
        return {
            "model_type": hub.CHAT_TYPE,
            "vision_config": {
                **self.vision.to_dict(),
                "num_hidden_layers": self.layers[1],
                "image_size": tile,
            },
            "llm_config": llm,
            "downsample_ratio": 0.5,
            "dynamic_image_size": True,
            "force_image_size": tile,
            "max_dynamic_patch": options.max_dynamic_patch,
            "min_dynamic_patch": 1,
            "pad2square": False,
            "ps_version": "v2",
            "template": options.template,
            "use_thumbnail": True,
            **taken,
        }

    def _check_language(self, wanted: Layout) -> None:
        """Check the tensors of the language model, which will have other rows, against its config.

        Raises:
            ValueError: what is missing, extra or of another shape.
        """
        language, rows = self.language, self.tokens.rows
        found = {LANGUAGE + name: t.shape for name, t in language.parameters.items()}
        for name in (LANGUAGE + language.embedding, LANGUAGE + language.head):
            if name in found:
                found[name] = (rows, *found[name][1:])
        if language.tied and not self.tied:  # a copy of the embedding
            found[LANGUAGE + language.head] = found[LANGUAGE + language.embedding]
        shapes = {n: shape for n, shape in wanted.shapes.items() if n.startswith(LANGUAGE)}
        faults = Layout(shapes, wanted.tied).misfits(found)
        if faults:
            raise ValueError(
                f"the weights of {language.given} do not fit its config.json "
                f"({'; '.join(faults)}); download it again."
            )

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` of the new checkpoint."""
        import torch

        if name.startswith(PROJECTOR):
            value = self._projector[name]
        elif name.startswith(VISION):
            value = self._vision(name)
        else:
            value = self._language(name.removeprefix(LANGUAGE))
        return value.to(getattr(torch, self.dtype))

    def _vision(self, name: str) -> torch.Tensor:
        value = self.encoder.weights.read(name if self.chat else name.removeprefix(VISION))
        if name == _POSITIONS and tuple(value.shape) != self.shapes[name]:
            return _resized_positions(value, self.shapes[name][1])
        return value

    def _language(self, name: str) -> torch.Tensor:
        language = self.language
        if name not in (language.embedding, language.head):
            return language.weights.read(name)
        # Where the source ties the two, what it may store of the output layer is not looked at.
        stored = language.embedding if language.tied else name
        drawn = self.options.new_rows == "official" and name == language.embedding and not self.tied
        std = self.config.llm_config.initializer_range if drawn else None
        weight = language.weights.read(stored)
        return resize_rows(weight, self.tokens, std=std, seed=self.options.seed)

    def notes(self) -> list[str]:
        """What was done to the parts."""
        notes = []
        vit = common_dtype(self.encoder.weights.stored.values())
        for part, dtype in (("encoder", vit), ("language model", self.llm_dtype)):
            if dtype != self.dtype:
                notes.append(f"the {part} was {dtype} and is {self.dtype} now")
        before = self.vision.image_size
        if self.config.tile_size != before:
            notes.append(f"positions resized from tiles of {before} to {self.config.tile_size} px")
        if self.config.select_layer != -1:
            notes.append(f"select_layer is {self.config.select_layer}, as in the chat checkpoint")
        others = [token for token in self.tokens.added if token not in NEW_TOKENS]
        if others:
            notes.append(f"the language model never saw {some(others)}: train their rows")
        return notes


def _resized_positions(positions: torch.Tensor, length: int) -> torch.Tensor:
    """Resize a position embedding (1, 1 + P, C) to (1, length, C), class token kept."""
    import torch

    side = math.isqrt(length - 1)
    resize = hub.ring0("modeling_intern_vit").resize_position_grid
    return torch.cat([positions[:, :1], resize(positions[:, 1:], side, side)], dim=1)


def _write_around(staged: Path, plan: _Plan, tokenizer: Path, name: str) -> None:
    """Write everything but the weights."""
    stated = optional_json(plan.language.folder / "generation_config.json")
    # Its ids only: published models answer greedily, instruct models sample.
    generation = {key: stated[key] for key in _SPECIAL_IDS if stated.get(key) is not None}
    settings.write_settings(staged, plan.fields, tokenizer=tokenizer, generation=generation)
    settings.write_code(staged)
    write_card(
        staged,
        plan.fields,
        name=name,
        origin=(
            f"The vision encoder of `{plan.encoder.shown}` and the language model "
            f"`{plan.language.shown}`, joined by a random projector: what training starts from, "
            "not yet a model that sees."
        ),
        base_model=plan.language.hub_id,
        source=source_card(plan.language.folder),
    )
