"""What goes to the Hub, what stays here, what is refused, and that the files arrive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import constants

from internvl import hub
from internvl.checkpoints import publish as module
from internvl.checkpoints.adopt import adopt
from internvl.checkpoints.publish import describe, plan_upload, publish
from tests.checkpoints.sources import edit_json
from tests.checkpoints.upload_server import COMMIT, serve

REPO = "somebody/somewhere"
HEADER = "---\nlicense: mit\nbase_model: a/b\npipeline_tag: image-text-to-text\n"
HEADER += "library_name: transformers\ntags: [custom_code]\n---\n"


@pytest.fixture(scope="module")
def adopted(tmp_path_factory) -> Path:
    """The demo as a self-contained folder, with a card that lacks nothing."""
    folder = tmp_path_factory.mktemp("publish") / "adopted"
    adopt(hub.DEMO, folder)
    (folder / "README.md").unlink()
    (folder / "README.md").write_text(HEADER + "# Demo\n")
    return folder


@pytest.fixture
def folder(adopted, tmp_path) -> Path:
    """A copy to damage; weights are links."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith(".safetensors") else shutil.copyfile)(source, target)

    return shutil.copytree(adopted, tmp_path / "folder", copy_function=copy)


def rewrite(path: Path, old: str, new: str) -> None:
    """Replace text that has to be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# ---------------------------------------------------------------------- which files
def test_everything_of_a_self_contained_folder(adopted):
    upload = plan_upload(adopted, REPO)
    assert (upload.errors, upload.warnings, upload.left_out) == ((), (), ())
    present = {p.relative_to(adopted).as_posix() for p in adopted.rglob("*") if p.is_file()}
    assert {file.path for file in upload.files} == present | {".gitattributes"}
    large = {file.path for file in upload.files if file.lfs}
    assert large == {"tokenizer.json", *(n for n in present if n.endswith(".safetensors"))}
    assert upload.bytes == sum(f.size for f in upload.files) > 12e6
    text = describe(upload)
    assert "preprocessor/tiling.py" in text
    assert "(LFS)" in text


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.safetensors",
        "global_step100/zero.safetensors",
        "checkpoint-10/config.json",
        "preprocessor/__pycache__/tiling.cpython-311.pyc",
        ".env",
        ".env.local",
        "server.key",
        ".git/config",
        ".cache/huggingface/x",
        "model.safetensors.partial",
        "x.incomplete",
        "out.log",
        "other/config.json",
    ],
    ids=lambda name: name.replace("/", "-"),
)
def test_what_stays_here(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"{}")
    names, left_out = module._choose(folder)
    assert name not in names
    assert any(name == item.path or name.startswith(item.path) for item in left_out)
    assert all(item.reason for item in left_out)


def test_git_attributes_name_what_has_to_be_large(folder):
    (folder / ".gitattributes").write_text("* text=auto\n*.model -text\n")
    with (folder / "big.dat").open("wb") as file:
        file.truncate(module.LARGE + 1)
    upload = plan_upload(folder, REPO)
    attributes = next(file for file in upload.files if file.path == ".gitattributes")
    lines = attributes.content.decode().splitlines()
    assert lines[:2] == ["* text=auto", "*.model -text"]
    assert f"big.dat {module._LFS}" in lines
    # git itself reads them so.
    (folder / ".gitattributes").write_bytes(attributes.content)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    names = [file.path for file in upload.files]
    told = subprocess.run(
        ["git", "-C", str(folder), "check-attr", "filter", *names],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lfs = {line.split(":")[0] for line in told.splitlines() if line.endswith(": lfs")}
    assert lfs == {file.path for file in upload.files if file.lfs}


def test_a_clone_gives_its_model_part(tmp_path):
    clone = tmp_path / "clone"
    paths = ["README.md", "config.json", "modeling_x.py", "preprocessor/p.py", "demo/config.json"]
    workshop = ["internvl/__init__.py", "tests/test_x.py", "docs/a.md", "Makefile", ".ci/run"]
    for path in [*paths, *workshop, "docs/images/shown.png", ".gitignore", "untracked.txt"]:
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_text("{}")
    (clone / "README.md").write_text("![](docs/images/shown.png)")
    subprocess.run(["git", "init", "-q", str(clone)], check=True)
    tracked = ["*.md", "*.json", "*.py", "*.png", "Makefile", ".ci", ".gitignore"]
    subprocess.run(["git", "-C", str(clone), "add", *tracked], check=True)
    (clone / "model-00001-of-00002.safetensors").write_bytes(b"")  # not tracked, but a shard
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "absent.safetensors"}}
    (clone / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    names, left_out = module._choose_of_clone(clone, include_workshop=False)
    assert names == sorted([*paths, *weights, "docs/images/shown.png"])
    assert {item.path for item in left_out} == {
        "internvl/", "tests/", "docs/", "Makefile", ".ci/", ".gitignore",
    }  # fmt: skip
    names, left_out = module._choose_of_clone(clone, include_workshop=True)
    assert names == sorted([*paths, *workshop, *weights, "docs/images/shown.png"])
    assert [item.path for item in left_out] == [".gitignore"]


# ---------------------------------------------------------------------- what is refused
def remove(name: str):
    """A damage: a file is not there."""
    return lambda folder: (folder / name).unlink()


def card(old: str, new: str):
    """A damage: the card says something else."""
    return lambda folder: rewrite(folder / "README.md", old, new)


def nested_import(folder: Path) -> None:
    """A damage: a module that an entry file does not name itself lacks a sibling."""
    rewrite(folder / "preprocessor/tiling.py", "import", "\nfrom .deep import x\nimport")
    (folder / "preprocessor/deep.py").write_text("from .deeper import x\n")


ERRORS = {
    "no-card": (remove("README.md"), "no README.md"),
    "card-is-not-yaml": (card("license: mit", "license: [mit"), "header of README.md is not valid"),
    "no-config": (remove("config.json"), "no config.json"),
    "no-auto-map": (
        lambda f: edit_json(f / "config.json", auto_map=None),
        "config.json has no auto_map",
    ),
    "foreign-code": (
        lambda f: edit_json(f / "config.json", auto_map={"AutoConfig": "a/b--c.D"}),
        "takes a/b--c.D from another repository",
    ),
    "class-nobody-defines": (
        lambda f: edit_json(f / "config.json", auto_map={"AutoConfig": "conversation.Nobody"}),
        "names conversation.Nobody, which no file defines",
    ),
    "module": (remove("modeling_internvl_chat.py"), "which no file defines"),
    "sibling": (
        remove("modeling_intern_vit.py"),
        "modeling_internvl_chat.py imports modeling_intern_vit.py, which is not among the files",
    ),
    "sibling-of-a-sibling": (
        nested_import,
        "preprocessor/deep.py imports preprocessor/deeper.py, which is not among the files",
    ),
    "processor": (remove("processor_config.json"), "there is no processor_config.json"),
    "template": (remove("chat_template.jinja"), "there is no chat_template.jinja"),
    "tokenizer": (remove("tokenizer.json"), "there is no tokenizer.json or tokenizer.model"),
    "shard": (
        remove("model-00002-of-00003.safetensors"),
        "names model-00002-of-00003.safetensors, which are not here",
    ),
    "index": (remove("model.safetensors.index.json"), "need model.safetensors.index.json"),
    "stray-shard": (
        lambda f: (f / "more.safetensors").write_bytes(b""),
        "more.safetensors are not named by",
    ),
    "secret": (
        lambda f: (f / "notes.md").write_text("token: hf_" + "a1" * 17),
        "notes.md holds what looks like a Hugging Face token",
    ),
    "found-by-verify": (
        lambda f: edit_json(f / "config.json", img_context_token_id=3),
        "img_context_token_id 3",
    ),
}


@pytest.mark.parametrize("damage", ERRORS)
def test_error(folder, damage):
    change, text = ERRORS[damage]
    change(folder)
    upload = plan_upload(folder, REPO)
    assert any(text in error for error in upload.errors), upload.errors
    with pytest.raises(ValueError, match="cannot be published"):
        publish(folder, REPO, force=True)


CARDS = {
    "bare": (
        "license: other\nlicense_name: mine",
        [
            "pipeline_tag None, expected 'image-text-to-text'",
            "library_name None, expected 'transformers'",
            "license other, but no license_link",
            "no base_model",
            "lacks the tag custom_code",
            "stay here: docs/a.md",
        ],
    ),
    "unlicensed": (
        HEADER.strip("-\n").replace("license: mit", "language: en"),
        ["no license", "stay here: docs/a.md"],
    ),
}


@pytest.mark.parametrize("name", CARDS)
def test_warnings(folder, name):
    header, texts = CARDS[name]
    body = "[a](docs/a.md) [b](https://x.y/docs) [c](preprocessor) [d](LICENSE-CODE#top)"
    (folder / "README.md").write_text(f"---\n{header}\n---\n{body}\n")
    upload = plan_upload(folder, REPO)
    assert upload.errors == ()
    assert len(upload.warnings) == len(texts)
    for text, warning in zip(texts, upload.warnings, strict=True):
        assert text in warning
    with pytest.raises(ValueError, match="was not published"):
        module._refuse(upload, force=False)
    module._refuse(upload, force=True)


@pytest.mark.parametrize("repo", ["name", "a/b/c", "a/b c"], ids=["name", "three", "space"])
def test_not_a_hub_id(adopted, repo):
    with pytest.raises(ValueError, match=r"owner|[Rr]epo id"):
        plan_upload(adopted, repo)


# ---------------------------------------------------------------------- the upload
@pytest.fixture
def server(monkeypatch):
    """A Hub on this machine; large files go over HTTP, without Xet."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(REPO) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)  # HF_ENDPOINT
        yield server


def test_files_arrive(adopted, server):
    done = publish(adopted, REPO, token="hf_test")
    upload = plan_upload(adopted, REPO)
    assert (done.commit, done.files) == (COMMIT, len(upload.files))
    assert server.files.keys() == {file.path for file in upload.files}
    for file in upload.files:
        content = file.source.read_bytes() if file.source else file.content
        assert server.files[file.path] == content, file.path
    # As the two versions of huggingface_hub say it.
    assert server.created.get("private") or server.created["visibility"] == "private"
    assert server.branch == "main"
    sent = [oid for method, oid, _ in server.requests if method == "PUT"]
    assert len(sent) == sum(file.lfs for file in upload.files)
    authorised = [who for method, path, who in server.requests if path.startswith("/api/models")]
    assert set(authorised) == {"Bearer hf_test"}


def test_public_branch_in_spite_of_warnings(folder, server):
    rewrite(folder / "README.md", "base_model: a/b\n", "")
    options = {"token": "hf_test", "revision": "next"}
    publish(folder, REPO, private=False, force=True, **options)
    assert not server.created.get("private")
    assert server.created.get("visibility") in (None, "public")
    assert server.branch == "next"
    assert any(path.endswith("/branch/next") for _, path, _ in server.requests)


def test_a_stopped_upload_goes_on(adopted, server):
    options = {"token": "hf_test"}
    server.broken_after = 2
    with pytest.raises((RuntimeError, OSError)):
        publish(adopted, REPO, **options)
    assert server.puts == 2
    assert server.files == {}  # nothing is committed by halves
    server.broken_after = None
    server.requests.clear()
    done = publish(adopted, REPO, **options)
    assert len(server.files) == done.files
    sent = [oid for method, oid, _ in server.requests if method == "PUT"]
    assert len(sent) == len(server.large) - 2
