"""The command line: the answers of `chat()`, the account of `explain`, one-line errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from internvl import cli, doctor, hub
from internvl.answers import COT_OPEN
from tests import support

QUESTION = "What is this?"
SETTINGS = {"max_new_tokens": 8, "do_sample": False}
MODEL = ("--model", str(support.checkpoint("qwen2")))
BRIEF = (*MODEL, "--max-new-tokens", "8", "--dtype", "float32")


@pytest.fixture(scope="module")
def loaded() -> hub.Loaded:
    return hub.load(support.checkpoint("qwen2"), dtype="float32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    """Paths of two images, 200 x 100 and 60 x 60."""
    folder = tmp_path_factory.mktemp("my pictures")
    gradient = Image.linear_gradient("L").convert("RGB")
    radial = Image.radial_gradient("L").convert("RGB")
    gradient.resize((200, 100)).save(folder / "first.png")
    radial.resize((60, 60)).save(folder / "second.png")
    return [str(folder / "first.png"), str(folder / "second.png")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """Path of a moving GIF of six frames."""
    path = tmp_path_factory.mktemp("clips") / "clip.gif"
    frames = [Image.new("RGB", (40, 30), (40 * i, 0, 255 - 40 * i)) for i in range(6)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return str(path)


def run(*words: str, stdin: str | None = None):
    return CliRunner().invoke(cli.app, list(words), input=stdin)


def tiles(loaded: hub.Loaded, paths: list[str], **options) -> tuple[torch.Tensor, list[int]]:
    made = loaded.processor.image_processor(paths, return_tensors="pt", **options)
    return made["pixel_values"], made["num_tiles"]


def test_chat_says_what_chat_says(loaded, pictures):
    result = run("chat", pictures[0], QUESTION, *BRIEF)
    assert result.exit_code == 0, result.output
    pixels, _ = tiles(loaded, pictures[:1])
    expected = loaded.model.chat(loaded.tokenizer, pixels, QUESTION, SETTINGS)
    assert result.stdout == expected + "\n"


def test_several_images_are_labelled(loaded, pictures):
    result = run("chat", *pictures, QUESTION, *BRIEF)
    pixels, counts = tiles(loaded, pictures)
    question = f"Image-1: <image>\nImage-2: <image>\n{QUESTION}"
    expected = loaded.model.chat(
        loaded.tokenizer, pixels, question, SETTINGS, num_patches_list=counts
    )
    assert result.stdout == expected + "\n"


def test_stream_joins_to_the_answer(pictures):
    assert run("chat", pictures[0], QUESTION, *BRIEF).stdout == (
        run("chat", pictures[0], QUESTION, *BRIEF, "--stream").stdout
    )


def test_max_tiles_changes_what_the_model_sees(loaded, pictures):
    result = run("explain", pictures[0], QUESTION, *MODEL, "--max-tiles", "1", "--json")
    account = json.loads(result.stdout)
    assert account["images"][0]["tiles"] == 1
    assert account["tokens"]["visual"] == 16
    answer = run("chat", pictures[0], QUESTION, *BRIEF, "--max-tiles", "1").stdout
    pixels, _ = tiles(loaded, pictures[:1], max_tiles=1)
    assert answer == loaded.model.chat(loaded.tokenizer, pixels, QUESTION, SETTINGS) + "\n"


def test_text_only(loaded):
    expected = loaded.model.chat(loaded.tokenizer, None, QUESTION, SETTINGS)
    assert run("chat", QUESTION, *BRIEF).stdout == expected + "\n"


def test_video(loaded, clip):
    result = run("chat", QUESTION, "--video", clip, "--num-frames", "3", *BRIEF)
    assert result.exit_code == 0, result.output
    pixels = loaded.processor.video_processor([clip], num_frames=3, return_tensors="pt")
    question = "".join(f"Frame-{i}: <image>\n" for i in (1, 2, 3)) + QUESTION
    expected = loaded.model.chat(
        loaded.tokenizer,
        pixels["pixel_values_videos"],
        question,
        SETTINGS,
        num_patches_list=[1, 1, 1],
    )
    assert result.stdout == expected + "\n"


def test_explain_gives_the_ids_of_the_processor(pictures, clip):
    result = run("explain", *pictures, QUESTION, *MODEL, "--video", clip, "--json")
    account = json.loads(result.stdout)
    content = [{"type": "image", "image": path} for path in pictures]
    content += [{"type": "video", "video": clip}, {"type": "text", "text": QUESTION}]
    inputs = hub.prepare(support.checkpoint("qwen2")).processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_prompt=True,
    )
    ids = inputs["input_ids"][0]
    assert account["tokens"]["total"] == len(ids)
    assert account["tokens"]["visual"] == 16 * sum(inputs["num_tiles"])
    prompt = inputs["prompt"][0]
    for image in account["images"]:
        per_place = image["visual_tokens"] // (image.get("frames") or 1)
        shown, whole = f"<IMG_CONTEXT>x{per_place}<", "<IMG_CONTEXT>" * per_place + "<"
        prompt = prompt.replace("<img>" + whole, "<img>" + shown)
    assert account["prompt"] == prompt
    assert [image["kind"] for image in account["images"]] == ["image", "image", "video"]
    assert account["generation"]["stop"] == "<|im_end|>"


def test_explain_as_text(pictures):
    lines = run("explain", pictures[0], "What is <img>?", *MODEL).stdout.splitlines()
    assert lines[0] == "template    internvl2_5"
    assert lines[1].startswith("image 1     first.png: 200 x 100 px, 1 row x 2 columns + thumbnail")
    assert "<img><IMG_CONTEXT>x48</img>" in lines
    assert "What is <img>?<|im_end|>" in lines


def test_show_tiles(pictures, tmp_path):
    target = tmp_path / "new" / "tiles.png"
    run("explain", pictures[0], QUESTION, *MODEL, "--show-tiles", str(target))
    with Image.open(target) as drawn:
        # Two tiles, drawn at 160 px for the eye, and the thumbnail, with margins around.
        assert drawn.height == 16 + 3 * 16 + 160
        assert drawn.width >= 16 + 2 * 160 + 16 + 160 + 16
        colours = {colour for _, colour in drawn.getcolors(drawn.width * drawn.height)}
    assert (255, 64, 64) in colours


def test_dialogue(loaded, pictures):
    lines = ["Hi", f"/image {pictures[0]}", QUESTION, "/image nothing.png", "And now?", "/quit"]
    result = run("chat", *BRIEF, stdin="\n".join([*lines, "not reached"]))
    assert result.exit_code == 0, result.output
    assert "error: there is no file 'nothing.png'" in result.stderr
    pixels, _ = tiles(loaded, pictures[:1])
    ask = loaded.model.chat
    first = ask(loaded.tokenizer, None, "Hi", SETTINGS)
    asked = f"<image>\n{QUESTION}"
    history = [("Hi", first)]
    second = ask(loaded.tokenizer, pixels, asked, SETTINGS, history=history, num_patches_list=[3])
    history.append((asked, second))
    third = ask(
        loaded.tokenizer, pixels, "And now?", SETTINGS, history=history, num_patches_list=[3]
    )
    note = "first.png: 3 tiles, for the next question."
    assert result.stdout == "\n".join([first, note, second, third, ""])


def test_votes(pictures):
    words = ("chat", pictures[0], "Is it (A) red or (B) blue?", *BRIEF, "--votes", "3")
    result = run(*words, "--seed", "5")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("votes  ")
    counted = sum(int(part.rsplit(": ", 1)[1].split(";")[0]) for part in result.stderr.split(", "))
    assert counted == 3
    again = run(*words, "--seed", "5")
    assert (again.stdout, again.stderr) == (result.stdout, result.stderr)


def test_cot_asks_with_the_prompt_of_the_report(loaded, pictures):
    short = ("--dtype", "float32", "--max-new-tokens", "20", "--stream")
    result = run("chat", pictures[0], QUESTION, *MODEL, *short, "--cot")
    pixels, _ = tiles(loaded, pictures[:1])
    expected = loaded.model.chat(
        loaded.tokenizer, pixels, f"{QUESTION}\n{COT_OPEN}", {**SETTINGS, "max_new_tokens": 20}
    )
    assert result.stdout == f"{expected}\n"
    for option in (("--cot",), ("--votes", "2")):
        refused = run("chat", *MODEL, *option, stdin="Hi\n")
        assert refused.exit_code == 2
        assert "need a question" in refused.stderr


def test_dialogue_takes_back_and_informs(loaded):
    result = run("chat", *BRIEF, stdin="/undo\nHello\n/info\n/undo\n/info\n")
    hello = loaded.model.chat(loaded.tokenizer, None, "Hello", SETTINGS)
    lines = result.stdout.removeprefix("there is nothing to take back.\n")
    assert lines.startswith(f"{hello}\nprompt ")
    assert "took back: Hello." in lines
    assert lines.count("keys and values") == 2


def test_dialogue_forgets(loaded):
    result = run("chat", *BRIEF, stdin="Hi\n/reset\nHi\n/help\n")
    hello = loaded.model.chat(loaded.tokenizer, None, "Hi", SETTINGS)
    assert result.stdout.startswith(f"{hello}\nthe dialogue is empty.\n{hello}\n/image PATH")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("chat", "missing.png", QUESTION), "there is no file 'missing.png'"),
        (("chat", "missing.png"), "there is no file 'missing.png'"),
        (("chat", QUESTION, "--model", "./nowhere"), "neither a folder nor the id"),
        (("chat", QUESTION, *MODEL, "--dtype", "int7"), "dtype is 'int7'"),
        (("chat", "https://example.org/a.png", QUESTION, *MODEL), "allow_urls"),
        (("chat", "data:image/png;base64,AAAA", QUESTION, *MODEL), "image"),
        (("explain", "<image> what?", *MODEL), "more <image> tags"),
        (("explain", *MODEL), "there is no question"),
        (("explain", QUESTION, *MODEL, "--show-tiles", "x.png"), "no images to draw"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(words, complaint):
    result = run(*words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert complaint in line


def test_doctor_reports():
    report = json.loads(run("doctor", "--json").stdout)
    assert report["packages"]["torch"] == torch.__version__
    assert report["problems"] == []
    assert {"sdpa", "eager"} <= set(report["attention"])
    text = run("doctor").stdout
    assert "ready." in text
    assert torch.__version__ in text


def test_doctor_names_what_is_wrong(monkeypatch):
    found = {"transformers": "4.44.2", "einops": None}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: found.get(name, real(name)))
    result = run("doctor")
    assert result.exit_code == 1
    assert "PROBLEM: transformers is 4.44.2, >=4.57,<6 is needed" in result.stdout
    assert "PROBLEM: einops is missing" in result.stdout


def test_doctor_asks_for_what_the_package_asks_for():
    project = tomllib.loads((support.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {f"{name}{versions}" for name, versions in doctor.REQUIRED.items() if versions}
    assert wanted == set(project["dependencies"])


def test_a_fresh_process_loads_from_a_hub_cache(loaded, pictures, tmp_path):
    """The whole way, offline: python -m internvl, a Hub id, a cache as the Hub client leaves it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--InternVL2_5-1B"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    shutil.copytree(support.checkpoint("qwen2"), snapshot)
    marker = tmp_path / "marker"
    for name in ("configuration_internvl_chat.py", "modeling_internvl_chat.py"):
        (snapshot / name).write_text(f"open({str(marker)!r}, 'w')")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    words = ["chat", pictures[0], QUESTION, *BRIEF[2:], "--model", "someone/InternVL2_5-1B"]
    result = subprocess.run(
        [sys.executable, "-m", "internvl", *words],
        cwd=support.ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr
    pixels, _ = tiles(loaded, pictures[:1])
    expected = loaded.model.chat(loaded.tokenizer, pixels, QUESTION, SETTINGS)
    assert result.stdout == expected + "\n"
    assert not marker.exists()


def test_a_question_may_look_like_anything_but_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"")
    assert cli.split_inputs(["a.png", "is it a.png?"]) == (["a.png"], "is it a.png?")
    assert cli.split_inputs(["a.png"]) == (["a.png"], None)
    assert cli.split_inputs([]) == ([], None)
    assert cli.split_inputs(["x" * 5000]) == ([], "x" * 5000)
    assert cli.split_inputs(["data:image/png;base64,AA==", "?"]) == (
        ["data:image/png;base64,AA=="],
        "?",
    )
