"""What a filtering run does, as a YAML file, read into frozen dataclasses that refuse nonsense.

`recipes/filter/` has examples for one machine, for Slurm and for Ray.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from internvl.data.mixture import load_meta
from internvl.data.sources import HUB
from internvl.settings import build, read_yaml

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Input:
    """One dataset.

    Attributes:
        name: of the dataset.
        annotation: a JSON Lines file, or Parquet as a file, a glob or a folder.
        root: folder of its media; they are not opened, it is only written down again.
        meta: further keys of its entry in the meta file, written down again.
    """

    name: str
    annotation: str
    root: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Executor:
    """Where the shards are worked on.

    Attributes:
        kind: "local" for processes of this machine, "slurm" or "ray" for clusters.
        workers: shards at a time.
        options: for datatrove's executor of that kind, such as `partition` and `time`.
    """

    kind: Literal["local", "slurm", "ray"] = "local"
    workers: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no executor could do."""
        if self.workers < 1:
            raise ValueError(f"executor.workers is {self.workers}; expected at least 1.")
        if self.kind == "local" and self.options:
            raise ValueError(
                f"executor.options are {sorted(self.options)}; the local executor has none."
            )
        if self.kind == "slurm" and (missing := {"partition", "time"} - set(self.options)):
            raise ValueError(
                f"executor.options lack {sorted(missing)}; Slurm asks for a partition and a time."
            )


@dataclass(frozen=True)
class Config:
    """One filtering run.

    Attributes:
        inputs: the datasets.
        output: folder of everything that the run writes.
        policy: "review": a person decides on each flagged sample, until then it waits in the
            queue; "auto": flagged samples are removed.
        rules: settings of the rules, see `internvl.filtering.rules.build`.
        duplicates: settings of the search for duplicates over the whole corpus; None for none.
        judge: settings of the LLM that scores samples; None for none.
        judge_processes: judges at a time; the limits of each are its own.
        exempt: datasets that the LLM does not search for repetition, by name or pattern: the
            academic sets of the report.
        executor: where the shards are worked on.
        rows_per_shard: rows that are done, or done again, at once.
        examples: samples per rule that the report shows.
        seed: chooses those samples.
    """

    inputs: tuple[Input, ...]
    output: str
    policy: Literal["review", "auto"] = "review"
    rules: Mapping[str, Any] = field(default_factory=dict)
    duplicates: Mapping[str, Any] | None = field(default_factory=dict)
    judge: Mapping[str, Any] | None = None
    judge_processes: int = 1
    exempt: tuple[str, ...] = ()
    executor: Executor = Executor()
    rows_per_shard: int = 10_000
    examples: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no run could do."""
        if not self.inputs:
            raise ValueError("inputs names no dataset; give a meta file, or a list of datasets.")
        names = [each.name for each in self.inputs]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the datasets {doubled} are there twice; names tell samples apart.")
        for name in ("rows_per_shard", "judge_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.examples < 0:
            raise ValueError(f"examples is {self.examples}; expected at least 0.")

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output)

    def is_exempt(self, dataset: str) -> bool:
        """Whether the LLM does not search this dataset for repetition."""
        return any(fnmatchcase(dataset, pattern) for pattern in self.exempt)


# ---------------------------------------------------------------------- files
def load_config(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration. Relative paths in it are relative to its folder.

    Args:
        path: YAML file.
        overrides: values in place of the file's, "executor.workers" naming a value within a value.

    Raises:
        FileNotFoundError: no such file, or none of a dataset.
        ValueError: unknown keys, values of another type, or values that no run could have.
        ImportError: PyYAML is not installed.
    """
    path = Path(path)
    content = read_yaml(path, overrides, what="configuration", extra="filter")
    try:
        return parse_config(content, path.parent)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def parse_config(content: Mapping[str, Any], folder: Path) -> Config:
    """Make a configuration of what a YAML file holds.

    Args:
        content: keys and values; `inputs` is a meta file or a list of datasets.
        folder: what relative paths are relative to.

    Raises:
        ValueError: as in `load_config`.
    """
    content = dict(content)
    if missing := [key for key in ("inputs", "output") if key not in content]:
        raise ValueError(f"the configuration lacks {missing}.")
    content["inputs"] = [asdict(each) for each in _inputs(content["inputs"], folder)]
    if isinstance(content["output"], str):
        content["output"] = os.path.abspath(folder / content["output"])
    config: Config = build(Config, content, "configuration")
    return config


def save_config(config: Config) -> None:
    """Write the configuration into the output folder, for `review` and `report`."""
    from internvl.filtering.files import write_json

    write_json(config.folder / CONFIG_FILE, asdict(config))


def saved_config(output: str | os.PathLike) -> Config:
    """The configuration of the run that wrote a folder.

    Raises:
        FileNotFoundError: no run wrote into this folder.
    """
    path = Path(output, CONFIG_FILE)
    if not path.exists():
        raise FileNotFoundError(
            f"{output} holds no {CONFIG_FILE}; expected the output folder of `internvl filter run`."
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    # The folder may have been moved since.
    config: Config = build(Config, {**content, "output": os.path.abspath(output)}, str(path))
    return config


def _inputs(value: Any, folder: Path) -> list[Input]:
    if isinstance(value, str):
        return [_from_spec(spec) for spec in load_meta(folder / value)]
    if not isinstance(value, Sequence):
        raise ValueError(f"inputs is {value!r:.60}; expected a meta file or a list of datasets.")
    found = []
    for number, entry in enumerate(value, start=1):
        each: Input = build(Input, entry, f"inputs[{number}]", need=("name", "annotation"))
        _refuse_hub(each)
        places = {"annotation": os.path.abspath(folder / each.annotation)}
        places["root"] = os.path.abspath(folder / each.root)
        found.append(Input(**{**asdict(each), **places}))
    return found


def _from_spec(spec: Any) -> Input:
    """A dataset of a meta file; what differs from the defaults is written down again."""
    entry = {
        each.name: getattr(spec, each.name)
        for each in fields(spec)
        if each.name not in ("name", "root", "annotation", "length", "split", "streaming")
        and getattr(spec, each.name) != each.default
    }
    found = Input(spec.name, spec.annotation, os.path.abspath(spec.root), entry)
    _refuse_hub(found)
    return Input(found.name, os.path.abspath(found.annotation), found.root, found.meta)


def _refuse_hub(found: Input) -> None:
    if found.annotation.startswith(HUB):
        raise ValueError(
            f"dataset {found.name!r} is on the Hub ({found.annotation}); download it first "
            "(`hf download --repo-type dataset ID`) and name its files."
        )
