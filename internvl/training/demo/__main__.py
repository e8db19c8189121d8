"""Command line of the demo checkpoint: tokenizer, examples, stage0, data, start, larger,
release, evaluate, loops-data, loops-measure, benchmarks, benchmarks-table, voting."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

from internvl import hub
from internvl.training.demo import archives

logger = logging.getLogger(__name__)
DEMO = hub.REPOSITORY / "demo"
RECIPE = hub.REPOSITORY / "recipes" / "demo" / "stage0.yaml"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m internvl.training.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("tokenizer", help="train the tokenizer and write its files")
    one.add_argument("--demo", type=Path, default=DEMO)

    one = commands.add_parser("stage0", help="the ViT on dense labels; resumes what OUT holds")
    one.add_argument("--out", type=Path, required=True, help="folder of the run")
    one.add_argument("--recipe", type=Path, default=RECIPE)
    one.add_argument("--start", type=Path, default=DEMO, help="checkpoint whose ViT is the start")
    one.add_argument("--cache", type=Path, default=archives.DEFAULT_CACHE)
    one.add_argument("--workers", type=int, default=1, help="data processes")

    one = commands.add_parser("examples", help="draw examples/ and write its questions.json")
    one.add_argument("--folder", type=Path, default=hub.REPOSITORY / "examples")
    one.add_argument("--cache", type=Path, default=archives.DEFAULT_CACHE)

    one = commands.add_parser("data", help="write the training data: meta files, JSONL, pictures")
    one.add_argument("--out", type=Path, required=True, help="target folder")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--scale", type=float, default=1.0, help="share of the full sizes")
    one.add_argument("--only", nargs="*", help="only these datasets")
    one.add_argument("--cache", type=Path, default=archives.DEFAULT_CACHE)
    one.add_argument("--processes", type=int, default=1)

    one = commands.add_parser("start", help="a folder to begin stage 1 with: DEMO with a new ViT")
    one.add_argument("--vision", type=Path, required=True, help="vit.safetensors of stage 0")
    one.add_argument("--out", type=Path, required=True, help="target folder")
    one.add_argument("--demo", type=Path, default=DEMO)

    one = commands.add_parser(
        "larger", help="a larger, random language model for the tokenizer of DEMO"
    )
    one.add_argument("--out", type=Path, required=True, help="target folder")
    one.add_argument("--demo", type=Path, default=DEMO)

    one = commands.add_parser("release", help="put trained weights into DEMO, in bfloat16")
    one.add_argument("--checkpoint", type=Path, required=True, help="trained folder")
    one.add_argument("--demo", type=Path, default=DEMO)

    one = commands.add_parser("evaluate", help="held-out accuracy per task, through chat and files")
    one.add_argument("--model", type=Path, default=DEMO, help="checkpoint folder")
    one.add_argument("--tasks", nargs="*", help="only these")
    one.add_argument("--n", type=int, default=500, help="cases per task")
    one.add_argument("--seed", type=int, help="of the cases; the table has its own")
    one.add_argument("--no-blind", action="store_true", help="leave out the swapped pictures")
    one.add_argument("--cache", type=Path, default=archives.DEFAULT_CACHE)
    one.add_argument("--json", type=Path, help="also write the results here")
    one.add_argument("--write", action="store_true", help="put the table into README.md of MODEL")

    one = commands.add_parser(
        "loops-data", help="answers in steps, clean and with loops (docs/filtering.md)"
    )
    one.add_argument("--out", type=Path, required=True, help="target folder")
    one.add_argument("--count", type=int, default=6000, help="samples")
    one.add_argument("--share", type=float, default=0.04, help="of the samples that loop")

    one = commands.add_parser("loops-measure", help="how many long answers never end")
    one.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="trained checkpoints")
    one.add_argument("--n", type=int, default=1000, help="questions")
    one.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7, 1.0])
    one.add_argument("--json", type=Path, required=True, help="write the results here")
    one.add_argument("--picture", type=Path, help="draw them into this PNG or SVG")

    one = commands.add_parser(
        "benchmarks",
        help="draw benchmarks in the formats of the real ones (docs/demo_benchmarks.md)",
    )
    one.add_argument("out", type=Path, metavar="OUT", help="target folder")
    one.add_argument("--count", type=int, default=200, help="rows of each")
    one.add_argument("--only", nargs="*", metavar="NAME", help="only these benchmarks")
    one.add_argument("--no-archives", action="store_true", help="leave out those that print words")
    one.add_argument("--cache", type=Path, default=archives.DEFAULT_CACHE)

    one = commands.add_parser("benchmarks-table", help="the scores of a run of the suite")
    one.add_argument("suite", type=Path, metavar="SUITE", help="suite.json")
    one.add_argument(
        "runs", type=Path, metavar="RUNS", help="folder of `internvl eval run --suite`"
    )
    one.add_argument("--write", action="store_true", help="put it into docs/demo_benchmarks.md")

    one = commands.add_parser(
        "voting", help="what a majority vote brings the demo (docs/test_time_scaling.md)"
    )
    one.add_argument("--model", type=Path, default=DEMO, help="checkpoint folder")
    one.add_argument("--n", type=int, default=250, help="questions per task")
    one.add_argument("--answers", type=int, default=16, help="samples per question")
    one.add_argument("--tasks", nargs="*", help="only these")
    one.add_argument("--cache", type=Path, default=archives.DEFAULT_CACHE)
    one.add_argument("--write", action="store_true", help="put JSON, pictures and table into docs/")
    one.add_argument("--draw", action="store_true", help="again from docs/voting.json, no model")
    return parser


def _loops(args: argparse.Namespace) -> None:
    from internvl.training.demo import loops

    if args.command == "loops-data":
        count = loops.build(args.out, count=args.count, share=args.share)
        logger.info("%d samples, %d of them with a loop in %s/dirty", args.count, count, args.out)
        return
    pairs = [name.partition("=") for name in args.models]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise SystemExit(f"{wrong}: expected NAME=FOLDER")
    models = {name: Path(folder) for name, _, folder in pairs}
    with tempfile.TemporaryDirectory() as folder:
        rows = loops.measure(models, Path(folder), count=args.n, temperatures=args.temperatures)
    lines = ",\n".join(json.dumps(row) for row in rows)
    args.json.write_text(f"[\n{lines}\n]\n", "utf-8")
    if args.picture:
        loops.draw(rows, args.picture)


def _evaluate(args: argparse.Namespace) -> None:
    import torch

    from internvl.training.demo import evaluate

    torch.set_num_threads(1)
    held = evaluate.Held.load(args.cache)
    seed = evaluate.SEED if args.seed is None else args.seed
    with tempfile.TemporaryDirectory() as folder:
        results = evaluate.evaluate(
            hub.load(args.model), Path(folder), args.n, held, seed=seed, tasks=args.tasks,
            blind=not args.no_blind,
        )  # fmt: skip
    sys.stdout.write(evaluate.table(results) + "\n")
    if args.json:
        evaluate.write_results(args.json, results, seed=seed)
    if args.write:
        evaluate.write_table(args.model / "README.md", results)


def _benchmarks(args: argparse.Namespace) -> None:
    from internvl.training.demo import benchmarks, evaluate

    if args.command == "benchmarks-table":
        text = benchmarks.table(args.suite, args.runs)
        sys.stdout.write(text + "\n")
        if args.write:
            page = hub.REPOSITORY / "docs" / "demo_benchmarks.md"
            benchmarks.replace_between(page, "scores", text)
        return
    wanted = args.only or benchmarks.BENCHMARKS
    some = [
        benchmarks.BENCHMARKS[name].archives for name in wanted if name in benchmarks.BENCHMARKS
    ]
    held = evaluate.Held.load(args.cache) if any(some) and not args.no_archives else None
    path = benchmarks.build(args.out, count=args.count, held=held, only=args.only)
    logger.info("written %s", path)


def _voting(args: argparse.Namespace) -> None:
    import torch

    from internvl.training.demo import benchmarks, evaluate, voting

    docs = hub.REPOSITORY / "docs"
    if args.draw:
        rows = voting.read(docs / "voting.json")
    else:
        torch.set_num_threads(1)
        held = evaluate.Held.load(args.cache)
        loaded = hub.load(args.model, dtype="float32")
        with tempfile.TemporaryDirectory() as folder:
            rows = voting.measure(
                loaded, Path(folder), held, count=args.n, answers=args.answers, tasks=args.tasks
            )
    text = voting.table(rows)
    sys.stdout.write(text + "\n")
    if args.write and not args.draw:
        voting.save(rows, docs / "voting.json", seed=voting.SEED, n=args.n)
    if args.write or args.draw:
        for suffix in (".svg", ".png"):
            voting.draw(rows, docs / "images" / f"voting{suffix}")
        benchmarks.replace_between(docs / "test_time_scaling.md", "voting", text)


def main() -> None:
    """Parse the command line and run one command."""
    args = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if args.command == "tokenizer":
        from internvl.training.demo import tokenizer

        tokenizer.save(tokenizer.build(), args.demo)
    elif args.command == "stage0":
        from internvl.training.demo import stage0

        plan = stage0.Stage0Plan.read(args.recipe)
        stage0.train(plan, args.out, args.start, args.cache, args.workers)
    elif args.command == "examples":
        from internvl.training.demo import examples

        examples.write_examples(args.folder, args.cache)
    elif args.command == "data":
        from internvl.training.demo import builder

        only = set(args.only) if args.only else None
        builder.build(
            args.out, seed=args.seed, scale=args.scale, cache=args.cache,
            processes=args.processes, only=only,
        )  # fmt: skip
    elif args.command.startswith("loops-"):
        _loops(args)
    elif args.command.startswith("benchmarks"):
        _benchmarks(args)
    elif args.command == "voting":
        _voting(args)
    elif args.command == "larger":
        from internvl.training.demo import larger

        count = larger.language_model(args.demo, args.out)
        logger.info("written %s, %d parameters", args.out, count)
    elif args.command in ("start", "release"):
        from internvl.training.demo import release

        if args.command == "start":
            release.start(args.demo, args.vision, args.out)
        else:
            release.release(args.checkpoint, args.demo)
    else:
        _evaluate(args)


if __name__ == "__main__":
    main()
