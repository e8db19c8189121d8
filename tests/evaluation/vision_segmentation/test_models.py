from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import UperNetForSemanticSegmentation

from internvl.evaluation.vision.segmentation import models, pyramid, state
from internvl.evaluation.vision.segmentation.settings import Settings
from tests.evaluation.vision_segmentation.small import make_encoder

CLASSES = ("a", "b", "c")


def build(mode: str, **fields):
    encoder = models.prepared(
        make_encoder(freeze=mode != "full"), crop=56, drop_path=0.4 if mode == "full" else 0.0
    )
    settings = Settings(mode=mode, crop=56, channels=8, iterations=10, **fields)
    return models.build(encoder, settings, CLASSES, seed=0)


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- the pyramid
def test_out_indices_of_the_official_configs():
    assert pyramid.out_indices(48) == (11, 23, 35, 47)
    assert pyramid.out_indices(45) == (11, 22, 33, 44)
    assert pyramid.out_indices(24) == (5, 11, 17, 23)  # InternViT-300M
    assert pyramid.out_indices(4) == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="3 blocks"):
        pyramid.out_indices(3)


@pytest.mark.parametrize(("height", "width"), [(56, 56), (56, 84), (70, 42)])
def test_maps_and_strides(height, width):
    backbone = pyramid.Pyramid(make_encoder(layers=5))
    maps = backbone(pixels(2, 3, height, width))
    rows, columns = height // 14, width // 14
    sizes = [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns)]
    sizes.append((rows // 2, columns // 2))
    assert [tuple(each.shape) for each in maps] == [(2, 32, *size) for size in sizes]
    assert backbone.channels == [32] * 4
    output = backbone.forward_with_filtered_kwargs(
        pixels(2, 3, height, width), output_hidden_states=True, output_attentions=None
    )
    assert all(torch.equal(a, b) for a, b in zip(output.feature_maps, maps, strict=True))


def test_maps_are_of_the_right_blocks():
    encoder = make_encoder(layers=5)
    backbone = pyramid.Pyramid(encoder)
    images = pixels(1, 3, 56, 70)
    with torch.no_grad():
        hidden = encoder.model(images, output_hidden_states=True).hidden_states
        third, fourth = backbone(images)[2:]
    as_map = [each[:, 1:].transpose(1, 2).reshape(1, 32, 4, 5) for each in hidden]
    assert pyramid.out_indices(5) == (1, 2, 3, 4)
    torch.testing.assert_close(third, as_map[4])  # output of block 3, counted from 0
    torch.testing.assert_close(fourth, F.max_pool2d(as_map[5], 2))
    with pytest.raises(ValueError, match="two patches"):
        backbone(pixels(1, 3, 14, 56))


def test_a_norm_over_channels():
    norm = pyramid.ChannelNorm(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    values = pixels(2, 6, 3, 5) * 3 + 1
    expected = F.layer_norm(values.movedim(1, -1), (6,), norm.weight, norm.bias, 1e-6)
    torch.testing.assert_close(norm(values), expected.movedim(-1, 1))
    assert norm(values.bfloat16()).dtype == torch.bfloat16


def test_deconvolutions_begin_as_official():
    weight = pyramid._deconvolution(64).weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / 256), rel=0.03)


def test_half_precision_is_for_the_encoder_and_the_pyramid():
    encoder = make_encoder()
    encoder.autocast = torch.bfloat16
    maps = pyramid.Pyramid(encoder)(pixels(1, 3, 56, 56))
    assert {each.dtype for each in maps} == {torch.float32}
    assert torch.equal(maps[0], maps[0].bfloat16().float())  # it was computed in bfloat16


# ---------------------------------------------------------------------- the encoder
def test_the_position_embedding_is_resized_once():
    encoder = make_encoder()
    before = encoder.fingerprint()
    other = models.prepared(encoder, crop=84, drop_path=0.3)
    assert encoder.fingerprint() == before
    assert other.model.embeddings.position_embedding.shape[1] == 1 + 36
    rates = [getattr(layer.drop_path1, "rate", 0) for layer in other.model.encoder.layers]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert encoder.model.config.drop_path_rate == 0
    images = pixels(1, 3, 84, 84)  # the same as resizing in every forward pass
    torch.testing.assert_close(
        other.features(images).tokens, encoder.features(images).tokens, rtol=0, atol=1e-6
    )
    assert models.prepared(encoder, crop=56, drop_path=0.0).fingerprint() == before
    # Weights are shared where nothing can change them, and only there.
    layers = [each.model.encoder.layers[0].mlp.fc1.weight for each in (encoder, other)]
    assert layers[0].data_ptr() == layers[1].data_ptr()
    learning = make_encoder(freeze=False)
    copied = models.prepared(learning, crop=56, drop_path=0.0)
    pairs = zip(learning.parameters(), copied.parameters(), strict=True)
    assert all(one.data_ptr() != two.data_ptr() for one, two in pairs)
    assert all(each.requires_grad for each in copied.parameters())
    assert not any(each.requires_grad for each in other.parameters())
    for crop in (60, 14):
        with pytest.raises(ValueError, match=f"crop is {crop}"):
            models.prepared(encoder, crop=crop, drop_path=0.0)


# ---------------------------------------------------------------------- the models
def test_linear_probe_is_norm_and_matrix():
    model = build("linear").eval()
    model.norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
    model.norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    images = pixels(2, 3, 56, 70)
    patches = model.encoder.features(images).patches  # (2, 20, 32)
    scaled = (patches - model.norm.running_mean) / torch.sqrt(model.norm.running_var + 1e-5)
    expected = scaled @ model.classifier.weight[:, :, 0, 0].T + model.classifier.bias
    (logits,) = model.logits(images)
    assert logits.shape == (2, 3, 4, 5)
    torch.testing.assert_close(logits.flatten(2).transpose(1, 2), expected)


@pytest.mark.parametrize(("mode", "auxiliary"), [("head", (8, 10)), ("full", (4, 5))])
def test_upernet_is_that_of_transformers(mode, auxiliary):
    model = build(mode)
    assert isinstance(model, UperNetForSemanticSegmentation)
    images = pixels(2, 3, 56, 70)
    first, second = model.train().logits(images)
    assert first.shape == (2, 3, 16, 20)
    assert second.shape == (2, 3, *auxiliary)  # official in_index: 1 in head, 2 in full tuning
    model.eval()
    (logits,) = model.logits(images)
    whole = model(images).logits  # the inherited forward
    upsampled = F.interpolate(logits, size=(56, 70), mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole, upsampled)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert (model.decode_head.channels, model.auxiliary_head.channels) == (8, 8)


def test_heads_are_new_and_the_encoder_is_not():
    encoder = make_encoder(freeze=False)
    before = encoder.fingerprint()
    settings = Settings(mode="full", crop=56, channels=64, iterations=10)
    state_of_torch = torch.random.get_rng_state()
    first, again, other = (
        models.build(encoder, settings, CLASSES, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), state_of_torch)
    assert encoder.fingerprint() == before
    heads = [state.own_weights(each, frozen=True) for each in (first, again, other)]
    assert all(torch.equal(value, heads[1][name]) for name, value in heads[0].items())
    name = "decode_head.fpn_bottleneck.conv.weight"
    assert not torch.equal(heads[0][name], heads[2][name])
    # mmcv: N(0, 2 / fan_out), fan_out = 64 * 3 * 3; classifiers N(0, 0.01).
    assert float(heads[0][name].std()) == pytest.approx(math.sqrt(2 / 576), rel=0.02)
    classifier = heads[0]["decode_head.classifier.weight"]
    assert float(classifier.std()) == pytest.approx(0.01, rel=0.2)


def test_dropout_is_on_channels_and_in_training_only():
    classifier = models.DroppingClassifier(200, 1, rate=0.5)
    torch.nn.init.ones_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    ones = torch.ones(1, 200, 3, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = classifier.train()(ones)
    assert dropped.unique().numel() == 1  # whole maps are dropped
    assert 100 < float(dropped[0, 0, 0, 0]) < 300
    assert float(dropped[0, 0, 0, 0]) != 200
    assert (classifier.eval()(ones) == 200).all()


def test_loss_is_over_all_pixels():
    logits = pixels(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    labels[0, :4] = 255
    up = F.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False)
    logarithms = up.log_softmax(1)
    total = 0.0
    for n, row, column in (labels != 255).nonzero().tolist():
        total -= float(logarithms[n, labels[n, row, column], row, column])
    assert float(models.pixel_loss(logits, labels)) == pytest.approx(total / 128, rel=1e-5)
    # So the loss of a batch is the mean of those of its parts.
    parts = [models.pixel_loss(logits[n : n + 1], labels[n : n + 1]) for n in range(2)]
    assert float(sum(parts) / 2) == pytest.approx(float(models.pixel_loss(logits, labels)))
    assert float(models.pixel_loss(logits, torch.full_like(labels, 255))) == 0


def test_objective_adds_the_auxiliary_loss():
    model = build("head").train()
    model.decode_head.classifier.rate = model.auxiliary_head.classifier.rate = 0.0
    images, labels = pixels(2, 3, 56, 56), torch.ones(2, 56, 56, dtype=torch.int64)
    first, second = (models.pixel_loss(each, labels) for each in model.logits(images))
    torch.testing.assert_close(models.Objective(model)(images, labels), first + 0.4 * second)


def test_misfits_are_refused():
    settings = Settings(mode="full", crop=56, iterations=10)
    with pytest.raises(ValueError, match=r"frozen.*freeze=False"):
        models.build(make_encoder(), settings, CLASSES, seed=0)
    with pytest.raises(ValueError, match="freeze=True"):
        models.build(make_encoder(freeze=False), Settings(mode="head"), CLASSES, seed=0)
    with pytest.raises(ValueError, match="at least two"):
        models.build(make_encoder(), Settings(mode="linear"), ("one",), seed=0)
    with pytest.raises(ValueError, match="--mode linear"):
        models.build(make_encoder(layers=3), Settings(mode="head"), CLASSES, seed=0)
