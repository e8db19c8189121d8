"""The loop guard in both directions: it stops every loop of loop_texts/loops.json, for the right
reason and not before the documented number of copies; it never stops kept.json, code.md and the
tables made here. In several tokenisations, token by token, and within `generate`.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2TokenizerFast

from internvl import hub
from internvl.chat import loop_guard
from internvl.chat.loop_guard import STRIDE, LoopFound, LoopGuard, find_loop, find_loop_in_text
from tests import support

TEXTS = Path(__file__).parent / "loop_texts"
LOOPS = json.loads((TEXTS / "loops.json").read_text(encoding="utf-8"))
KEPT = json.loads((TEXTS / "kept.json").read_text(encoding="utf-8"))
CODE = re.findall(r"```(\w+)\n(.*?)```\n", (TEXTS / "code.md").read_text("utf-8"), re.DOTALL)
PROSE = (
    "The photograph was taken early in the morning, when the market had only just opened. A woman "
    "in a green coat arranges oranges on a wooden stand, and behind her two men unload boxes from "
    "a van. The street is wet, so it must have rained during the night. On the right, a cyclist "
    "waits for the traffic light to change, one foot on the kerb. Further back, the tower of the "
    "old town hall rises above the roofs, and its clock shows ten past seven. "
)


def sentencepiece_model() -> bytes:
    """A model of InternLM2's kind, with byte fallback, trained on the loops."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROSE, *(case["block"] for case in LOOPS.values())]),
        model_writer=model,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        character_coverage=0.98,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Any]:
    """A byte BPE of 1018 ids, the repository's own of 151674, and a sentencepiece model of 900."""
    file = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    file.write_bytes(sentencepiece_model())
    return {
        "bytes": support.tokenizer("qwen2"),
        "root": Qwen2TokenizerFast.from_pretrained(support.ROOT),
        "pieces": hub.ring0("tokenization_internlm2").InternLM2Tokenizer(str(file)),
    }


@pytest.fixture(params=["bytes", "root", "pieces"])
def tokenizer(request, tokenizers) -> Any:
    return tokenizers[request.param]


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def feed(guard: LoopGuard, ids: list[int], prompt: tuple[int, ...] = ()) -> int | None:
    """Show a guard the ids one by one; the number of them at which it stops."""
    row = torch.tensor([[*prompt, *ids]])
    for count in range(1, len(ids) + 1):
        stopped = guard(row[:, : len(prompt) + count])
        if guard.reasons[0] is not None:
            assert stopped.tolist() == [True]
            return count
    assert not stopped.any()
    return None


def copies_needed(case: dict[str, str]) -> int:
    """The table of the module's docstring."""
    size = len(case["block"])
    words = len(re.findall(r"\w+", case["block"]))
    if case["kind"] == "sentence":
        copies, characters = (4 if size >= 1000 else 5 if size >= 400 else 6), 200
    elif case["kind"] == "words":
        copies, characters = 32, 128
    elif case["kind"] == "labels":
        copies, characters = (16 if words >= 8 else 64), 128
    else:
        copies, characters = 0, 256
    return max(copies, -(-characters // size))


# ---------------------------------------------------------------------- what it stops
@pytest.mark.parametrize("name", LOOPS)
def test_loop_stops_within_the_documented_copies(tokenizers, name):
    for tokenizer in tokenizers.values():
        check_loop(tokenizer, LOOPS[name])


def check_loop(tokenizer: Any, case: dict[str, str]) -> None:
    before, block, needed = case["before"], case["block"], copies_needed(case)
    # One copy for the phase at which it begins, then the tokens up to the next look.
    latest = max(len(encode(tokenizer, before + block * (needed + 1))), 64) + STRIDE
    copies = needed + 2
    while len(ids := encode(tokenizer, before + (block * copies).rstrip(" "))) <= latest:
        copies += copies // 3
    guard = LoopGuard(tokenizer)
    stopped = feed(guard, ids)
    [found] = guard.reasons
    assert guard.finish_reasons == ["repetition"]
    assert stopped == found.end <= latest
    assert found.kind == case["kind"]
    assert found.text in block * 2
    assert len(found.text) == len(block)
    ahead = len(encode(tokenizer, before))
    assert abs(found.start - ahead) <= found.period + 4
    assert found.repeats * found.period <= found.end - found.start
    assert repr(found.text[:60])[1:-1] in str(found)


@pytest.mark.parametrize("name", LOOPS)
def test_loop_is_found_in_a_finished_text(name):
    case = LOOPS[name]
    needed = copies_needed(case)
    before = case["before"]
    found = find_loop_in_text(before + case["block"] * (needed + 1))
    assert found is not None
    assert (found.kind, found.unit) == (case["kind"], "characters")
    assert found.period == len(case["block"])
    assert abs(found.start - len(before)) <= found.period + 2
    assert find_loop_in_text(before + case["block"] * (needed - 4)) is None


@pytest.mark.parametrize(
    ("block", "copies"),
    [
        ("The dog is lying in the shade of the tree. ", 6),
        (PROSE, 5),
        (PROSE * 2 + "It is quiet. " + PROSE, 4),
        ("temple ", 32),
        ("temple\n", 64),
        ("the red car\nthe blue car\nthe van\n", 16),
        ("!", 256),
    ],
)
def test_thresholds_are_those_of_the_docstring(block, copies):
    assert find_loop_in_text("\n" + block * copies) is not None
    assert find_loop_in_text("\n" + block * (copies - 1)) is None


def test_loop_after_good_prose(tokenizer):
    block = "The sky is blue and there are no clouds. "
    prose = encode(tokenizer, PROSE * 2 + PROSE[::-1] + PROSE.swapcase())
    assert len(prose) > 400
    ids = prose + encode(tokenizer, block) * 10
    guard = LoopGuard(tokenizer)
    stopped = feed(guard, ids)
    period = len(encode(tokenizer, block))
    assert stopped <= len(prose) + 6 * period + STRIDE
    found = guard.reasons[0]
    assert found.period == period
    assert found.start == pytest.approx(len(prose), abs=2)
    assert found.kept == found.start + period
    assert tokenizer.decode(ids[: found.kept]).count("no clouds") == 1
    assert f"came {found.repeats} times in a row" in str(found)
    assert 6 <= found.repeats <= 8


def test_reason_reads_as_a_sentence():
    found = LoopFound(3, 40, "temple water grass ", 7, 127, "words")
    assert str(found) == (
        "repetition: 'temple water grass ' (3 tokens) came 40 times in a row, from token 7 to 127"
    )
    assert len(str(LoopFound(1, 9, "x" * 500, 0, 9, "words", "characters"))) < 160


def test_period_of_400_tokens():
    tokenizer = Qwen2TokenizerFast.from_pretrained(support.ROOT)
    words = [f"{a} {b}" for a in ("old", "new", "red", "big", "far") for b in PROSE.split()]
    ids = encode(tokenizer, " ".join(words)[:1900] + ".\n")
    assert 380 <= len(ids) <= 500
    guard = LoopGuard(tokenizer)
    assert feed(guard, ids * 6) <= 4 * len(ids) + STRIDE
    assert guard.reasons[0].period == len(ids)
    assert find_loop(ids * 6, tokenizer, max_period=len(ids) - 1) is None


def test_loop_ended_before_the_answer_did():
    text = PROSE + "The dog is lying in the shade of the tree. " * 9 + PROSE
    found = find_loop_in_text(text)
    assert found.end < text.index(PROSE, 10)
    tokenizer = support.tokenizer("qwen2")
    assert find_loop(encode(tokenizer, text), tokenizer).kind == "sentence"
    assert find_loop(encode(tokenizer, PROSE * 3), tokenizer) is None


def test_guard_and_find_loop_agree(tokenizer):
    for name in list(LOOPS)[::6]:
        ids = encode(tokenizer, LOOPS[name]["before"] + LOOPS[name]["block"] * 70)
        guard = LoopGuard(tokenizer)
        feed(guard, ids)
        assert guard.reasons[0] == find_loop(torch.tensor(ids), tokenizer), name


# ---------------------------------------------------------------------- what it never stops
@pytest.mark.parametrize("name", KEPT)
def test_never_stops(tokenizers, name):
    case = KEPT[name]
    check_kept(tokenizers, case["before"] + case["block"] * case["times"] + case["after"])


def check_kept(tokenizers: dict[str, Any], text: str) -> None:
    for tokenizer in (tokenizers["bytes"], tokenizers["root"]):
        guard = LoopGuard(tokenizer)
        assert feed(guard, encode(tokenizer, text)) is None, guard.reasons
        assert guard.reasons == [None]
        assert guard.finish_reasons == [None]
    assert find_loop(encode(tokenizers["pieces"], text), tokenizers["pieces"]) is None
    assert find_loop_in_text(text) is None


@pytest.mark.parametrize(("language", "code"), CODE, ids=[language for language, _ in CODE])
def test_code_never_stops_with_and_without_its_fence(language, code):
    for part in (code, *(f"{line}\n" for line in code.split("\n") if line.strip())):
        assert find_loop_in_text(part * 72) is None, part
        assert find_loop_in_text(f"Here it is:\n\n```{language}\n" + part * 72) is None, part


GENERATED = {
    "table of 200 rows": "".join(f"| {i} | item {i % 7} | {i * 37 % 100} |\n" for i in range(200)),
    "table of 200 equal rows": "| 1 | item | 37 |\n" * 200,
    "table with a numbered first column": "".join(
        f"| {i} | the temple is closed today | no |\n" for i in range(200)
    ),
    "multiplication table": "\n".join(
        " ".join(f"{a} x {b} = {a * b}" for b in range(1, 11)) for a in range(1, 13)
    ),
    "identity matrix": "\n".join(
        " & ".join("1" if a == b else "0" for b in range(20)) + r" \\" for a in range(20)
    ),
    "numbers": " ".join(str(i * i % 10) for i in range(900)),
    "numbered list": "".join(f"{i}. The red car is next to the house.\n" for i in range(1, 90)),
    "counter in prose": "".join(
        f"Step {i}: subtract the same amount from both sides.\n" for i in range(1, 90)
    ),
    "spreadsheet": "".join(f"2024-01-{i % 28 + 1:02},0,0,0,,,\n" for i in range(200)),
    "array": "x = [\n" + "".join("    " + "0.0, " * 12 + "\n" for _ in range(30)) + "]\n",
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_tables_never_stop(tokenizers, name):
    check_kept(tokenizers, GENERATED[name])


def test_same_block_in_prose_and_in_a_fence():
    tokenizer = support.tokenizer("qwen2")
    block = encode(tokenizer, "The temple is old.\n") * 40
    head = {text: encode(tokenizer, text) for text in ("Look:\n\n\n", "```\n", "```md\n")}
    # Same period and same start, so that only what stands in front tells them apart.
    width = max(map(len, head.values()))
    space = encode(tokenizer, "\n")
    rows = torch.tensor([space * (width - len(ids)) + ids + block for ids in head.values()])
    guard = LoopGuard(tokenizer, prompt_length=0)
    for count in range(1, rows.shape[1] + 1):
        guard(rows[:, :count])
    assert guard.finish_reasons == ["repetition", None, "repetition"]


# ---------------------------------------------------------------------- periods, rows, prompts
def plain_periods(ids: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Every primitive period with four copies at the end, by definition."""
    n, found, furthest = len(ids), [], len(ids)
    for period in range(1, min(most, n // 4) + 1):
        start = n - period
        while start > 0 and ids[start - 1] == ids[start - 1 + period]:
            start -= 1
        if n - start < 4 * period or n - start < period + 16 or start >= furthest:
            continue
        found.append((period, start))
        furthest = start
    return found


def test_periods_equal_their_definition():
    rng = np.random.default_rng(0)
    several = 0
    for _ in range(400):
        block = rng.integers(0, 2, rng.integers(1, 12))
        inner = np.tile(rng.integers(0, 2, rng.integers(1, 4)), rng.integers(1, 30))
        ids = np.tile(np.concatenate([block, inner]), rng.integers(1, 9))
        ids = np.concatenate([rng.integers(0, 2, 70), ids])[: rng.integers(64, 400)]
        if len(ids) >= 64:
            expected = plain_periods(ids, 64)
            several += len(expected) > 1
            assert list(loop_guard._periods(ids, 64)) == expected
    assert several > 5


def test_prompt_does_not_count(tokenizer):
    block = encode(tokenizer, "The dog is lying in the shade of the tree. ")
    prompt = tuple(block * 30)
    assert feed(LoopGuard(tokenizer), block * 4, prompt) is None
    assert feed(LoopGuard(tokenizer, prompt_length=len(prompt)), block * 4, prompt) is None
    guard = LoopGuard(tokenizer)
    alone = feed(LoopGuard(tokenizer), block * 12)
    assert feed(guard, block * 12, prompt) == alone
    assert guard.reasons[0].start == 0


def test_rows_are_judged_by_what_they_hold_not_by_their_place():
    # Beams change places from one step to the next.
    tokenizer = support.tokenizer("qwen2")
    rows = [encode(tokenizer, text) * 99 for text in (" the temple is old.", "0, ", "| a | b |\n")]
    width = min(map(len, rows))
    rows = torch.tensor([row[:width] for row in rows])
    guard = LoopGuard(tokenizer)
    hits = []
    for count in range(1, width + 1):
        order = [(place + count // 16) % 3 for place in range(3)]
        stopped = guard(rows[order, :count])
        assert stopped.shape == (3,)
        assert stopped.dtype == torch.bool
        hits += [order[place] for place in stopped.nonzero().flatten().tolist()]
    assert hits
    assert set(hits) == {0}


def test_padding_of_a_finished_row_is_no_loop():
    tokenizer = support.tokenizer("qwen2")
    ids = encode(tokenizer, "Yes.") + [1001] + [1000] * 600
    guard = LoopGuard(tokenizer)
    assert feed(guard, ids) is None


def test_control_tokens_are_no_text():
    tokenizer = support.tokenizer("qwen2")
    block = [*encode(tokenizer, "The dog is on the left."), 1001]
    assert find_loop(block * 20, tokenizer).text == "The dog is on the left."
    assert find_loop([1001, support.IMG_CONTEXT_ID] * 300, tokenizer) is None


def test_guard_begins_anew_with_the_next_generation():
    tokenizer = support.tokenizer("qwen2")
    guard = LoopGuard(tokenizer)
    loop = encode(tokenizer, "the temple ") * 60
    first = feed(guard, loop)
    assert guard.reasons[0] is not None
    assert feed(guard, encode(tokenizer, "0, ") * 200) is None
    assert guard.reasons == [None]
    assert feed(guard, loop) == first


def test_exempt_loop_is_decoded_once():
    class Counting:
        calls = 0

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def decode(self, ids, **options):
            self.calls += 1
            return self.tokenizer.decode(ids, **options)

    tokenizer = support.tokenizer("qwen2")
    counting = Counting(tokenizer)
    assert feed(LoopGuard(counting), encode(tokenizer, "| 0 | none |\n" * 400)) is None
    assert 1 <= counting.calls <= 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: LoopGuard(t, max_period=0), "max_period is 0"),
        (lambda t: find_loop_in_text("a", max_period=-1), "max_period is -1"),
        (lambda t: LoopGuard(t, prompt_length=-1), "prompt_length is -1"),
        (lambda t: find_loop([[1, 2]], t), r"shape \(1, 2\)"),
        (lambda t: LoopGuard(t, prompt_length=9)(torch.ones(1, 3)), "prompt_length is 9"),
    ],
    ids=["no period", "negative period", "negative prompt", "two dimensions", "embeddings"],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(support.tokenizer("qwen2"))


def test_empty_answers():
    tokenizer = support.tokenizer("qwen2")
    assert find_loop([], tokenizer) is None
    assert find_loop_in_text("") is None
    assert LoopGuard(tokenizer).finish_reasons == []


# ---------------------------------------------------------------------- in generate
WORDS = (" grass", " image", " water")
GREEDY = {"do_sample": False, "max_new_tokens": 160, "pad_token_id": 1000, "eos_token_id": 1001}


def follow(model: Any, tokenizer: Any, chains: list[list[int]]) -> Any:
    """Set the weights so that after each id of a chain the next one follows, greedily."""
    for layer in model.language_model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    embedding = model.language_model.get_input_embeddings().weight.data
    head = model.language_model.get_output_embeddings().weight.data
    model.language_model.model.norm.weight.data.fill_(1)
    embedding.zero_()
    head.zero_()
    used = sorted({index for chain in chains for index in chain})
    for axis, index in enumerate(used):
        embedding[index, axis] = 1
    for chain in chains:
        for index, following in itertools.pairwise(chain):
            head[following, used.index(index)] = 2
    return model


@pytest.fixture(scope="module")
def looping():
    """A model with three ways to go on: words in a circle, zeros in a circle, and an end."""
    model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
    words = [encode(tokenizer, word) for word in WORDS]
    zeros = encode(tokenizer, "0, ")
    assert all(len(word) == 1 for word in words)
    circle = [word[0] for word in words]
    [newline], [end] = encode(tokenizer, "\n"), encode(tokenizer, "!")
    chains = [[newline, *circle, circle[0]], [*zeros, zeros[0]], [end, 1001]]
    return follow(model, tokenizer, chains), tokenizer, circle, zeros, end


def test_generate_stops_with_the_guard_and_runs_on_without(looping):
    model, tokenizer, circle, _, _ = looping
    prompt = torch.tensor([[*circle * 60, circle[0]]])
    guard = LoopGuard(tokenizer)
    shown = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    stopped = model.generate(**shown, **GREEDY, stopping_criteria=[guard])[0, prompt.shape[1] :]
    free = model.generate(**shown, **GREEDY)[0, prompt.shape[1] :]
    assert len(free) == 160
    assert torch.equal(stopped, free[: len(stopped)])
    # 32 copies of three tokens, and the tokens up to the next look.
    assert 96 <= len(stopped) <= 96 + STRIDE
    [found] = guard.reasons
    assert (found.period, found.start, found.kind) == (3, 0, "words")
    assert found.end == len(stopped)
    assert found.text in "".join(WORDS) * 2
    assert find_loop(free, tokenizer) == found


def test_generate_from_embeddings_alone(looping):
    model, tokenizer, circle, _, _ = looping
    prompt = torch.tensor([[circle[0]] * 5])
    embeds = model.get_input_embeddings()(prompt)
    guard = LoopGuard(tokenizer)
    new = model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones_like(prompt),
        **GREEDY,
        stopping_criteria=[guard],
    )
    assert 96 <= new.shape[1] <= 96 + STRIDE
    assert guard.reasons[0].start == 0


def test_rows_of_a_batch_stand_for_themselves(looping):
    model, tokenizer, circle, zeros, end = looping
    prompt = torch.tensor([[1000, 1000, circle[0]], [1000, zeros[0], zeros[0]], [end, end, end]])
    guard = LoopGuard(tokenizer)
    new = model.generate(
        input_ids=prompt,
        attention_mask=(prompt != 1000).long(),
        **GREEDY,
        stopping_criteria=[guard],
    )[:, 3:]
    assert guard.finish_reasons == ["repetition", None, None]
    stop = guard.reasons[0].end
    assert new[0, :stop].tolist() == [circle[(1 + i) % 3] for i in range(stop)]
    assert new[0, stop:].eq(1000).all()
    assert new[1].tolist() == [zeros[(1 + i) % len(zeros)] for i in range(160)]
    assert new[2, 0] == 1001
    assert new[2, 1:].eq(1000).all()


def test_several_answers_beams_and_prompt_lookup(looping):
    model, tokenizer, circle, _, _ = looping
    prompt = torch.tensor([[circle[0]]])
    shown = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    sampled = {**GREEDY, "do_sample": True, "temperature": 0.1, "num_return_sequences": 3}
    guard = LoopGuard(tokenizer)
    assert model.generate(**shown, **sampled, stopping_criteria=[guard]).shape[1] < 130
    assert guard.finish_reasons == ["repetition"] * 3
    guard = LoopGuard(tokenizer)
    beams = model.generate(**shown, **GREEDY, num_beams=2, stopping_criteria=[guard])
    assert beams.shape[1] < 130
    assert find_loop(beams[0, 1:], tokenizer).period == 3
    guard = LoopGuard(tokenizer, prompt_length=1)
    lookup = {**GREEDY, "prompt_lookup_num_tokens": 3}
    assert model.generate(**shown, **lookup, stopping_criteria=[guard]).shape[1] < 130
    assert guard.finish_reasons == ["repetition"]


def test_chat_takes_a_guard(looping):
    model, tokenizer, *_ = looping
    guard = LoopGuard(tokenizer)
    settings = {"max_new_tokens": 320, "do_sample": False, "stopping_criteria": [guard]}
    answer = model.chat(tokenizer, None, "What is it?", settings)
    assert guard.finish_reasons == ["repetition"]
    assert answer.split()[:4] == ["grass", "image", "water", "grass"]
    assert len(answer.split()) == guard.reasons[0].end
    assert settings["stopping_criteria"] == [guard]


# ---------------------------------------------------------------------- cost
def microseconds_per_token(tokens: int = 4096) -> dict[str, float]:
    """Time of the guard per generated token, on prose, on zeros and on a table; run by hand:

    python -c "from tests.chat.test_loop_guard import *; print(microseconds_per_token())"
    """
    tokenizer = Qwen2TokenizerFast.from_pretrained(support.ROOT)
    readme = (support.ROOT / "README.md").read_text(encoding="utf-8")
    cases = {"prose": readme, "zeros": "0, ", "table": "| 2024-01-01 | 0 | 0 | none |\n"}
    timed = {}
    for name, text in cases.items():
        ids = encode(tokenizer, text)
        ids = (ids * (tokens // len(ids) + 1))[:tokens]
        start = time.perf_counter()
        feed(LoopGuard(tokenizer), ids)
        timed[name] = round((time.perf_counter() - start) / tokens * 1e6, 1)
    return timed
