"""The language model that a new checkpoint is assembled from, and its rows for InternVL's tokens.

    folder of a Qwen2, Llama, InternLM2 or Phi-3 -> config, tensors
    its tokenizer + the nine tokens -> ids; embedding and output layer (V, D) -> (V', D)

As in the official training code, V' is the number of tokens: spare rows of the language model go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl import hub
from internvl.checkpoints import settings
from internvl.checkpoints.build_tokenizer import INTERNVL_SPECIAL as NEW_TOKENS
from internvl.checkpoints.tensors import Weights
from internvl.source_files import DATA, optional_json, read_json, resolve

if TYPE_CHECKING:
    import torch

# Names in a language model: its embedding, and its output layer.
_ENDS = {
    "internlm2": ("model.tok_embeddings.weight", "output.weight"),
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "phi3": ("model.embed_tokens.weight", "lm_head.weight"),
    "qwen2": ("model.embed_tokens.weight", "lm_head.weight"),
}


@dataclass(frozen=True)
class LanguageModel:
    """A language model in a folder.

    Attributes:
        given: as the caller named it.
        folder: where its files are.
        fields: content of config.json.
        weights: its tensors.
    """

    given: str
    folder: Path
    fields: dict[str, Any]
    weights: Weights

    @property
    def hub_id(self) -> str | None:
        """The Hub id; None for a folder."""
        return None if Path(self.given).expanduser().is_dir() else self.given

    @property
    def shown(self) -> str:
        """A name for cards: the Hub id, or that of the folder."""
        return self.hub_id or self.folder.resolve().name

    @property
    def embedding(self) -> str:
        """Name of the token embedding."""
        return _ENDS[self.fields["model_type"]][0]

    @property
    def head(self) -> str:
        """Name of the output layer, which is not stored where it is tied to the embedding."""
        return _ENDS[self.fields["model_type"]][1]

    @property
    def tied(self) -> bool:
        """Whether the two are one tensor; all four families say no unless told."""
        return bool(self.fields.get("tie_word_embeddings", False))

    @property
    def parameters(self) -> dict[str, Any]:
        """Its stored tensors, without what old Llama checkpoints store but config.json implies."""
        stored = self.weights.stored
        return {n: t for n, t in stored.items() if not n.endswith("rotary_emb.inv_freq")}


def open_language_model(given: str | Path, stack: ExitStack) -> LanguageModel:
    """Open a language model.

    Args:
        given: folder or Hub id.
        stack: closes the files.

    Raises:
        FileNotFoundError: no such folder or repository.
        ValueError: of another family, quantised, or damaged.
    """
    folder = resolve(given, patterns=(*DATA, "README.md"))
    fields = read_json(folder / "config.json")
    family = fields.get("model_type")
    if family not in _ENDS:
        chat = family == hub.CHAT_TYPE
        hint = "; for that of a chat checkpoint there is `internvl train transfer-vit`"
        raise ValueError(
            f"{given} has model_type {family!r} in config.json, expected one of "
            f"{sorted(_ENDS)}{hint if chat else ''}."
        )
    if "quantization_config" in fields:
        raise ValueError(f"{given} is quantised; take the weights it was made of.")
    model = LanguageModel(str(given), folder, fields, stack.enter_context(Weights(folder)))
    if model.embedding not in model.weights.stored:
        raise ValueError(f"{given} holds no {model.embedding}; it is not a language model.")
    return model


# ---------------------------------------------------------------------- tokens
@dataclass(frozen=True)
class Tokens:
    """A vocabulary, before and after.

    Attributes:
        known: number of tokens that the tokenizer had.
        rows_before: rows that the embedding had; some models have spare ones.
        added: new tokens -> id.
        rows: rows that there will be.
    """

    known: int
    rows_before: int
    added: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0


def extend_tokenizer(
    model: LanguageModel, folder: Path, template: str, *, add_template_tokens: bool = False
) -> Tokens:
    """Write the tokenizer of a language model into a folder, with the new tokens.

    Args:
        model: the language model.
        folder: where to; exists.
        template: name of the prompt template.
        add_template_tokens: also add control tokens of the template that are not there.

    Raises:
        ValueError: a tokenizer that is code, ids beyond the embedding, or control tokens of the
            template that are not there.
        ImportError: the tokenizer needs sentencepiece.
    """
    tokenizer = _load_tokenizer(model, folder)
    vocabulary = tokenizer.get_vocab()
    rows = model.weights.stored[model.embedding].shape[0]
    if max(vocabulary.values()) >= rows:
        raise ValueError(
            f"the tokenizer of {model.given} has ids up to {max(vocabulary.values())}, but its "
            f"embedding has {rows} rows; the two belong to different models."
        )
    control = hub.ring0("conversation").get_conv_template(template).control
    lacking = [token for token in control if token not in vocabulary]
    if lacking and not add_template_tokens:
        raise ValueError(
            f"the tokenizer of {model.given} has no {', '.join(lacking)}, which the template "
            f"{template!r} needs; name the template that the language model knows, or let them be "
            "added (add_template_tokens), which leaves their rows to be trained."
        )
    # The nine last, so that <IMG_CONTEXT> is the seventh from the end, as in published ones.
    new = [token for token in (*lacking, *NEW_TOKENS) if token not in vocabulary]
    known = len(tokenizer)
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(new)
    last = max(tokenizer.get_vocab().values())
    return Tokens(known, rows, dict(zip(new, ids, strict=True)), last + 1)


def _load_tokenizer(model: LanguageModel, folder: Path) -> Any:
    """The tokenizer of a language model, copied to a folder; code of the source is not run.

    Raises:
        ValueError: it has none, or one that is code.
        ImportError: it needs sentencepiece.
    """
    from transformers import AutoTokenizer

    settings.copy_tokenizer(model.folder, folder)
    fields = optional_json(folder / "tokenizer_config.json")
    if fields.get("tokenizer_class") == "InternLM2Tokenizer":
        try:
            module = hub.ring0("tokenization_internlm2")
        except ImportError as error:
            raise ImportError(
                f"the tokenizer of {model.given} needs sentencepiece: "
                "pip install 'internvl[internlm]'"
            ) from error
        return module.InternLM2Tokenizer.from_pretrained(folder)
    # With the config that it will be loaded with: the class is the one tokenizer_config.json names.
    config = hub.ring0("configuration_internvl_chat").InternVLChatConfig()
    try:
        return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"the tokenizer of {model.given} could not be loaded: {error}") from error


# ---------------------------------------------------------------------- rows
def resize_rows(
    weight: torch.Tensor, tokens: Tokens, *, std: float | None = None, seed: int = 42
) -> torch.Tensor:
    """Bring an embedding or an output layer to one row for each token.

    Rows of known tokens stay. A new one is the mean of those of the known tokens, which gives it
    the probability of an average one. The official code does so in the output layer; for its
    embedding, see `std`.

    Args:
        weight: (V, D).
        tokens: what there was, and is.
        std: None for the mean; else spare rows become those of new tokens, and rows that lack are
            drawn from N(0, std), as `resize_token_embeddings` of transformers 4.37 did.
        seed: of these numbers.

    Returns:
        (V', D), in the dtype of `weight`.
    """
    import torch

    mean = weight[: tokens.known].float().mean(0).to(weight.dtype)  # bfloat16 loses the sum
    kept = min(tokens.rows, weight.shape[0])
    resized = mean.expand(tokens.rows, -1).clone()  # (V', D)
    resized[:kept] = weight[:kept]
    if std is None:
        resized[_ids(tokens)] = mean
    elif tokens.rows > kept:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.empty(tokens.rows - kept, weight.shape[1])
        resized[kept:] = drawn.normal_(0.0, std, generator=generator).to(weight.dtype)
    return resized


def _ids(tokens: Tokens) -> Sequence[int]:
    return list(tokens.added.values())
