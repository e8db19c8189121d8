"""`internvl publish`: which files of a folder go to the Hub, if they are fit to, and the upload.

    folder -> files, and what stays out and why -> checks (card, code, weights, secrets)
      -> plan (--dry-run ends here) -> large files, one by one -> one commit

Two kinds of folder: a self-contained one, as `adopt` and `export` write it, and a clone of this
repository, of which the tracked files count: the Hub repository is its model part, the workshop
comes along only when asked for. Nothing is deleted on the Hub.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from internvl.source_files import PICKLES, optional_json, some

logger = logging.getLogger(__name__)

GIT_ATTRIBUTES = ".gitattributes"
LARGE = 10 * 2**20  # bytes; the Hub takes no larger file outside LFS
# What the .gitattributes of a new Hub repository sends to LFS, as far as such a folder can hold it.
LFS_PATTERNS = (
    "*.safetensors",
    "*.gguf",
    "*.model",
    "*.npz",
    "*.png",
    "*.jpg",
    "*.jpeg",
    "*.gif",
    "*.webp",
    "*.mp4",
    "*.webm",
    "tokenizer.json",
)
_LFS = "filter=lfs diff=lfs merge=lfs -text"
# Never uploaded, wherever it lies: pattern of the name or of a folder -> why.
_NEVER = {
    **dict.fromkeys(PICKLES, "pickles can carry code"),
    **dict.fromkeys(
        ("optimizer.*", "scheduler.*", "rng_state*", "trainer_state.json", "global_step*",
         "checkpoint-*", "zero_to_fp32.py", "latest"),
        "state of a training run",
    ),
    **dict.fromkeys(
        (".env", ".env.*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", "token",
         "credentials*", "secrets*", "*.token"),
        "may hold secrets",
    ),
    **dict.fromkeys(
        ("__pycache__", "*.pyc", ".cache", ".pytest_cache", ".mypy_cache", ".ruff_cache",
         ".ipynb_checkpoints", ".DS_Store"),
        "cache",
    ),
    **dict.fromkeys(("*.partial", "*.incomplete", "*.lock", "*.tmp"), "left by a stopped run"),
    **dict.fromkeys((".git", ".hg", ".svn"), "version control"),
    **dict.fromkeys((".venv*", "node_modules", "*.egg-info"), "environment"),
    **dict.fromkeys(("*.log", "events.out.tfevents*", "runs", "wandb"), "logs"),
    # The Hub leaves out what it lists without a word, and ours lists the weights of the 78B.
    ".gitignore": "would make the Hub skip files that it lists",
}  # fmt: skip
# The model part of this repository; every other tracked file belongs to the workshop.
_MODEL_FOLDERS = ("preprocessor", "demo", "variants", "examples", "LICENSES")
_WORKSHOP_FILES = ("CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")
_SHOWN = re.compile(r"!\[[^\]]*\]\(([^)\s]+)|<img[^>]+src=[\"']([^\"']+)")


@dataclass(frozen=True)
class File:
    """A file that goes to the Hub.

    Attributes:
        path: in the repository.
        size: bytes.
        lfs: whether it has to be stored as a large file.
        source: the file here; None for one that is written for the upload.
        content: of a file without source.
    """

    path: str
    size: int
    lfs: bool
    source: Path | None = None
    content: bytes = b""


@dataclass(frozen=True)
class LeftOut:
    """A file, or a whole folder, that stays here, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Upload:
    """What `publish` would do.

    Attributes:
        folder: the folder.
        repo: Hub id.
        files: in the order of their paths.
        left_out: what stays here.
        errors: what makes the repository useless or dangerous; `publish` refuses.
        warnings: what a reader of the repository will miss; `publish` refuses unless forced.
    """

    folder: Path
    repo: str
    files: tuple[File, ...]
    left_out: tuple[LeftOut, ...] = ()
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Published:
    """What was done.

    Attributes:
        url: of the commit.
        commit: its id.
        files: how many files it holds.
    """

    url: str
    commit: str
    files: int


def plan_upload(folder: str | Path, repo: str, *, include_workshop: bool = False) -> Upload:
    """Choose the files and check them; nothing is sent.

    Args:
        folder: a self-contained folder, or a clone of this repository.
        repo: Hub id, "owner/name".
        include_workshop: of a clone, upload the package, tests, docs and benchmarks too.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not a Hub id; or a clone whose tracked files git cannot list.
    """
    from huggingface_hub.utils import validate_repo_id

    from internvl.checkpoints import publish_checks

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder.")
    validate_repo_id(repo)
    if "/" not in repo:
        raise ValueError(f"{repo} names no owner; give owner/name.")
    clone = (path / "internvl").is_dir() and (path / ".git").exists()
    if clone:
        names, left_out = _choose_of_clone(path, include_workshop=include_workshop)
    else:
        names, left_out = _choose(path)
    files = [_file(path, name) for name in names if name != GIT_ATTRIBUTES]
    files.append(_git_attributes(path, files))
    files.sort(key=lambda file: file.path)
    findings = publish_checks.check(path, [file.path for file in files], clone=clone)
    return Upload(path, repo, tuple(files), tuple(left_out), *findings)


def describe(upload: Upload) -> str:
    """Write the plan as text."""
    lines = [f"{upload.folder} -> {upload.repo}"]
    lines += [
        f"{'LFS' if file.lfs else '':4}{_size(file.size):>10}  {file.path}"
        + ("" if file.source else "  (written for the upload)")
        for file in upload.files
    ]
    large = sum(file.lfs for file in upload.files)
    lines.append(f"{len(upload.files)} files, {_size(upload.bytes)}, {large} of them large (LFS)")
    by_reason: dict[str, list[str]] = {}
    for item in upload.left_out:
        by_reason.setdefault(item.reason, []).append(item.path)
    lines += [f"stays here: {some(paths)}: {reason}" for reason, paths in by_reason.items()]
    lines += [f"ERROR    {text}" for text in upload.errors]
    lines += [f"warning  {text}" for text in upload.warnings]
    return "\n".join(lines)


def publish(
    folder: str | Path,
    repo: str,
    *,
    include_workshop: bool = False,
    private: bool = True,
    revision: str | None = None,
    force: bool = False,
    message: str = "Upload a checkpoint",
    token: str | None = None,
) -> Published:
    """Upload a folder in one commit, to the Hub that HF_ENDPOINT names.

    Large files go first, one after the other; the Hub knows them by their hash, so that a run that
    was stopped continues where it was when it is started again. Only then comes the commit.

    Args:
        folder: as in `plan_upload`.
        repo: Hub id; made if it does not exist.
        include_workshop: as in `plan_upload`.
        private: visibility of a repository that is made here; an existing one keeps its own.
        revision: branch, made if it does not exist; None for the main one.
        force: upload in spite of warnings.
        message: of the commit.
        token: None for that of `hf auth login`, or HF_TOKEN.

    Raises:
        ValueError: the plan has errors, or warnings without `force`.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    upload = plan_upload(folder, repo, include_workshop=include_workshop)
    _refuse(upload, force=force)
    api = HfApi(token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    if revision:
        api.create_branch(repo, branch=revision, exist_ok=True)
    operations = [
        CommitOperationAdd(file.path, str(file.source) if file.source else file.content)
        for file in upload.files
    ]
    _send_large(api, upload, operations, revision)
    commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    return Published(commit.commit_url, commit.oid, len(operations))


def _refuse(upload: Upload, *, force: bool) -> None:
    if upload.errors:
        raise ValueError(f"{upload.folder} cannot be published: {'; '.join(upload.errors)}.")
    if upload.warnings and not force:
        raise ValueError(
            f"{upload.folder} was not published: {'; '.join(upload.warnings)}. "
            "Put that right, or force the upload."
        )


def _send_large(api: Any, upload: Upload, operations: list[Any], revision: str | None) -> None:
    """Send large files ahead of the commit, with progress."""
    from tqdm.auto import tqdm

    large = [
        (file, operation)
        for file, operation in zip(upload.files, operations, strict=True)
        if file.lfs
    ]
    with tqdm(
        total=sum(file.size for file, _ in large),
        desc="large files",
        unit="B",
        unit_scale=True,
        disable=None,
    ) as bar:
        for file, operation in large:
            api.preupload_lfs_files(upload.repo, [operation], revision=revision, free_memory=False)
            bar.update(file.size)


# ---------------------------------------------------------------------- which files
def _choose(folder: Path) -> tuple[list[str], list[LeftOut]]:
    """Files of a self-contained folder."""
    names, left_out = [], []
    for root, folders, files in os.walk(folder):
        here = PurePosixPath(Path(root).relative_to(folder).as_posix())
        for name in sorted(folders):
            reason = _never(name) or (
                "has weights of its own" if (Path(root) / name / "config.json").is_file() else ""
            )
            if reason:
                folders.remove(name)
                left_out.append(LeftOut(f"{here / name}/", reason))
        for name in sorted(files):
            path = (here / name).as_posix()
            reason = _never(name)
            if reason:
                left_out.append(LeftOut(path, reason))
            else:
                names.append(path)
    return names, left_out


def _choose_of_clone(folder: Path, *, include_workshop: bool) -> tuple[list[str], list[LeftOut]]:
    """Tracked files of a clone, and the weights at its root, which are not tracked."""
    index = optional_json(folder / "model.safetensors.index.json")
    weights = {*index.get("weight_map", {}).values(), "model.safetensors"}
    weights |= {"model.safetensors.index.json"}
    names = [name for name in sorted(weights) if (folder / name).is_file()]
    shown = set(_pictures(folder / "README.md"))
    left_out = []
    for path in _tracked(folder):
        reason = next((why for part in PurePosixPath(path).parts if (why := _never(part))), "")
        if not reason and not include_workshop and path not in shown and _is_workshop(path):
            reason = "workshop, see --include-workshop"
            path = path.partition("/")[0] + "/" if "/" in path else path
        if not reason:
            names.append(path)
        elif LeftOut(path, reason) not in left_out:
            left_out.append(LeftOut(path, reason))
    return sorted(set(names)), left_out


def _is_workshop(path: str) -> bool:
    head, _, rest = path.partition("/")
    if rest:
        return head not in _MODEL_FOLDERS
    return path in _WORKSHOP_FILES or (path.startswith(".") and path != GIT_ATTRIBUTES)


def _tracked(folder: Path) -> list[str]:
    """Paths that git tracks and that are there."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "-z"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"git cannot list the tracked files of {folder}: {error}") from error
    paths = listed.stdout.decode("utf-8").split("\0")
    return [path for path in paths if path and (folder / path).is_file()]


def _never(name: str) -> str:
    """Why a file or folder of this name is never uploaded; "" if it may be."""
    return next((why for pattern, why in _NEVER.items() if fnmatch.fnmatch(name, pattern)), "")


def _pictures(card: Path) -> Iterator[str]:
    """Paths of the pictures that a card shows."""
    if card.is_file():
        for found in _SHOWN.finditer(card.read_text(encoding="utf-8")):
            yield (found[1] or found[2]).removeprefix("./")


# ---------------------------------------------------------------------- large files
def _file(folder: Path, name: str) -> File:
    source = folder / name
    size = source.stat().st_size
    return File(name, size, size > LARGE or _matches_lfs(name), source)


def _matches_lfs(name: str) -> bool:
    base = PurePosixPath(name).name
    return any(fnmatch.fnmatch(base, pattern) for pattern in LFS_PATTERNS)


def _git_attributes(folder: Path, files: Iterable[File]) -> File:
    """The folder's .gitattributes, with a line for everything that has to be a large file.

    Uploading one replaces that of the Hub, which has such lines; ours has none, because a git
    server without LFS keeps the demo's weights as they are.
    """
    path = folder / GIT_ATTRIBUTES
    own = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = own.splitlines()
    wanted = [*LFS_PATTERNS]
    wanted += [file.path for file in files if file.lfs and not _matches_lfs(file.path)]
    # git takes the last line that matches, so ours follow those of the folder.
    lines += [f"{name} {_LFS}" for name in wanted if f"{name} {_LFS}" not in lines]
    content = ("\n".join(lines) + "\n").encode("utf-8")
    unchanged = content == own.encode("utf-8")
    return File(GIT_ATTRIBUTES, len(content), False, path if unchanged else None, content)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
