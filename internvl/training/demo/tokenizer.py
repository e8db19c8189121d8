"""The demo's own byte-level BPE: Qwen2's pre-tokenisation, about a thousand entries.

Trained on the demo's questions, answers and prompt frame, with plain English words mixed in so that
other text splits into pieces instead of single bytes. Every word of the task is one token.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from internvl import hub
from internvl.training.demo import questions, scenes

VOCABULARY = 1024
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>",
)  # fmt: skip
# Qwen2's, as transformers' Qwen2Tokenizer has it
PRE_TOKENISE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PLAIN = """
a about after again all also an and answer any are as at back be because been before being between
big blue book both boy brief but by can car cat child city come correct could day describe did
different do does dog door down draw drawing each eat end even ever every eye face far few find
first food for from game get girl give go good great green had hand has have he head help her here
high him his home house how i if in into is it its just know large last left less light like line
little long look made make man many may me mean men more most mother much must my name near need
never new next night no not nothing now number of off often old on one only or other our out over
own page paper part people person photo picture place play please put question read right road
room run said same say see she short should show side single small so some sorry sound still such
sun table take tell text than thank that the their them then there these they thing things think
this those three time to too tree two under up us use very wait want was water way we well were
what when where which while white who why will window with woman word words work world would write
year yes you young your
"""
PLAIN_WORDS = _PLAIN.split()


def corpus(seed: int = 5, count: int = 2500) -> list[str]:
    """Texts to learn merges from: sampled questions and answers, the prompt frame, plain words."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    clip = [scenes.shape_scene(rng, 1) for _ in range(8)]
    for _ in range(count):
        scene, other = scenes.shape_scene(rng), scenes.shape_scene(rng)
        pair = (questions.ShapeFacts(scene), questions.ShapeFacts(other))
        asked = [
            questions.about_shapes(rng, scene, pair[0]),
            questions.about_digit(rng, int(rng.integers(10))),
            questions.about_pair(rng, pair),
            questions.about_clip(rng, clip, scenes.pick(rng, ("left", "right", "up", "down"))),
            questions.without_picture(rng),
        ]
        for found in asked:
            if found is not None:
                texts += [found.question, f"assistant\n{found.answer}"]
    words = [f"Image-{k}: " for k in (1, 2)] + [f"Frame-{k}: " for k in (1, 2, 3, 4)]
    words += [*scenes.SHAPES, *scenes.COLOURS, *map(questions.plural, scenes.SHAPES)]
    words += [*questions.ORDINALS, "left", "right", "above", "below", "up", "down", "center"]
    words += [
        "grey",
        "over",
        "under",
        "even",
        "odd",
        "yes",
        "no",
        "top",
        "bottom",
        "user\n",
        "system\n",
    ]
    texts += [*words, *(f"the {word}" for word in words)] * 400
    conversation = hub.ring0("conversation").get_conv_template("internvl2_5")
    texts += [conversation.system_message] * 400
    texts += [f"{word} {word} {word.capitalize()}" for word in PLAIN_WORDS] * 8
    return texts


def build() -> Tokenizer:
    """Train the tokenizer; the same corpus always gives the same merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENISE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _entry(token: str) -> dict:
    return {
        "content": token, "lstrip": False, "normalized": False, "rstrip": False,
        "single_word": False, "special": True,
    }  # fmt: skip


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, vocab.json, merges.txt and the three small JSON files of a Qwen2
    tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    more = [token for token in SPECIAL_TOKENS if token != "<|endoftext|>"]
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(index): _entry(token) for token, index in ids.items()},
        "additional_special_tokens": more,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    brief = {key: value for key, value in _entry("").items() if key != "special"}
    mapping = {
        "additional_special_tokens": [brief | {"content": token} for token in more],
        "eos_token": brief | {"content": "<|im_end|>"},
        "pad_token": brief | {"content": "<|endoftext|>"},
    }
    _write(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "added_tokens.json", ids)
    _write(folder / "special_tokens_map.json", mapping)


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
