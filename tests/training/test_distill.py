"""Distillation of an encoder: the loss against numbers worked out by hand, and a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from internvl import hub
from internvl.checkpoints.verify import verify
from internvl.training.distill import (
    Bridged,
    DistillRecipe,
    cosine_distillation,
    describe,
    distill,
    find_pictures,
    load_distill_recipe,
    open_student,
    run,
)
from internvl.training.recipes import Optimizer, Schedule
from tests import support

configuration_vit = hub.ring0("configuration_intern_vit")


def small_vit(**changes):
    """An encoder of one layer for tiles of 112 px."""
    settings = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 112,
        "qk_normalization": False,
        "qkv_bias": True,
        "norm_type": "layer_norm",
        "initializer_factor": 1.0,
        **changes,
    }
    return support.modeling_vit.InternVisionModel(configuration_vit.InternVisionConfig(**settings))


def pictures(count):
    rng = np.random.default_rng(4)
    for _ in range(count):
        yield Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((112, 112))


def test_loss_is_one_minus_the_cosine_averaged_over_tokens():
    student = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[1.0, 1.0], [2.0, 0.0]]])
    teacher = torch.tensor([[[6.0, 8.0], [0.0, 5.0]], [[1.0, 0.0], [-7.0, 0.0]]])
    wanted = (0.0 + 1.0 + (1 - math.sqrt(0.5)) + 2.0) / 4
    assert cosine_distillation(student, teacher).item() == pytest.approx(wanted, abs=1e-6)


def test_loss_does_not_see_lengths_and_teaches_the_student_alone():
    student = torch.randn(2, 5, 8, requires_grad=True)
    teacher = torch.randn(2, 5, 8, requires_grad=True)
    loss = cosine_distillation(student, teacher)
    torch.testing.assert_close(cosine_distillation(7 * student, 0.2 * teacher), loss)
    loss.backward()
    assert teacher.grad is None
    # A gradient that turns a feature never stretches it: it is orthogonal to the feature.
    along = (student.grad * student.detach()).sum(-1)
    torch.testing.assert_close(along, torch.zeros(2, 5), atol=1e-7, rtol=0)


def test_loss_in_bfloat16_is_computed_in_float32():
    features = torch.randn(2, 5, 512).bfloat16()
    assert cosine_distillation(features, features).item() == pytest.approx(0, abs=1e-6)


def test_loss_refuses_features_of_different_shapes():
    with pytest.raises(ValueError, match=r"\(2, 5, 8\) and the teacher \(2, 5, 16\)"):
        cosine_distillation(torch.ones(2, 5, 8), torch.ones(2, 5, 16))


def test_bridge_is_there_only_where_widths_differ():
    student, tiles = small_vit(), torch.zeros(1, 3, 112, 112)
    assert Bridged(student, 192)(tiles).shape == (1, 65, 192)
    assert not list(Bridged(student, 48).bridge.parameters())
    first, second = (Bridged(student, 192, seed=3).bridge.weight for _ in range(2))
    assert torch.equal(first, second)


def test_student_learns_from_the_demos_encoder_in_20_steps(tmp_path):
    teacher = hub.load(dtype=torch.float32).model.vision_model
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    recipe = DistillRecipe(
        student="",
        teacher="",
        images="",
        steps=20,
        batch=8,
        per_device=4,
        optimizer=Optimizer(lr=3e-3),
        schedule=Schedule(warmup=2),
        dtype="float32",
        workers=0,
        log_every=1,
    )
    student = small_vit()
    first = {name: value.clone() for name, value in student.state_dict().items()}
    result = distill(student, teacher, list(pictures(16)), recipe, folder=tmp_path)
    losses = [loss for _, loss in result.losses]
    assert len(losses) == result.steps == 20
    assert 0.9 < losses[0] < 1.1  # random directions
    assert losses[-1] < 0.75 * losses[0]
    assert f"{losses[-1]:.4f}" in describe(result)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(torch.equal(value, first[n]) for n, value in student.state_dict().items())


def test_recipe_runs_from_files_to_a_sound_encoder(tmp_path):
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for index, picture in enumerate(pictures(4)):
        picture.save(tmp_path / "pictures" / "deep" / f"{index}.png")
    (tmp_path / "student").mkdir()
    small_vit().config.save_pretrained(tmp_path / "student")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"student: {tmp_path}/student\nteacher: {support.ROOT}/demo\n"
        f"images: {tmp_path}/pictures\nsteps: 2\nbatch: 2\nper_device: 2\n"
        "dtype: float32\nworkers: 0\nlog_every: 1\n"
    )
    result = run(recipe, tmp_path / "out")
    assert (result.images, result.steps) == (4, 2)
    kinds = {"files", "config", "weights", "values"}
    found = [c for c in verify(tmp_path / "out").checks if c.name in kinds]
    assert [defect for check in found for defect in check.defects] == []
    saved = hub.load(tmp_path / "out").model.state_dict()
    assert set(saved) == set(result.student.state_dict())
    assert all(torch.equal(value, saved[n]) for n, value in result.student.state_dict().items())


def test_shipped_recipe_is_the_pair_of_table_1():
    recipe = load_distill_recipe(support.ROOT / "recipes" / "distill" / "internvit-300m.yaml")
    assert recipe.teacher == "OpenGVLab/InternViT-6B-448px-V1-5"
    config = configuration_vit.InternVisionConfig.from_pretrained(support.ROOT / recipe.student)
    # "fixed 448, 1024, 24, 4096, 16" of the table, and its teacher's tiles and patches.
    shape = (config.image_size, config.hidden_size, config.num_hidden_layers)
    assert (*shape, config.intermediate_size, config.num_attention_heads) == (
        448,
        1024,
        24,
        4096,
        16,
    )


def test_new_students_follow_the_seed_and_stored_ones_their_weights(tmp_path):
    recipe = DistillRecipe(str(tmp_path), "", "", steps=1, drop_path=0.1, seed=9)
    small_vit(num_hidden_layers=2).config.save_pretrained(tmp_path)
    torch.manual_seed(1)
    first = open_student(recipe).state_dict()
    torch.manual_seed(2)
    second = open_student(recipe).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    model = small_vit(num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    student = open_student(recipe)
    assert student.encoder.layers[1].drop_path1.rate == 0.1
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in student.state_dict().items())


def test_what_cannot_be_distilled_is_refused(tmp_path):
    recipe = DistillRecipe("", "", "", steps=1, batch=3, per_device=2, dtype="float32")
    teacher = small_vit()
    with pytest.raises(ValueError, match="tiles of 224 px with patches of 14, the teacher 112"):
        distill(small_vit(image_size=224), teacher, list(pictures(1)), recipe, folder=tmp_path)
    with pytest.raises(ValueError, match="no multiple of 2 pictures on each of 1 devices"):
        distill(small_vit(), teacher, list(pictures(1)), recipe, folder=tmp_path)
    with pytest.raises(ValueError, match="no pictures"):
        distill(small_vit(), teacher, [], recipe, folder=tmp_path)
    with pytest.raises(ValueError, match="holds no picture"):
        find_pictures(tmp_path)
    (tmp_path / "recipe.yaml").write_text("student: a\nteacher: b\nimages: c\nsteps: 1\nlr: 1\n")
    with pytest.raises(ValueError, match=r"unknown keys 'lr'"):
        load_distill_recipe(tmp_path / "recipe.yaml")
