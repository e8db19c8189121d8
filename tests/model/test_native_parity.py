"""transformers' own InternVL, which shares no code with ours, gives the same logits."""

from __future__ import annotations

import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from internvl.checkpoints.native.names import NameMap
from internvl.checkpoints.native.settings import native_config
from tests import support


@torch.no_grad()
@pytest.mark.parametrize("name", support.NAMES)
def test_same_logits(name):
    ours = support.load(name)
    fields = native_config(ours.config) | {"image_token_id": support.IMG_CONTEXT_ID}
    native = InternVLForConditionalGeneration(InternVLConfig(**fields)).eval()
    native.load_state_dict(NameMap(ours.config).to_native(ours.state_dict()))
    expected = support.golden(name)
    for case, images in {"image_multitile": "A", "two_images": "AB", "video4": "frames"}.items():
        if f"logits.{case}.input_ids" not in expected:
            continue
        inputs = {
            "input_ids": expected[f"logits.{case}.input_ids"],
            "attention_mask": expected[f"logits.{case}.attention_mask"],
            "pixel_values": support.pixels(name, images),
        }
        torch.testing.assert_close(
            native(**inputs).logits, ours(**inputs).logits, atol=1e-4, rtol=0
        )
