"""Write docs/mixture.md from the catalogue.

python -m internvl.data.build_mixture           # write
python -m internvl.data.build_mixture --check   # compare; exit code 1 on a difference
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from pathlib import Path

from internvl import hub
from internvl.data.catalogue import Entry, load_catalogue

logger = logging.getLogger(__name__)

PAGE = hub.REPOSITORY / "docs" / "mixture.md"
_HEAD = """# The data mixture of the report

Written by `python -m internvl.data.build_mixture` from `internvl/data/report_mixture.toml`; a test
compares. On the command line, and as a meta file of what you have on disk:

```bash
internvl data mixture --stage finetune --task OCR
internvl data mixture --language ru --json
internvl data mixture --stage finetune --meta meta.json --from datasets --set ChartQA.repeat_time=2
```

`--meta` looks into FOLDER for `NAME.jsonl`, or `NAME/` with one `*.jsonl` or with Parquet (case,
blanks and signs of names do not matter), counts the rows, and tells which datasets are missing and
which files fit none. `docs/data.md` has the formats.

**What is the report's and what is not.** Names, tasks, languages and citation numbers are the
report's; Table 4 prints no languages, so those of Table 5 stand there where the dataset is the same
and `?` where it is not. JPEG augmentation is on for images and off for video and text (section
4.1). For n_max the report names pairs (24 or 36 for multi-image data, documents and infographics,
6 or 12 for most others, 1 for video) and no dataset's own value: one of each pair is the default
here, set yours with `--set`. r is 1, for the report only says that it lies within (0, 4]. Links and
licences are what the maintainers know (November 2026), and `unknown` elsewhere: some are mirrors,
licences are those of the annotations, and pictures may have other terms. Data that the authors
synthesised themselves has no citation and, but for what is linked, was not published.
"""


def page() -> str:
    """The page."""
    catalogue = load_catalogue()
    parts = [
        _HEAD,
        "## Sizes (Figure 7)\n\n"
        + _table(list(catalogue.samples), [[f"{c / 1e6:g} M" for c in catalogue.samples.values()]])
        + "\n\nSamples of the fine-tuning mixtures. Tokens of InternVL 2.5's:\n\n"
        + _table(
            list(catalogue.token_shares), [[f"{s:g} %" for s in catalogue.token_shares.values()]]
        ),
    ]
    titles = {
        "pretrain": "## Stages 1 and 1.5 (Table 4)",
        "finetune": "## Stage 2 (Table 5)",
    }
    for stage, entries in itertools.groupby(catalogue.entries, lambda each: each.stage):
        parts.append(titles[stage])
        for (modality, task), row in itertools.groupby(entries, lambda e: (e.modality, e.task)):
            parts.append(f"### {modality.replace('_', ' ')}: {task}\n\n" + _entries(list(row)))
    return "\n\n".join(parts) + "\n"


def _entries(entries: list[Entry]) -> str:
    head = ["dataset", "languages", "reference", "n_max", "licence", "where"]
    return _table(head, [_row(each) for each in entries])


def _row(each: Entry) -> list[str]:
    cites = " ".join(f"[{number}]" for number in each.cites)
    links = []
    if each.hub:
        links.append(f"[{each.hub}](https://huggingface.co/datasets/{each.hub})")
    if each.page:
        links.append(f"[page]({each.page})")
    return [
        each.name, " ".join(each.languages) or "?", cites or "own", str(each.n_max or "-"),
        each.licence or "unknown", ", ".join(links) or "unknown",
    ]  # fmt: skip


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None, path: Path = PAGE) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description="Write docs/mixture.md from the catalogue.")
    parser.add_argument("--check", action="store_true", help="compare with docs/mixture.md")
    if not parser.parse_args(arguments).check:
        path.write_text(page(), encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == page():
        return 0
    logger.error("%s is stale; run: python -m internvl.data.build_mixture", path.name)
    return 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
