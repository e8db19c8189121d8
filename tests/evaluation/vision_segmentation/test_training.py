"""Whole runs on coloured rectangles, with a small encoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from internvl.evaluation.vision.segmentation import models, run, state, training
from internvl.evaluation.vision.segmentation.layouts import Data, Pair, find
from internvl.evaluation.vision.segmentation.settings import Settings
from tests.evaluation.vision_segmentation.small import (
    CLASSES,
    MEAN,
    STD,
    make_encoder,
    write_rectangles,
)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    root = write_rectangles(tmp_path_factory.mktemp("rectangles"))
    return find("folders", root, "train"), find("folders", root, "val")


def settings_of(mode: str, **fields) -> Settings:
    defaults = {"crop": 56, "iterations": 4, "batch": 4, "lr": 5e-3, "channels": 8, "warmup": 1}
    return Settings(mode=mode, **{**defaults, **fields})


def constant_miou(data: Data) -> float:
    """mIoU of the best answer that does not look at the image."""
    masks = np.concatenate([data.load(index)[1].ravel() for index in range(len(data.pairs))])
    share = np.bincount(masks[masks != 255], minlength=len(data.class_names)) / masks.size
    return 100 * share.max() / len(data.class_names)


# ---------------------------------------------------------------------- what comes out
@pytest.mark.parametrize(
    ("mode", "lr", "steps"), [("linear", 5e-2, 12), ("head", 3e-2, 24), ("full", 2e-2, 24)]
)
def test_training_beats_a_constant(mode, lr, steps, splits, tmp_path):
    data, test = splits
    encoder = make_encoder(freeze=mode != "full")
    before = encoder.fingerprint()
    settings, work = settings_of(mode, iterations=steps, lr=lr), run.Work(log_every=steps // 4)
    results = run.segment(encoder, data, test, settings, tmp_path, work=work, about={"model": "x"})
    losses = [each["loss"] for each in results["losses"]]
    assert [each["step"] for each in results["losses"]] == [
        steps * part // 4 for part in (1, 2, 3, 4)
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert results["miou"] > constant_miou(test) + 8
    assert results["aacc"] > 0
    assert encoder.fingerprint() == before  # the caller's is not touched
    own = results["encoder"]
    assert own["frozen"] == (mode != "full")
    assert (own["before"] == own["after"]) == (mode != "full")
    assert own["before"] == before  # the crop has the size of the encoder: nothing was resized
    assert (results["mode"], results["model"], results["test_images"]) == (mode, "x", 3)
    assert [each["name"] for each in results["classes"]] == list(CLASSES)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    # The model that was written gives the same numbers.
    alone = run.evaluate_only(make_encoder(freeze=mode != "full"), test, tmp_path)
    assert {key: alone[key] for key in ("miou", "macc", "aacc", "classes")} == {
        key: results[key] for key in ("miou", "macc", "aacc", "classes")
    }


def test_frozen_weights_keep_their_bits(splits, tmp_path):
    data, _ = splits
    segmenter = run.new_segmenter(make_encoder(), settings_of("head"), CLASSES)
    before = {name: value.clone() for name, value in segmenter.model.state_dict().items()}
    crops = training.Crops(data, crop=56, mean=MEAN, std=STD, seed=0)
    train(segmenter, crops, tmp_path)
    after = segmenter.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert not any("encoder.model." in name for name in changed)
    learning = {name for name, p in segmenter.model.named_parameters() if p.requires_grad}
    assert changed >= learning  # the deconvolutions among them
    assert "backbone.up1.0.weight" in learning


def train(segmenter, crops, folder, **options):
    return training.train(
        segmenter.model,
        crops,
        segmenter.settings,
        folder,
        processes=run.Processes(),
        facts={"frozen": segmenter.encoder.frozen, "num_layers": segmenter.encoder.num_layers},
        **options,
    )


def test_an_encoder_that_changes_is_noticed(splits, tmp_path, monkeypatch):
    data, test = splits

    def spoil(model, *args, **kwargs):
        with torch.no_grad():
            model.encoder.model.embeddings.class_embedding[0, 0, 0] += 1e-6
        return training.Losses()

    monkeypatch.setattr(run, "train", spoil)
    with pytest.raises(RuntimeError, match="frozen encoder changed"):
        run.segment(make_encoder(), data, test, settings_of("linear"), tmp_path)


# ---------------------------------------------------------------------- going on
def test_a_stopped_run_ends_as_the_whole_one(splits, tmp_path):
    """In full tuning, where dropout and drop path draw random numbers, too."""
    data, _ = splits
    settings = settings_of("full", iterations=3, accumulation=2)
    crops = training.Crops(data, crop=56, mean=MEAN, std=STD, seed=0)

    def fresh():
        return run.new_segmenter(make_encoder(freeze=False), settings, CLASSES)

    whole, stopped, resumed = fresh(), fresh(), fresh()
    before = torch.random.get_rng_state()
    losses = train(whole, crops, tmp_path / "a", log_every=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)  # whatever the state of torch's generator
    train(stopped, crops, tmp_path / "b", log_every=2, stop_after=1)
    found = train(resumed, crops, tmp_path / "b", log_every=2, resume=True, workers=1)
    assert found == losses
    assert [each["step"] for each in found.kept] == [2]
    assert len(found.recent) == 1
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert [path.name for path in state.checkpoints(tmp_path / "b")] == [
        "checkpoint-000001.pt",
        "checkpoint-000003.pt",
    ]
    assert not list((tmp_path / "b").glob(".*"))


def test_another_run_is_not_gone_on_from(splits, tmp_path):
    data, test = splits
    run.segment(make_encoder(), data, test, settings_of("linear", iterations=2), tmp_path)
    with pytest.raises(ValueError, match="holds a run"):
        run.segment(make_encoder(), data, test, settings_of("linear", iterations=2), tmp_path)
    work = run.Work(resume=True)
    with pytest.raises(ValueError, match=r"lr was 0\.005, is 0\.1"):
        run.segment(
            make_encoder(), data, test, settings_of("linear", iterations=2, lr=0.1), tmp_path,
            work=work,
        )  # fmt: skip
    fewer = Data(data.pairs[1:], data.class_names)
    with pytest.raises(ValueError, match="images was"):
        run.segment(
            make_encoder(), fewer, test, settings_of("linear", iterations=2), tmp_path, work=work
        )
    with pytest.raises(ValueError, match="encoder was"):
        run.segment(
            make_encoder(seed=1), data, test, settings_of("linear", iterations=2), tmp_path,
            work=work,
        )  # fmt: skip
    with pytest.raises(ValueError, match="another encoder"):
        run.restore(make_encoder(seed=1), tmp_path)
    other = Data(test.pairs, (*CLASSES, "green"))
    trained = run.restore(make_encoder(), tmp_path)
    with pytest.raises(ValueError, match="knows 3 classes"):
        run.evaluate(trained, other)
    (tmp_path / "segmenter.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="train first"):
        run.restore(make_encoder(), tmp_path)


def test_weights_of_another_model_are_named(tmp_path):
    model = run.new_segmenter(make_encoder(), settings_of("linear"), CLASSES).model
    weights = state.own_weights(model, frozen=True)
    assert set(weights) == {
        *("classifier.weight", "classifier.bias", "norm.weight", "norm.bias"),
        *("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
    }
    for wrong in (
        {name: value for name, value in weights.items() if name != "norm.bias"},
        {**weights, "norm.bias": torch.zeros(7)},
        {**weights, "extra": torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match=r"norm\.bias|extra"):
            state.put_weights(model, wrong, frozen=True, source=tmp_path)


def test_old_checkpoints_go(splits, tmp_path):
    data, _ = splits
    crops = training.Crops(data, crop=56, mean=MEAN, std=STD, seed=0)
    segmenter = run.new_segmenter(make_encoder(), settings_of("linear"), CLASSES)
    train(segmenter, crops, tmp_path, save_every=1)
    assert [path.name for path in state.checkpoints(tmp_path)] == [
        "checkpoint-000003.pt",
        "checkpoint-000004.pt",
    ]


def test_gradient_checkpointing_changes_nothing():
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    found = []
    for checkpointing in (False, True):
        settings = settings_of("full", gradient_checkpointing=checkpointing)
        segmenter = run.new_segmenter(make_encoder(freeze=False), settings, CLASSES)
        assert segmenter.encoder.model.is_gradient_checkpointing == checkpointing
        objective = models.Objective(segmenter.model.train())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)  # of drop path and dropout
            loss = objective(images, torch.ones(2, 56, 56, dtype=torch.int64))
            loss.backward()
        weight = segmenter.encoder.model.encoder.layers[1].mlp.fc1.weight
        found.append((loss.detach(), weight.grad))
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


# ---------------------------------------------------------------------- order
def test_every_image_once_per_epoch():
    data = Data(tuple(Pair(None, None) for _ in range(7)), CLASSES)
    crops = training.Crops(data, crop=56, mean=MEAN, std=STD, seed=3)
    epochs = [[crops.index(7 * epoch + place) for place in range(7)] for epoch in range(3)]
    assert all(sorted(each) == list(range(7)) for each in epochs)
    assert epochs[0] != epochs[1]
    other = training.Crops(data, crop=56, mean=MEAN, std=STD, seed=4)
    assert [other.index(place) for place in range(7)] != epochs[0]


def test_a_crop_differs_from_epoch_to_epoch_but_not_from_run_to_run(splits):
    data, _ = splits
    crops = training.Crops(data, crop=56, mean=MEAN, std=STD, seed=0)
    position = next(p for p in range(8, 16) if crops.index(p) == crops.index(0))
    assert not torch.equal(crops[0][0], crops[position][0])
    assert torch.equal(crops[0][0], crops[0][0])


def test_processes_and_parts_share_a_batch():
    settings = settings_of("linear", batch=12)
    alone = list(training.positions(range(2, 4), settings))
    assert alone == [list(range(24, 36)), list(range(36, 48))]
    split = settings_of("linear", batch=12, accumulation=2)
    shares = [list(training.positions(range(2, 4), split, rank=rank, world=3)) for rank in range(3)]
    for step, expected in enumerate(alone):
        parts = [share[2 * step + part] for share in shares for part in range(2)]
        assert [len(part) for part in parts] == [2] * 6
        assert [position for part in parts for position in part] == expected
    with pytest.raises(ValueError, match="multiple of 10"):
        list(training.positions(range(1), settings_of("linear", batch=12, accumulation=2), world=5))


def test_one_crop_at_a_time_is_refused_for_upernet(splits, tmp_path):
    data, _ = splits
    crops = training.Crops(data, crop=56, mean=MEAN, std=STD, seed=0)
    segmenter = run.new_segmenter(make_encoder(), settings_of("head", accumulation=4), CLASSES)
    with pytest.raises(ValueError, match="one crop at a time"):
        train(segmenter, crops, tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(splits, tmp_path):
    data, _ = splits
    segmenter = run.new_segmenter(make_encoder(), settings_of("linear"), CLASSES)
    with torch.no_grad():
        segmenter.model.classifier.bias[0] = float("nan")
    weight = segmenter.model.classifier.weight.clone()
    crops = training.Crops(data, crop=56, mean=MEAN, std=STD, seed=0)
    with pytest.raises(FloatingPointError, match="step 0 is nan"):
        train(segmenter, crops, tmp_path)
    assert torch.equal(segmenter.model.classifier.weight, weight)


def test_prediction_has_the_size_of_the_image():
    segmenter = run.new_segmenter(make_encoder(), settings_of("linear"), CLASSES)
    for shape in ((40, 100, 3), (131, 57, 3)):
        predicted = segmenter.predict(np.zeros(shape, np.uint8))
        assert predicted.shape == shape[:2]
        assert int(predicted.max()) < 3
    assert isinstance(segmenter.model, models.LinearProbe)
    assert not segmenter.model.training
