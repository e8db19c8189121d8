"""Plans: exact counts, the right engine, honest refusals, and the page that is made of them."""

from __future__ import annotations

import ast
import json

import pytest

from internvl.checkpoints import build_scaling
from internvl.checkpoints.device_map import GIB
from internvl.checkpoints.plan import describe, plan, published_config, resolve_config
from tests import support

COUNTS = {
    "1B": 938_193_024,
    "2B": 2_205_754_368,
    "4B": 3_712_637_952,
    "8B": 8_075_365_376,
    "26B": 25_514_186_112,
    "38B": 38_388_164_992,
    "78B": 78_408_318_336,
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameters_and_weights(size):
    planned = plan(size, gpus="8x80GiB")
    assert planned.parameters == COUNTS[size]
    assert planned.weights == 2 * COUNTS[size]


def test_names_folders_and_files():
    assert published_config("2.5-8B") == published_config("InternVL2_5-8B")
    assert published_config("InternVL2-8B").template != published_config("8B").template
    folder = support.ROOT / "variants" / "InternVL2-40B"
    for where in (folder, folder / "config.json", "InternVL2-40B", "2-40b"):
        assert resolve_config(where)[1] == published_config("InternVL2-40B")
    with pytest.raises(ValueError, match="'9B' is neither a folder nor a published model"):
        plan("9B")
    with pytest.raises(ValueError, match="plans are for chat models"):
        plan(support.ROOT / "variants" / "InternViT-6B-224px")


def test_the_78b_on_two_cards():
    planned = plan("78B", gpus="2x80GiB", context=4096)
    assert f"{planned.weights / GIB:.1f}" == "146.0"
    assert "short contexts only" in describe(planned)
    assert 4096 <= planned.largest_context < 16384
    refused = plan("78B", gpus="2x80GiB", images=4, context=16384, batch=2)
    assert refused.engine is None
    assert min(refused.headroom) < 0
    text = describe(refused)
    assert "it does not fit: weights of 146.0 GiB" in text
    assert "3 GPUs of 80 GiB would hold it" in text
    assert "it would fit in int8" in text


@pytest.mark.parametrize(
    ("options", "engine", "said"),
    [
        ({"model": "8B", "gpus": "24GiB"}, "one GPU", 'device_map="auto"'),
        ({"model": "8B", "gpus": "2x24GiB"}, "one GPU", "nothing has to cross"),
        ({"model": "26B", "gpus": "4x24GiB"}, "tensor parallel", "tp_size=4"),
        ({"model": "26B", "gpus": "3x24GiB"}, "device_map", "48 heads, 8 key heads"),
        ({"model": "InternVL2-40B", "gpus": "6x24GiB"}, "device_map", "56 heads, 8 key heads"),
        ({"model": "78B", "gpus": "2x48GiB", "dtype": "int8"}, "device_map", "bnb-int8"),
        ({"model": "1B", "gpus": "4x24GiB", "batch": 16}, "vLLM", "--tensor-parallel-size 1"),
        ({"model": "26B", "gpus": "80GiB", "batch": 8, "dtype": "int4"}, "one GPU", "bnb-nf4"),
        ({"model": "26B", "gpus": "4x24GiB"}, "tensor parallel", "adopt OpenGVLab/InternVL2_5-26B"),
        ({"model": "8B", "gpus": "8x80GiB", "train": "stage2"}, "FSDP2", "fsdp_size=8"),
        ({"model": "78B", "gpus": "2x80GiB", "train": "stage2"}, None, "GiB short on a GPU"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_engine_and_snippet(options, engine, said):
    planned = plan(**options)
    assert planned.engine == engine
    assert said in describe(planned)
    assert (min(planned.headroom) >= 0) == (engine is not None)
    json.dumps(planned.as_dict())
    if engine in ("one GPU", "device_map", "tensor parallel", "FSDP2"):
        ast.parse(planned.snippet)


def test_the_largest_context_is_the_largest():
    planned = plan("8B", gpus="24GiB")
    longest = planned.largest_context
    assert plan("8B", gpus="24GiB", context=longest).engine == "one GPU"
    assert plan("8B", gpus="24GiB", context=longest + 256).engine is None


def test_what_cannot_be():
    with pytest.raises(ValueError, match="are up to 13312 visual tokens, more than the context"):
        plan("8B", images=4, context=8192)
    with pytest.raises(ValueError, match="made for 32768"):
        plan("1B", context=100_000)
    assert plan("InternVL2-40B", gpus="8x24GiB").work.context == 4096
    with pytest.raises(ValueError, match="dtype is 'int3'"):
        plan("1B", dtype="int3")
    with pytest.raises(ValueError, match="int8 are not trained"):
        plan("1B", dtype="int8", train="stage2")
    with pytest.raises(ValueError, match="batch is 0"):
        plan("1B", batch=0)


def test_fewer_tiles_need_less():
    few, many = (plan("26B", max_tiles=tiles).loads[0].vision for tiles in (1, 12))
    assert 0 < few < many


def test_page_is_what_the_generator_writes(tmp_path):
    assert build_scaling.main(["--check"]) == 0
    stale = tmp_path / "scaling.md"
    stale.write_text("old")
    assert build_scaling.main(["--check"], stale) == 1


def test_a_picture_shows_what_fills_each_gpu(tmp_path, monkeypatch):
    axes_module = pytest.importorskip("matplotlib.axes")
    from internvl.checkpoints.plan_picture import draw

    bars, barh = [], axes_module.Axes.barh

    def record(axes, place, width, *args, left=0.0, **style):
        bars.append((place, left, width, style.get("edgecolor")))
        return barh(axes, place, width, *args, left=left, **style)

    monkeypatch.setattr(axes_module.Axes, "barh", record)
    fits, short = plan("26B", gpus="3x24GiB"), plan("78B", gpus="80GiB")
    text = draw([fits, short], tmp_path / "plan.svg").read_text("utf-8")
    assert "26B, bf16, 3 x 24 GiB: device_map" in text
    assert "78B, bf16, 1 x 80 GiB: does not fit" in text
    frames = [bar for bar in bars if bar[3]]
    assert [round(width) for _, _, width, _ in frames] == [24, 24, 24, 80]
    assert len({colour for *_, colour in frames}) == 2  # what does not fit is told apart
    for (place, *_), load in zip(frames, (*fits.loads, *short.loads), strict=True):
        parts = [bar for bar in bars if bar[0] == place and not bar[3]][1:]  # first: the reserve
        assert sum(width for _, _, width, _ in parts) == pytest.approx(load.used / 2**30)
        assert parts[-1][1] + parts[-1][2] == pytest.approx(load.used / 2**30)
    with pytest.raises(ValueError, match="no plan"):
        draw([], tmp_path / "none.svg")


def test_the_command_draws(tmp_path):
    pytest.importorskip("matplotlib")
    from typer.testing import CliRunner

    from internvl.cli import app

    picture = tmp_path / "new" / "plan.png"
    result = CliRunner().invoke(app, ["plan", "8B", "--gpus", "24GiB", "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert picture.read_bytes()[:4] == b"\x89PNG"
    refused = CliRunner().invoke(app, ["plan", "8B", "--plot", str(tmp_path / "plan.pdf")])
    assert refused.exit_code == 2
    assert "expected a name that ends in .png or .svg" in refused.stderr
