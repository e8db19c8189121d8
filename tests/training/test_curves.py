"""`internvl train curves`: what a run logged, drawn."""

from __future__ import annotations

import json

import pytest

from internvl.training.curves import Curve, draw, read, save


def run(folder, rows, step):
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(
        json.dumps({"log_history": rows}), "utf-8"
    )
    return folder


def test_the_newest_checkpoint_tells_all_steps(tmp_path):
    early = [{"step": 1, "loss": 3.0}]
    late = [*early, {"step": 10, "eval_loss": 2.5}, {"step": 10, "loss": 2.0}]
    run(tmp_path / "stage1", early, 9)
    (curve,) = read(run(tmp_path / "stage1", late, 10))
    assert curve == Curve("stage1", ((1, 3.0), (10, 2.0)), ((10, 2.5),))


def test_json_gives_the_same_curves_back(tmp_path):
    curves = [Curve("a", ((1, 3.0), (2, 2.0)), ((2, 2.5),)), Curve("b", ((1, 1.5),))]
    save(curves, tmp_path / "curves.json")
    assert read(tmp_path / "curves.json") == curves


@pytest.mark.parametrize("overlay", [False, True])
def test_stages_follow_each_other_and_comparisons_begin_together(tmp_path, overlay, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, **style: drawn.append((x, y)) or plot(self, x, y, **style)
    )
    curves = [Curve("a", ((1, 3.0), (20, 2.0)), ((20, 2.5),)), Curve("b", ((1, 1.5),))]
    picture = draw(curves, tmp_path / "curves.svg", overlay=overlay)
    begin = 0 if overlay else 20
    assert drawn == [([1, 20], [3.0, 2.0]), ([20], [2.5]), ([begin + 1], [1.5])]
    assert ">a<" in picture.read_text("utf-8")


def test_what_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        read(tmp_path)
    with pytest.raises(ValueError, match="expected a name that ends"):
        draw([Curve("a", ((1, 1.0),))], tmp_path / "curves.gif")
    with pytest.raises(ValueError, match=r"\['a'\] logged no loss"):
        draw([Curve("a", ())], tmp_path / "curves.png")
