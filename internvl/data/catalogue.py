"""The report's training data as data: Tables 4 and 5, Figure 7 (sections 4.1, 4.4, 4.5).

    >>> from internvl.data.catalogue import load_catalogue
    >>> [each.name for each in load_catalogue().select(stage="finetune", task="Document")]

`report_mixture.toml` beside this file holds it. The report names datasets, languages and citations;
it gives ranges of n_max and r, of which the file picks values and says so; where a dataset is and
under which licence is what the maintainers know of it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("report_mixture.toml")


@dataclass(frozen=True)
class Entry:
    """A dataset at one place of the mixture.

    Attributes:
        name: as the report prints it.
        stage: "pretrain" (Table 4, stages 1 and 1.5) or "finetune" (Table 5, stage 2).
        modality: "single_image", "multi_image", "video", "text"; Table 4 has
            "single_or_multi_image" in place of the first two.
        task: as the report prints it, e.g. "OCR".
        languages: ISO 639-1 codes; empty where the report prints none.
        cites: numbers in the report's list of references; empty for the authors' own data.
        n_max: most tiles of an image; None for text.
        n_max_reported: values that the report names for such data.
        repeat: r, how often the dataset is seen in an epoch.
        augment: whether images are compressed as JPEG at random.
        hub: dataset id on the Hugging Face Hub; empty if not known.
        page: web page; empty if not known.
        licence: of the annotations; empty if not known.
    """

    name: str
    stage: str
    modality: str
    task: str
    languages: tuple[str, ...]
    cites: tuple[int, ...]
    n_max: int | None
    n_max_reported: tuple[int, ...]
    repeat: float
    augment: bool
    hub: str = ""
    page: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Catalogue:
    """All of it.

    Attributes:
        entries: in the order of the tables.
        samples: of the fine-tuning mixture, by generation (Figure 7a).
        token_shares: of InternVL 2.5's, in percent, by modality (section 4.5).
    """

    entries: tuple[Entry, ...]
    samples: Mapping[str, int]
    token_shares: Mapping[str, float]

    def values(self, field: str) -> list[str]:
        """What `select` knows of a field, in the order of the tables."""
        found: dict[str, None] = {}
        for each in self.entries:
            value = getattr(each, field)
            found.update(dict.fromkeys(value if isinstance(value, tuple) else (value,)))
        return list(found)

    def select(
        self,
        *,
        stage: str | None = None,
        task: str | None = None,
        modality: str | None = None,
        language: str | None = None,
        name: str | None = None,
    ) -> list[Entry]:
        """The entries that fit all that is given; upper and lower case are the same.

        Raises:
            ValueError: a value that no entry has, with the nearest one.
        """
        asked = {
            "stage": stage, "task": task, "modality": modality, "languages": language,
            "name": name,
        }  # fmt: skip
        entries: Iterable[Entry] = self.entries
        for field, value in asked.items():
            if value is not None:
                wanted = _nearest(value, self.values(field), field)
                entries = [each for each in entries if _has(getattr(each, field), wanted)]
        return list(entries)


def _has(value: str | Sequence[str], wanted: str) -> bool:
    return wanted in value if isinstance(value, tuple) else value == wanted


def _nearest(value: str, known: Sequence[str], field: str) -> str:
    by_lower = {each.lower(): each for each in known}
    if found := by_lower.get(value.lower()):
        return found
    near = difflib.get_close_matches(value.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[near[0]]!r}?" if near else f"there are {', '.join(known[:40])}."
    raise ValueError(f"no dataset of the report has {field} {value!r}; {hint}")


@lru_cache(maxsize=1)
def load_catalogue() -> Catalogue:
    """Read the file that comes with the package."""
    content = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    known = _languages_by_name(content["row"])
    entries = tuple(
        _entry(row, dataset, content, known)
        for row in content["row"]
        for dataset in row["datasets"]
    )
    return Catalogue(entries, content["report"]["samples"], content["report"]["token_shares"])


def _languages_by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Languages of the datasets of Table 5, for those that are in Table 4, too."""
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        for dataset in row["datasets"]:
            if languages := dataset.get("languages"):
                found.setdefault(dataset["name"], tuple(languages))
    return found


def _entry(
    row: Mapping[str, Any],
    dataset: Mapping[str, Any],
    content: Mapping[str, Any],
    known: Mapping[str, tuple[str, ...]],
) -> Entry:
    name = dataset["name"]
    place = {**{key: row[key] for key in ("stage", "modality", "task")}, "name": name}
    default = next(each for each in content["defaults"] if _fits(each, place))
    return Entry(
        **place,
        languages=tuple(dataset.get("languages", ())) or known.get(name, ()),
        cites=tuple(dataset.get("cites", ())),
        n_max=default.get("n_max"),
        n_max_reported=tuple(default.get("n_max_reported", ())),
        repeat=default["repeat"],
        augment=default["augment"],
        **content["source"].get(name, {}),
    )


def _fits(default: Mapping[str, Any], place: Mapping[str, str]) -> bool:
    """Whether an entry of the defaults is for this place: all that it names fit."""
    return all(place[key] in default[key] for key in place if key in default)
