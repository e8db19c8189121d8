"""The recipe for OpenCompass in the docs, held against OpenCompass' sources where they are there.

Nothing of it is imported: its requirements do not fit beside those of this package.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from internvl.evaluation import benchmarks
from tests import support

PAGE = support.ROOT / "docs" / "evaluation_engines.md"
(CODE,) = re.findall(r"```py\n(# table13\.py\n.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
TREE = ast.parse(CODE)
IMPORTS = [node for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom)]


def test_it_has_every_set_of_table_13():
    folders = {node.module.split(".")[3] for node in IMPORTS if "datasets" in node.module}
    every = benchmarks.languages().values()
    assert folders == {name for each in every for name in each.engines["opencompass"]}
    assert len(folders) == 17


def test_the_sum_of_its_sets_is_taken():
    names = [alias.name for node in IMPORTS for alias in node.names]
    values = {name: [name] for name in names if name.endswith("_datasets")}
    scope: dict = {**values, "HuggingFacewithChatTemplate": object}
    rest = ast.Module([n for n in TREE.body if isinstance(n, ast.Assign)], type_ignores=[])
    exec(compile(rest, "table13.py", "exec"), scope, scope)
    assert scope["datasets"] == list(values)
    assert scope["models"][0]["path"] == "./llm"


def source(module: str) -> ast.Module:
    """A module of OpenCompass, parsed."""
    found = importlib.util.find_spec("opencompass")
    if found is None or not found.submodule_search_locations:
        pytest.skip("opencompass is not installed (docs/evaluation_engines.md)")
    root = Path(next(iter(found.submodule_search_locations)))
    path = root.joinpath(*module.split(".")[1:])
    file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    return ast.parse(file.read_text("utf-8"))


@pytest.mark.parametrize(
    "node", [n for n in IMPORTS if "datasets" in n.module], ids=lambda node: node.module
)
def test_each_file_has_its_variable(node):
    body = source(node.module).body
    targets = [t for each in body if isinstance(each, ast.Assign) for t in each.targets]
    assert node.names[0].name in {target.id for target in targets if isinstance(target, ast.Name)}


def test_the_model_takes_these_arguments():
    module = source("opencompass.models.huggingface_above_v4_33")
    (cls,) = [
        node
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == "HuggingFacewithChatTemplate"
    ]
    init = next(n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    taken = {argument.arg for argument in init.args.args}
    (call,) = [
        node
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call) and any(k.arg == "abbr" for k in node.keywords)
    ]
    given = {keyword.arg for keyword in call.keywords}
    # `type`, `abbr`, `run_cfg` and what the inferencer reads are the runner's.
    runner = {"type", "abbr", "run_cfg", "max_out_len", "batch_size"}
    assert given - runner == {"path", "model_kwargs", "max_seq_len"}
    assert given - runner <= taken
