"""Command line of the demo checkpoint: tokenizer, pretrain, train, release, evaluate."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from internvl import hub
from internvl.training.demo import (
    dense,
    digits,
    evaluate,
    examples,
    parallel,
    qa,
    release,
    tokenizer,
)

logger = logging.getLogger(__name__)
DEMO = hub.REPOSITORY / "demo"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m internvl.training.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("tokenizer", help="train the tokenizer and write its files")
    one.add_argument("--demo", type=Path, default=DEMO)

    for name, text in (
        ("pretrain", "stage 0: the ViT on dense labels"),
        ("train", "stages 1 and 2: questions and answers"),
    ):
        one = commands.add_parser(name, help=f"{text}; resumes from what OUT holds")
        one.add_argument("--out", type=Path, required=True, help="folder of the run")
        one.add_argument("--demo", type=Path, default=DEMO, help="folder with the tokenizer")
        one.add_argument("--cache", type=Path, default=digits.DEFAULT_CACHE)
        one.add_argument("--processes", type=int, default=1, help="single-threaded processes")
        one.add_argument("--workers", type=int, default=1, help="data processes of each")
        one.add_argument("--steps", type=int, help="length of the schedule")

    one = commands.add_parser("release", help="write a trained checkpoint as a Hub folder")
    one.add_argument("--out", type=Path, required=True, help="folder of the run")
    one.add_argument("--demo", type=Path, default=DEMO)
    one.add_argument("--last", action="store_true", help="the last weights, not their average")

    one = commands.add_parser("examples", help="draw examples/ and write its questions.json")
    one.add_argument("--folder", type=Path, default=hub.REPOSITORY / "examples")
    one.add_argument("--cache", type=Path, default=digits.DEFAULT_CACHE)

    one = commands.add_parser("evaluate", help="held-out accuracy per task, through chat and files")
    one.add_argument("--demo", type=Path, default=DEMO)
    one.add_argument("--cache", type=Path, default=digits.DEFAULT_CACHE)
    one.add_argument("--count", type=int, default=200, help="cases per task")
    one.add_argument("--seed", type=int, default=evaluate.SEED)
    one.add_argument("--tasks", nargs="*", help="only these")
    one.add_argument("--no-digits", action="store_true", help="leave out what needs the archives")
    one.add_argument("--blind", action="store_true", help="swap the pictures: what guessing gets")
    one.add_argument("--write", action="store_true", help="put the table into README.md of DEMO")
    return parser


def _train(args: argparse.Namespace) -> None:
    changes = {"steps": args.steps} if args.steps else {}
    if args.command == "pretrain":
        arguments = (dense.DensePlan(**changes), args.out, args.cache, args.workers)
        parallel.launch(dense.train_dense, arguments, processes=args.processes)
        return
    tokens = args.demo / "tokenizer.json"
    arguments = (qa.QAPlan(**changes), args.out, tokens, args.cache, args.workers)
    parallel.launch(qa.train_qa, arguments, processes=args.processes)


def _evaluate(args: argparse.Namespace) -> None:
    loaded = hub.load(args.demo)
    source = None if args.no_digits else digits.load("test", args.cache)
    tasks = set(args.tasks) if args.tasks else None
    with tempfile.TemporaryDirectory() as folder:
        results = evaluate.evaluate(
            loaded, Path(folder), args.count, source, seed=args.seed, tasks=tasks, blind=args.blind
        )
    sys.stdout.write(evaluate.table(results) + "\n")
    if args.write:
        evaluate.write_table(args.demo / "README.md", results)


def main() -> None:
    """Parse the command line and run one command."""
    args = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if args.command == "tokenizer":
        tokenizer.save(tokenizer.build(), args.demo)
    elif args.command in ("pretrain", "train"):
        args.out.mkdir(parents=True, exist_ok=True)
        _train(args)
    elif args.command == "release":
        release.release(args.out / "qa.pt", args.demo, averaged=not args.last)
    elif args.command == "examples":
        examples.write_examples(args.folder, args.cache)
    else:
        _evaluate(args)


if __name__ == "__main__":
    main()
