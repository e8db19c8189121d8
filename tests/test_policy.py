"""The rules that keep the rings apart, read off the syntax tree of every source file.

Ring 0 is the remote code at the root, `preprocessor/` that of the processor, `internvl/` the
workshop. The rules follow from what the Hub loader resolves, and from what it makes mandatory for
everybody who loads.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
THIRD_PARTY = {
    "ring0": {"torch", "transformers"},
    "preprocessor": {"torch", "transformers", "numpy", "PIL"},
}
EXTRA = {"tokenization_internlm2.py": {"sentencepiece"}}
LEAVES = {
    "hub",
    "source_files",
    "grounding",
    "answers",
    "context",
    "quantization",
    "settings",
    "plots",
}
MAY_IMPORT = {
    "hub": {"source_files", "quantization"},
    "context": set(),
    "settings": set(),
    "quantization": set(),
    "source_files": set(),
    "grounding": set(),
    "plots": set(),
    "answers": set(),
    "data": LEAVES,
    "checkpoints": LEAVES,
    "chat": LEAVES,
    "filtering": LEAVES | {"data"},
    "training": LEAVES | {"data", "chat", "checkpoints", "filtering", "evaluation"},
    "evaluation": LEAVES | {"chat", "checkpoints"},
    "demo": LEAVES | {"chat"},
    "doctor": LEAVES,
}
ANYTHING = {"app", "cli", "__main__"}
ENTRY = re.compile(
    r"(configuration|modeling|tokenization|processing|image_processing|video_processing)_"
)
SCANNED = re.compile(
    r"^\s*from\s+\.(\S*)\s+import", re.MULTILINE
)  # what the Hub loader takes for an import
MACHINE_PATH = re.compile(r"(?<![\w.}])/(work|root|home|Users|opt)/\w")
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".yaml", ".yml", ".cff", ".ipynb", ".jinja", ""}
VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"}
SKIPPED = {"build", "dist", "out", "runs", "__pycache__", "node_modules"}


def ring(name: str) -> str:
    folder = name.partition("/")[0]
    return "ring0" if folder == name else folder


def siblings(name: str) -> set[str]:
    return {path.stem for path in (ROOT / name).parent.glob("*.py")}


def optional_nodes(tree: ast.AST) -> set[ast.AST]:
    """Nodes inside the body of a `try`: the Hub loader does not demand what is imported there."""
    tries = (node for node in ast.walk(tree) if isinstance(node, ast.Try))
    return {inner for node in tries for statement in node.body for inner in ast.walk(statement)}


def imported_modules(tree: ast.AST) -> list[tuple[ast.AST, str, int]]:
    """(node, module, dots) of every import, at any depth."""
    found: list[tuple[ast.AST, str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.module == "internvl" and not node.level:  # from internvl import hub
                found += [(node, f"internvl.{alias.name}", 0) for alias in node.names]
            else:
                found.append((node, node.module or "", node.level))
    return found


def remote_code_faults(name: str, tree: ast.AST) -> list[str]:
    optional, faults = optional_nodes(tree), []
    allowed = THIRD_PARTY[ring(name)] | EXTRA.get(Path(name).name, set()) | sys.stdlib_module_names
    for node, module, dots in imported_modules(tree):
        if dots and (dots > 1 or "." in module or module not in siblings(name)):
            faults.append(
                f"line {node.lineno}: `{'.' * dots}{module}` is not a sibling (one dot, one level)"
            )
        elif not dots and module.partition(".")[0] not in allowed and node not in optional:
            faults.append(
                f"line {node.lineno}: {module} would be mandatory for everybody; import it in a try"
            )
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and SCANNED.search(node.value)
        ):
            faults.append(f"line {node.lineno}: a string that the Hub loader takes for an import")
    return faults


def workshop_faults(name: str, tree: ast.AST) -> list[str]:
    part, faults = Path(name).with_suffix("").parts[1], []
    allowed = {"", part, *MAY_IMPORT.get(part, ())}
    for node, module, dots in imported_modules(tree):
        top, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if dots:
            faults.append(f"line {node.lineno}: relative import, write `internvl.` in full")
        elif top == "internvl_hub" or (top in siblings("x.py") and top != "internvl"):
            faults.append(
                f"line {node.lineno}: {module} is remote code, go through internvl.hub.ring0"
            )
        elif top == "internvl" and part not in ANYTHING and other not in allowed:
            faults.append(f"line {node.lineno}: {part} may not import {other}")
    return faults


def call_faults(name: str, tree: ast.AST) -> list[str]:
    faults = []
    talkative = name in ("internvl/cli.py", "internvl/demo.py")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        given = [*node.args] if called in ("to", "device") else []
        given += [
            keyword.value for keyword in node.keywords if keyword.arg in ("device", "device_map")
        ]
        if called == "cuda" or any(
            str(getattr(value, "value", "")).startswith("cuda") for value in given
        ):
            faults.append(f"line {node.lineno}: the device is the caller's choice, not `cuda`")
        if called == "print" and isinstance(node.func, ast.Name) and not talkative:
            faults.append(f"line {node.lineno}: print below the CLI; use a logger")
    return faults


def faults(name: str, source: str) -> list[str]:
    """What is wrong with a file, given its path from the root with slashes, and its text."""
    tree = ast.parse(source)
    own = workshop_faults if ring(name) == "internvl" else remote_code_faults
    return [f"{name}, {fault}" for fault in own(name, tree) + call_faults(name, tree)]


def sibling_imports(source: str) -> set[str]:
    return {module for _, module, dots in imported_modules(ast.parse(source)) if dots}


def missing_siblings(files: dict[str, str], entry: str) -> set[str]:
    """Siblings that `entry` reaches but does not name: 4.57 copies only what it names."""
    direct, reached = sibling_imports(files[entry]), set()
    queue = list(direct)
    while queue:
        stem = queue.pop()
        if stem not in reached:
            reached.add(stem)
            queue += sibling_imports(files.get(f"{stem}.py", ""))
    return reached - direct - {Path(entry).stem}


def code(folder: str) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in sorted((ROOT / folder).glob("*.py"))}


def texts(root: Path = ROOT) -> list[Path]:
    kept = []
    for path in root.iterdir():
        if path.is_dir():
            hidden = path.name.startswith(".") and path.name != ".ci"
            kept += (
                [] if hidden or path.name in SKIPPED or path.suffix == ".egg-info" else texts(path)
            )
        elif path.suffix in TEXT and path.name not in VOCABULARIES:
            kept.append(path)
    return kept


SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "preprocessor/*.py", "internvl/**/*.py")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("name", SOURCES)
def test_source_keeps_the_rules(name):
    assert not faults(name, (ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", ["", "preprocessor"])
def test_entry_files_name_every_sibling_they_reach(folder):
    files = code(folder)
    entries = [name for name in files if ENTRY.match(name)]
    assert entries
    assert {entry: missing_siblings(files, entry) for entry in entries} == {
        e: set() for e in entries
    }


def test_basenames_are_unique():
    # save_pretrained writes both folders into one.
    assert not set(code("")) & set(code("preprocessor"))


def test_tree_names_no_path_of_a_machine():
    named = {}
    for path in texts():
        found = [
            match.group()
            for match in MACHINE_PATH.finditer(path.read_text("utf-8", errors="replace"))
        ]
        if found:
            named[path.relative_to(ROOT).as_posix()] = found
    assert not named


def test_tree_holds_no_leftovers_of_editing():
    kinds = {".orig", ".rej", ".bak", ".swp"}
    assert [p.name for p in ROOT.iterdir() if p.suffix in kinds] == []
    folders = ("internvl", "preprocessor", "tests", "docs", "recipes", "benchmarks", "demo")
    assert [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in kinds] == []


def test_requirements_pin_versions_and_name_no_index():
    for path in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in path.read_text("utf-8").splitlines() if line and line[0] != "#"]
        assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
        # First of an environment, so that no range of another package takes a CUDA build.
        assert lines[0].startswith("torch==") or path.stem == "app"


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("modeling_x.py", "from einops import rearrange", "mandatory"),
        ("modeling_x.py", "def f():\n    import timm", "mandatory"),
        ("modeling_x.py", "from . import conversation", "not a sibling"),
        ("modeling_x.py", "from .preprocessor.tiling import split", "not a sibling"),
        ("modeling_x.py", "import internvl.hub", "mandatory"),
        ("modeling_x.py", "try:\n    pass\nexcept ImportError:\n    import av", "mandatory"),
        (
            "modeling_x.py",
            '"""Example:\n    from .conversation import x\n"""',
            "takes for an import",
        ),
        ("modeling_x.py", "model.cuda()", "caller's choice"),
        ("modeling_x.py", "x.to('cuda:0')", "caller's choice"),
        ("modeling_x.py", "zeros(3, device='cuda')", "caller's choice"),
        ("preprocessor/x.py", "from ..conversation import encode", "not a sibling"),
        ("preprocessor/x.py", "import torchvision", "mandatory"),
        ("preprocessor/x.py", "print(1)", "print below"),
        (
            "internvl/chat/x.py",
            "from internvl.training import trainer",
            "chat may not import training",
        ),
        ("internvl/data/x.py", "from internvl import cli", "data may not import cli"),
        ("internvl/hub.py", "import internvl.chat.request", "hub may not import chat"),
        ("internvl/data/x.py", "from .schema import y", "relative import"),
        ("internvl/data/x.py", "import internvl_hub.conversation", "remote code"),
        ("internvl/data/x.py", "import conversation", "remote code"),
        ("internvl/data/x.py", "print(1)", "print below"),
    ],
)
def test_each_rule_fires(name, source, complaint):
    assert complaint in "; ".join(faults(name, source))


def test_what_is_allowed_passes():
    assert not faults("modeling_x.py", "try:\n    import av\nexcept ImportError:\n    av = None")
    assert not faults(
        "modeling_x.py", "import math\nfrom .conversation import render\nimport torch.nn"
    )
    assert not faults("internvl/cli.py", "from internvl.training import trainer\nprint(1)")


def test_a_sibling_reached_only_by_another_is_missing():
    files = {"modeling_a.py": "from .b import x", "b.py": "from .c import y", "c.py": ""}
    assert missing_siblings(files, "modeling_a.py") == {"c"}
    assert MACHINE_PATH.search("see " + "/".join(["", "home", "me"]))
