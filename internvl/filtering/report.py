"""The report on a run: one HTML file without anything from elsewhere.

Counts by dataset, modality and rule, histograms of scores, and examples with their evidence marked.
All text of the data is escaped, and the page forbids scripts and requests, so a sample cannot act.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl.filtering.files import whole
from internvl.filtering.statistics import STATES, read_statistics

REPORT = "report.html"
_COLUMNS = ("flagged", "alone", *STATES)
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
</style>
<h1>{title}</h1>
{body}
</html>
"""
STYLE = """:root { color-scheme: light dark; --mark: #ffd76e; --line: #8884; --bar: #4a7dbd; }
@media (prefers-color-scheme: dark) { :root { --mark: #7a5a00; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
th, td { padding: .15rem .8rem .15rem 0; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1px solid var(--line); font-weight: 600; }
p { margin: .3rem 0; }
.quiet { opacity: .75; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; border-left: 3px solid
  var(--line); padding-left: .8rem; margin: .3rem 0 1rem; max-height: 24rem; overflow-y: auto; }
mark { background: var(--mark); color: inherit; }
svg { display: block; margin: .5rem 0; max-width: 100%; }
svg rect { fill: var(--bar); }
svg text { fill: currentColor; font-size: 11px; }"""
_WIDTH, _HEIGHT, _MARGIN = 640, 120, 18


def write_report(folder: Path) -> Path:
    """Write the report on the run that wrote a folder, from its statistics.

    Raises:
        FileNotFoundError: the run is not complete.
    """
    path = folder / REPORT
    with whole(path) as file:
        page = render(read_statistics(folder))
        file.write(page.encode(errors="xmlcharrefreplace"))
    return path


def render(statistics: Mapping[str, Any]) -> str:
    """The page."""
    rules = statistics["rules"]
    body = [
        _summary(statistics),
        "<h2>Datasets</h2>",
        _table(["dataset", "read", *STATES], _rows(statistics["datasets"])),
        "<h2>Modalities</h2>",
        _table(["modality", "read", *STATES], _rows(statistics["modalities"])),
        "<h2>Rules</h2>",
        '<p class="quiet">A sample may be flagged by several rules; "alone" are those that no '
        "other rule flagged.</p>",
        _table(
            ["rule", *_COLUMNS],
            [[name, *(each[k] for k in _COLUMNS)] for name, each in rules.items()],
        ),
        *(_judge(kind, counts) for kind, counts in statistics["judge"].items()),
        *(_rule(name, rule) for name, rule in rules.items()),
    ]
    return _PAGE.format(title="Filtering report", style=STYLE, body="\n".join(body))


def _summary(statistics: Mapping[str, Any]) -> str:
    read, flagged = statistics["read"], statistics["flagged"]
    share = f"{flagged / read:.2%}" if read else "0 %"
    lines = [
        f"{read:,} samples read = {statistics['kept']:,} kept + {statistics['removed']:,} removed "
        f"+ {statistics['queued']:,} queued.",
        f"{flagged:,} were flagged ({share}); people accepted {statistics['accepted']:,} of them. "
        f"Policy: {statistics['policy']}.",
    ]
    if statistics["queued"]:
        lines.append("Queued samples wait for a decision: internvl filter review OUT.")
    if statistics["stale_decisions"]:
        lines.append(
            f"{statistics['stale_decisions']:,} decisions were on rows that changed since, and do "
            "not count."
        )
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _rows(groups: Mapping[str, Mapping[str, int]]) -> list[list[Any]]:
    return [[name, *(each[key] for key in ("read", *STATES))] for name, each in groups.items()]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def cell(value: Any) -> str:
        return html.escape(f"{value:,}" if isinstance(value, int) else str(value))

    top = "".join(f"<th>{cell(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell(v)}</td>' for v in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _judge(kind: str, counts: Mapping[str, int]) -> str:
    labels = [str(score) for score in range(11)]
    chart = bars([counts.get(label, 0) for label in labels], labels)
    return f"<h2>Scores of the LLM: {html.escape(kind)}</h2>{chart}"


def _rule(name: str, rule: Mapping[str, Any]) -> str:
    flagged = rule["histogram"]
    edges = [f"{edge:.4g}" for edge in flagged["edges"]]
    spread = _table(["dataset", "flagged"], rule["datasets"].items())
    examples = "".join(_example(each) for each in rule["examples"])
    return (
        f"<h2>{html.escape(name)}</h2>"
        f"<p>{rule['flagged']:,} flagged; threshold {rule['threshold']:g}. Scores of the flagged:"
        f"</p>{bars(flagged['counts'], edges)}{spread}{examples}"
    )


def _example(example: Mapping[str, Any]) -> str:
    head = (
        f"{example['key']} ({example['where']}, {example['modality']}, {example['state']}): "
        f"{example['score']:g} against {example['threshold']:g}. {example['note']}"
    )
    return f"<p>{html.escape(head)}</p>{marked(example)}"


def marked(cut: Mapping[str, Any]) -> str:
    """Text with its evidence marked, as HTML."""
    before, evidence, after = (html.escape(cut[part]) for part in ("before", "marked", "after"))
    mark = f"<mark>{evidence}</mark>" if evidence else ""
    return f"<pre>{before}{mark}{after}</pre>"


def bars(counts: Sequence[float], labels: Sequence[str]) -> str:
    """A histogram as SVG.

    Args:
        counts: of the bins.
        labels: of the bins, or of their edges if there is one more.
    """
    top = max(counts, default=0) or 1
    step = _WIDTH / len(counts)
    between = len(labels) > len(counts)
    shapes = [
        f'<rect x="{i * step + 1:.1f}" y="{_MARGIN + _HEIGHT * (1 - c / top):.1f}" '
        f'width="{step - 2:.1f}" height="{_HEIGHT * c / top:.1f}"><title>{c:,}</title></rect>'
        for i, c in enumerate(counts)
        if c
    ]
    every = max(1, len(labels) // 6) if between else 1
    for i, label in enumerate(labels):
        if i % every and i != len(labels) - 1:
            continue
        x = (i if between else i + 0.5) * step
        anchor = _anchor(i, len(labels)) if between else "middle"
        shapes.append(
            f'<text x="{x:.1f}" y="{_HEIGHT + 2 * _MARGIN - 4}" text-anchor="{anchor}">'
            f"{html.escape(label)}</text>"
        )
    shapes.append(f'<text x="0" y="12">{top:,}</text>')
    height = _HEIGHT + 2 * _MARGIN
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        f'aria-label="histogram">{"".join(shapes)}</svg>'
    )


def _anchor(index: int, count: int) -> str:
    return "start" if index == 0 else "end" if index == count - 1 else "middle"
