"""What do 16 questions about pictures of 1 to 13 tiles cost in a batch?

    python benchmarks/batch.py [--json] [--rounds 3] [--threads 1] [--dtype auto] [--full] [--smoke]

Ours is `batch_chat`, which batches questions of like length. Peers: all 16 in one batch, padded on
the left to the longest; and `chat()` one by one. Each answer has 8 tokens: shorter ones favour
single calls, which pay no padding, longer ones a single batch, which decodes all rows at once.
Tiles are 224 px (64 visual tokens), a quarter of the real ones, and the vision encoder has no
blocks, because encoding costs the same in all three: what is compared is the language model, of
which 4 of 24 layers run. `--full` takes tiles of 448 px and all 24 layers of the decoder.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from dialogues import GREEDY, bytes_of, close, last_logits, model_of, questions, tokenizer
from harness import Record, amount, choose_dtype, compare, entry, interleave, require
from random_models import LAYERS

from internvl import hub

QUESTION = "16 questions about pictures of 1 to 13 tiles, answers of 8 tokens"
TARGET_WASTE, TARGET_PLAIN, TARGET_SINGLE = 0.15, 1.3, 1.0
SAMPLES, MOST_TILES, TOKENS, SIDE, DEPTH = 16, 13, 8, 224, 4


class Questions:
    """The questions, answered in three ways."""

    def __init__(self, model: Any, words: Any, counts: list[int]) -> None:
        self.model, self.words, self.counts = model, words, counts
        self.pixels = bytes_of(model.config, sum(counts))
        self.questions = questions(counts)
        end = words.convert_tokens_to_ids(model.conv_template.end_of_turn)
        # Exactly so many tokens: random weights end a turn at random.
        self.settings = {"max_new_tokens": TOKENS, "suppress_tokens": [end], **GREEDY}

    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        tokens = hub.ring0("conversation").IMAGE_TOKENS
        requests = self.model._requests(
            self.words, self.pixels, self.questions, self.counts, None, tokens
        )
        return [len(request.ids) for request in requests]

    def batched(self) -> list[str]:
        """Ours."""
        return self.model.batch_chat(
            self.words, self.pixels, self.questions, self.settings, num_patches_list=self.counts
        )

    def padded(self) -> list[str]:
        """One batch, as wide as the longest prompt."""
        tokens = hub.ring0("conversation").IMAGE_TOKENS
        requests = self.model._requests(
            self.words, self.pixels, self.questions, self.counts, None, tokens
        )
        features = self.model._features(self.pixels, requests)
        inputs = self.model._generation_inputs(self.words, requests, features)
        ids = self.model.generate(
            inputs_embeds=inputs["inputs_embeds"],
            attention_mask=inputs["attention_mask"],
            pad_token_id=self.words.pad_token_id,
            **self.settings,
        )
        return [text.strip() for text in self.words.batch_decode(ids, skip_special_tokens=True)]

    def one_by_one(self) -> list[str]:
        """A call for each question."""
        parts = self.pixels.split(self.counts)
        return [
            self.model.chat(self.words, tiles, question, self.settings)
            for tiles, question in zip(parts, self.questions, strict=True)
        ]


def equality(words: Any, options: Namespace) -> dict[str, Any]:
    """Answers in float32 of the three; logits of the first tokens in bfloat16, of single calls and
    of the batch."""
    model = model_of(1, 2, smoke=options.smoke, side=SIDE)
    some = Questions(model, words, [3, 1, 2, 1, 5])
    answers = some.one_by_one()
    found: dict[str, Any] = require(
        {
            "fp32_answers_equal_batched": some.batched() == answers,
            "fp32_answers_equal_padded": some.padded() == answers,
        }
    )
    model.to(torch.bfloat16)
    pair = Questions(model, words, [2, 1])
    with last_logits(model) as seen:
        pair.one_by_one()
        pair.padded()
    singles = torch.cat([seen[0], seen[TOKENS]])
    return found | close(seen[2 * TOKENS], singles, "bf16")


def measure(options: Namespace) -> dict[str, Any]:
    """Compare answers, count positions, then time."""
    dtype = choose_dtype(options.dtype)
    record = Record("batch", QUESTION, options, dtype)
    words = tokenizer()
    equal = equality(words, options)
    generator = torch.Generator().manual_seed(5)
    most = 3 if options.smoke else MOST_TILES
    counts = torch.randint(1, most + 1, (SAMPLES,), generator=generator).tolist()
    side = None if options.full else SIDE
    depth = LAYERS if options.full else DEPTH
    asked = Questions(model_of(0, depth, dtype, smoke=options.smoke, side=side), words, counts)
    lengths = asked.lengths()
    batches = hub.ring0("functional_internvl_chat").plan_batches(lengths)
    computed = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    plain = SAMPLES * max(lengths)
    record.add(
        amount(
            "wasted positions",
            1 - sum(lengths) / computed,
            "share of the positions that are padding",
            at_most=TARGET_WASTE,
            batches=[len(batch) for batch in batches],
            note=f"batches of {', '.join(str(len(batch)) for batch in batches)} questions; plain "
            f"padding wastes {1 - sum(lengths) / plain:.0%}",
        )
    )
    times = interleave(
        {"ours": asked.batched, "padded": asked.padded, "single": asked.one_by_one},
        options.rounds,
        warm_up=0,
    )
    for name, peer, target in (
        ("padded", "plain left padding", TARGET_PLAIN),
        ("single", "one by one", TARGET_SINGLE),
    ):
        record.add(
            compare(
                f"16 questions against {peer}",
                times["ours"],
                times[name],
                peer_name=peer,
                at_least=target,
                scaling=f"{depth} of {LAYERS} decoder layers, "
                f"{asked.model.num_image_token} visual tokens per tile, no ViT blocks",
                bound=f"{len(batches)} batches compute {computed} positions, single calls "
                f"{sum(lengths)} and one batch {plain}; answers of {TOKENS} tokens are decoded in "
                f"{len(batches)} batches, {SAMPLES} calls or one batch",
            )
        )
    return record.finish(equality=equal, tiles=counts, prompt_tokens=lengths)


main = entry(__doc__, measure, rounds=3)

if __name__ == "__main__":
    main()
