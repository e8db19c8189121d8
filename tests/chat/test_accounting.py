"""Costs are predicted to the token and the byte, and what does not fit is told how to fit."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from internvl import hub
from internvl.chat import accounting
from internvl.chat.media import Limits, Media, read_image, read_video, recut
from internvl.chat.request import Turn, compose
from tests import support

SETTINGS = {"max_new_tokens": 20, "do_sample": False}


@pytest.fixture(scope="module")
def prepared() -> hub.Prepared:
    return hub.prepare(support.checkpoint("qwen2"))


def picture(width: int = 400, height: int = 100) -> Image.Image:
    return Image.radial_gradient("L").resize((width, height)).convert("RGB").rotate(20)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("InternVL2_5-1B", 12_288),
        ("InternVL2_5-2B", 98_304),
        ("InternVL2_5-4B", 36_864),
        ("InternVL2_5-8B", 131_072),
        ("InternVL2_5-26B", 196_608),
        ("InternVL2_5-38B", 262_144),
        ("InternVL2_5-78B", 327_680),
    ],
)
def test_bytes_per_token_of_the_published_models(name, expected):
    fields = json.loads((support.ROOT / "variants" / name / "config.json").read_text("utf-8"))
    config = support.configuration.InternVLChatConfig.from_dict(fields)
    assert accounting.kv_bytes_per_token(config.llm_config) == expected


def test_bytes_are_those_of_a_cache(name):
    model = support.load(name)
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.arange(23)[None], past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 23 * accounting.kv_bytes_per_token(model.config.llm_config, 4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("InternVL2_5-1B", 32_768),
        ("InternVL2_5-4B", 32_768),
        ("InternVL2_5-8B", 65_536),
        ("InternVL2-4B", 131_072),
    ],
)
def test_context_of_the_published_models(name, expected):
    fields = json.loads((support.ROOT / "variants" / name / "config.json").read_text("utf-8"))
    config = support.configuration.InternVLChatConfig.from_dict(fields)
    assert accounting.context_length(config.llm_config) == expected


class TestAdvice:
    """Each way that is named is enough, and one step less is not."""

    def account(self, prepared, media, context, max_new_tokens=20, text="What?"):
        request = compose([Turn(text, media)])
        prepared.config.llm_config.max_position_embeddings = context
        generation = {**SETTINGS, "max_new_tokens": max_new_tokens}
        return accounting.explain(prepared, request, generation)["context"]

    def test_tiles(self, prepared):
        media = [read_image(prepared.processor, picture()) for _ in range(2)]
        context = self.account(prepared, media, 200)
        assert not context["fits"]
        limit = int(context["advice"].split("max_tiles=")[1].split()[0])
        for tiles, fits in ((limit, True), (limit + 1, False)):
            fewer = [recut(prepared.processor, each, Limits(max_tiles=tiles)) for each in media]
            assert self.account(prepared, fewer, 200)["fits"] is fits

    def test_frames(self, prepared):
        frames = [picture(50 + i, 40) for i in range(12)]
        context = self.account(prepared, [read_video(prepared.processor, frames)], 300)
        limit = int(context["advice"].split("num_frames=")[1].split()[0])
        fewer = read_video(prepared.processor, frames[:limit])
        assert self.account(prepared, [fewer], 300)["fits"]
        assert "max_tiles" not in context["advice"]

    def test_answer_and_text(self, prepared):
        needed = self.account(prepared, [], 10_000, 100)["needed"]
        context = self.account(prepared, [], needed - 30, 100)
        assert "max_new_tokens=70" in context["advice"]
        assert "30 fewer tokens of text" in context["advice"]
        assert self.account(prepared, [], needed - 30, 70)["fits"]
        assert self.account(prepared, [], needed, 100)["advice"] == "nothing has to be lowered"

    def test_nothing_alone_is_enough(self, prepared):
        media = [read_image(prepared.processor, picture())]
        assert "several at once" in self.account(prepared, media, 10)["advice"]


class TestMedia:
    def test_bytes_and_keys(self, prepared):
        media = read_image(prepared.processor, picture())
        assert media.pixel_values.dtype == torch.uint8
        again = read_image(prepared.processor, picture())
        assert media.keys == again.keys
        assert len(set(media.keys)) == len(media.keys) == media.num_tiles[0]
        assert media.nbytes == media.pixel_values.nbytes + 400 * 100 * 3
        changed = media.pixel_values.clone()
        changed[1, 0, 0, 0] ^= 1
        other = Media("x", False, changed, media.num_tiles)
        assert [a == b for a, b in zip(other.keys, media.keys, strict=True)] == [
            index != 1 for index in range(media.num_tiles[0])
        ]
        # The same bytes in another shape are another tile.
        flat = Media("x", False, media.pixel_values.flatten(1)[:, :, None, None], [5])
        assert not set(flat.keys) & set(media.keys)

    def test_recut(self, prepared):
        media = read_image(prepared.processor, picture())
        small = recut(prepared.processor, media, Limits(max_tiles=1))
        assert small.num_tiles == [1]
        assert small.keys[0] == media.keys[-1]  # the thumbnail
        assert recut(prepared.processor, small).keys == media.keys
        video = read_video(prepared.processor, [picture(30, 30)])
        assert recut(prepared.processor, video, Limits(max_tiles=1)) is video
