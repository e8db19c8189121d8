"""New tokens: ids in the tokenizer, rows in embedding and output layer, and who trains them.

    add_special_tokens -> tokenizer (V' ids), both layers (V' rows), config.json
    token_options(model, ids) -> the settings with which LoRA trains those rows

The published rule that `<IMG_CONTEXT>` is the seventh id from the end holds no longer with tokens
behind it, so config.json names the id from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from internvl.source_files import some

if TYPE_CHECKING:
    import torch

IMG_CONTEXT_TOKEN = "<IMG_CONTEXT>"
Rows = Literal["new", "all"]


def add_special_tokens(
    model: Any, tokenizer: Any, tokens: Sequence[str], *, control: bool = False
) -> list[int]:
    """Give a model and its tokenizer new tokens, in place.

    New rows are the mean of the rows of all tokens that there were, in the embedding and in the
    output layer (one tensor where the two are tied): the new tokens begin with the probability of
    an average one. Old rows and ids stay as they are.

    Args:
        model: `InternVLChatModel`, before PEFT wraps it.
        tokenizer: its tokenizer; that of the processor too, which shares it.
        tokens: their texts, none of which the tokenizer may have as a token.
        control: True makes control tokens, as those of the templates: what users type can never
            become one, and answers leave them out. False makes words: text that spells one becomes
            it, in questions and in training data, and answers show it.

    Returns:
        The id of each token.

    Raises:
        TypeError: a PeftModel.
        ValueError: no tokens; tokens that are empty, double or known; or words for a tokenizer
            that would spell them out (the sentencepiece one of InternLM2). Nothing is changed.
    """
    if hasattr(model, "peft_config"):
        raise TypeError(
            "the model carries PEFT adapters; add tokens to the base model first, then wrap it."
        )
    _check_new(tokenizer, tokens, control)
    from transformers import AddedToken

    image = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    known = len(tokenizer)
    added = [AddedToken(token, normalized=False, special=control) for token in tokens]
    tokenizer.add_tokens(added, special_tokens=control)
    ids = [int(index) for index in tokenizer.convert_tokens_to_ids(list(tokens))]
    rows = max(model.config.llm_config.vocab_size, max(ids) + 1)
    _resize(model, rows)
    _fill(model, ids, known)
    model.config.img_context_token_id = model.img_context_token_id = image
    return ids


def token_options(model: Any, ids: Sequence[int], rows: Rows = "new") -> dict[str, Any]:
    """Settings of `peft.LoraConfig` that train the rows of new tokens beside the LoRA layers.

    Args:
        model: `InternVLChatModel` whose tokens they are.
        ids: what `add_special_tokens` returned.
        rows: "new" trains these rows and stores them in the adapter; "all" trains embedding and
            output layer whole, and stores them whole.

    Raises:
        ValueError: no ids, ids without rows, or an unknown choice.
    """
    V = model.config.llm_config.vocab_size
    if not ids or not 0 <= min(ids) <= max(ids) < V:
        raise ValueError(f"ids are {list(ids)}; expected those of tokens, below {V} rows.")
    if rows not in ("new", "all"):
        raise ValueError(f'rows is {rows!r}, expected "new" or "all".')
    names = {id(module): name for name, module in model.named_modules()}
    embedding = names[id(model.get_input_embeddings())]
    head = names[id(model.get_output_embeddings())]
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    if rows == "new":  # PEFT finds the tied layer by itself
        layers = [embedding] if tied else [embedding, head]
        return {"trainable_token_indices": {layer: sorted(ids) for layer in layers}}
    if tied:
        return {"modules_to_save": [embedding], "ensure_weight_tying": True}
    return {"modules_to_save": [embedding, head]}


def _check_new(tokenizer: Any, tokens: Sequence[str], control: bool) -> None:
    """Check tokens before anything changes."""
    if not control and not tokenizer.is_fast:
        # With split_special_tokens, which keeps users from writing control tokens, slow tokenizers
        # split all added ones.
        raise ValueError(
            f"a {type(tokenizer).__name__} spells every added token out where it encodes what "
            "users write, so nobody could use these; pass control=True and write them in prompt "
            "strings, or use a tokenizer with a tokenizer.json."
        )
    if isinstance(tokens, str) or not tokens:
        raise ValueError(f"tokens is {tokens!r}, expected a list of at least one string.")
    vocabulary = tokenizer.get_vocab()
    faults = {
        "empty or with white space around": [t for t in tokens if not t or t != t.strip()],
        "double": sorted({token for token in tokens if list(tokens).count(token) > 1}),
        "tokens already": [token for token in tokens if token in vocabulary],
    }
    found = [f"{name}: {some([repr(t) for t in each])}" for name, each in faults.items() if each]
    if found:
        raise ValueError(f"these cannot be new tokens ({'; '.join(found)}); choose other texts.")


def _resize(model: Any, rows: int) -> None:
    """Make embedding and output layer so many rows high, tied or not, and say so in config.json."""
    if rows > model.config.llm_config.vocab_size:
        # Its own ways to fill new rows are random numbers.
        model.resize_token_embeddings(rows, mean_resizing=False)
    model.config.llm_config.vocab_size = rows
    model.language_model.config.vocab_size = model.language_model.vocab_size = rows


def _fill(model: Any, ids: Sequence[int], known: int) -> None:
    """Write the mean of the first `known` rows into the rows `ids`.

    Rows behind the tokenizer's, which some checkpoints have to spare, do not count.
    """
    import torch

    weights: dict[int, torch.Tensor] = {}  # once where tied
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        weights[id(module.weight)] = module.weight
    with torch.no_grad():
        for weight in weights.values():
            mean = weight[:known].float().mean(0)  # bfloat16 has no room for the sum
            weight[list(ids)] = mean.to(weight.dtype)
