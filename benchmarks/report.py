"""Run every benchmark and write the published page: docs/performance.md, its JSON and its plot.

    python benchmarks/report.py [--full] [--only NAME ...]      # run (25 minutes), then write
    python benchmarks/report.py --render                        # write from docs/performance.json

Each script runs by itself, in a process of its own; what it prints goes into docs/performance.json
as it is. The page gets its table between two markers, the rest of it is written by hand. The plot
needs matplotlib (`pip install 'internvl[plot]'`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import ROOT

SCRIPTS = (
    "preprocess",
    "vit",
    "prefill",
    "turns",
    "samples",
    "batch",
    "decode",
    "load",
    "end_to_end",
    "decode_options",
    "profile_stages",
)
RESULTS = ROOT / "docs" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "images" / "performance"
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- end of results -->"
MET = {True: "met", False: "**not met**", None: ""}


# ---------------------------------------------------------------------- running
def run(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Run a script in a process of its own; its record.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    sys.stderr.write(f"{name} ...\n")
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--json", *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    record = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{name}: {record['seconds']} s\n")
    return without_folder(record)


def without_folder(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the folders of the machine that it was made on."""
    return json.loads(json.dumps(record).replace(f"{ROOT}/", ""))


# ---------------------------------------------------------------------- writing
def page_part(records: dict[str, Any]) -> str:
    """The part of the page between the markers."""
    parts = [machine_line(next(iter(records.values())))]
    for name, record in records.items():
        if name == "profile_stages":
            continue
        parts += ["", f"### {name}", "", f"{sentence(record['question'])}.", ""]
        parts += table(record["rows"])
        parts += [f"* {note}" for note in notes(record["rows"])]
        parts += ["", f"`{record['command']}`: {facts(record)}."]
    if "profile_stages" in records:
        parts += ["", *profile(records["profile_stages"])]
    return "\n".join(parts) + "\n"


def machine_line(record: dict[str, Any]) -> str:
    """On what all of this was measured."""
    units = "with" if record["bf16_units"] else "**without**"
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return (
        f"Measured on {record['cores']} cores of an {record['cpu']} ({record['capability']}, "
        f"{units} bfloat16 units), python {record['python']}, {versions}."
    )


def sentence(text: str) -> str:
    """The text with a capital in front."""
    return text[:1].upper() + text[1:]


def facts(record: dict[str, Any]) -> str:
    """How a benchmark was run."""
    before, after = record["load_average"]
    rounds = max((row.get("rounds", 0) for row in record["rows"]), default=0)
    kind = f"{record['dtype']}, " if record["dtype"] else ""
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    return (
        f"{kind}{threads}, {rounds or 'no'} rounds, {record['seconds']:.0f} s, load average "
        f"{before} to {after}"
    )


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| | peer | CPU time, ours | peer | ratio (least to most) | wall | target | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        target = row["target"] or ""
        if "cpu_s" in row:
            low, high = row["spread"]
            cells = (
                row["row"],
                row["peer"],
                seconds(row["cpu_s"]),
                seconds(row["peer_cpu_s"]),
                f"**{row['value']:.3g}** ({low:.3g} to {high:.3g})",
                f"{row['wall_value']:.3g}",
            )
        else:
            unit = row["metric"]
            cells = (row["row"], "", "", "", f"**{row['value']:.3g}** {unit}", "")
        lines.append("| " + " | ".join([*cells, target, MET[row["met"]]]) + " |")
    return [*lines, ""]


def seconds(value: float) -> str:
    """A time for people."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """What has to be said about rows, each thing once."""
    found = []
    for row in rows:
        for key in ("scaling", "note", "bound"):
            text = row.get(key)
            where = "" if key == "scaling" else f"{row['row']}: "
            if text and f"{where}{text}." not in found and (key != "bound" or row["met"] is False):
                found.append(f"{where}{text}.")
    return found


def profile(record: dict[str, Any]) -> list[str]:
    """The stages as a table, largest first."""
    rows = sorted(record["rows"], key=lambda row: -row["value"])
    lines = [
        "### Where the time goes",
        "",
        f"{sentence(record['question'])}: {record['total_cpu_s']} s of CPU time in all, put "
        "together from stages measured one by one.",
        "",
        "| stage | share | CPU time | runs |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['row']} | {row['value']:.1%} | {row['seconds']:.3g} s | {row['runs']} |"
        for row in rows
    ]
    return [*lines, "", f"`{record['command']}`: {facts(record)}."]


def write_page(records: dict[str, Any], page: Path = PAGE) -> None:
    """Replace the part between the markers.

    Raises:
        ValueError: the page has lost its markers.
    """
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks {BEGIN!r} or {END!r}; put them back.")
    page.write_text(f"{head}{BEGIN}\n\n{page_part(records)}\n{END}{tail}", encoding="utf-8")


def plot(records: dict[str, Any], path: Path = PLOT) -> None:
    """Draw the ratios that have a target, as multiples of it; to the right of 1 it is met."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    bars = [
        (f"{name}: {row['row']}{against(row, record['rows'])}", multiple_of_target(row), row)
        for name, record in records.items()
        for row in record["rows"]
        if row["target"]
    ][::-1]
    figure, axes = pyplot.subplots(figsize=(10, 0.32 * len(bars) + 1.2), layout="constrained")
    colours = ["#2a7f62" if row["met"] else "#c44536" for _, _, row in bars]
    axes.barh(range(len(bars)), [multiple for _, multiple, _ in bars], color=colours)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5], ["half", "target", "2x", "5x"])
    axes.minorticks_off()
    for index, (_, multiple, row) in enumerate(bars):
        text = f" {row['value']:.3g} (target {row['target']})"
        axes.text(max(multiple, 1), index, text, va="center", fontsize=7)
    axes.margins(y=0.01)
    axes.set_xlim(right=max(multiple for _, multiple, _ in bars) * 2.5)
    axes.set_title("Measured ratios as multiples of their targets", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "internvl"  # the same file for the same numbers
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def against(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The peer of a row, where its name alone would not tell."""
    alone = sum(other["row"] == row["row"] for other in rows) == 1
    return "" if alone or not row.get("peer") else f", {row['peer']}"


def multiple_of_target(row: dict[str, Any]) -> float:
    """How far a row is beyond its target: above 1 it is met."""
    sign, number = row["target"].split()
    value = max(row["value"], 1e-9)
    return value / float(number) if sign == ">=" else float(number) / value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and write, or write alone."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--render", action="store_true", help="run nothing")
    options.add_argument("--full", action="store_true", help="full depth")
    options.add_argument("--only", nargs="+", choices=SCRIPTS, metavar="NAME", default=SCRIPTS)
    chosen = options.parse_args(arguments)
    records = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in () if chosen.render else chosen.only:
        records[name] = run(name, ["--full"] if chosen.full else [])
        records = {name: records[name] for name in SCRIPTS if name in records}
        RESULTS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")  # one by one
    write_page(records)
    plot(records)


if __name__ == "__main__":
    main()
