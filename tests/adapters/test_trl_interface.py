"""What TRL's trainers ask of the model and of the processor, without TRL."""

from __future__ import annotations

import pytest
import torch

from internvl import hub
from internvl.checkpoints.adapters import lora_config
from tests import support
from tests.adapters.training import IMAGES, batch, picture, processor_for_trl

peft = pytest.importorskip("peft")


@torch.no_grad()
def test_the_backbone_sees_the_images(name):
    """Trainers compute logits themselves, of `base_model` and the output layer."""
    loaded = hub.load(support.checkpoint(name), dtype="float32")
    model, inputs = loaded.model, batch(loaded)
    labels = inputs.pop("labels")
    expected = model(**inputs).logits

    def logits():
        output = model.base_model(**inputs, return_dict=True, use_cache=False)
        return model.get_output_embeddings()(output.last_hidden_state)

    assert torch.equal(logits(), expected)
    dark = {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}
    assert not torch.equal(model.base_model(**dark)[0], model.base_model(**inputs)[0])
    with pytest.raises(ValueError, match="num_tiles sums to 4"):
        model.base_model(**{**inputs, "pixel_values": inputs["pixel_values"][1:]})
    tuned = peft.get_peft_model(
        model, lora_config(model.config, "both", rank=2, init_lora_weights=False)
    ).eval()
    torch.testing.assert_close(logits(), tuned(**inputs, labels=labels).logits, rtol=0, atol=0)
    assert not torch.equal(logits(), expected)
    # In all else it is what the prefix names.
    assert model.base_model.get_input_embeddings() is model.get_input_embeddings()
    assert model.base_model.config is model.config.llm_config


@torch.no_grad()
def test_the_backbone_keeps_packed_samples_apart():
    loaded = hub.load(support.checkpoint("qwen2"), dtype="float32")
    ids = torch.arange(10, 22)[None]
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = loaded.model.base_model(input_ids=ids, position_ids=positions)[0]
    alone = loaded.model.base_model(input_ids=ids[:, 5:])[0]
    torch.testing.assert_close(packed[:, 5:], alone, rtol=1e-5, atol=1e-5)


def test_processor_for_trl():
    loaded = hub.load()
    processor = processor_for_trl(loaded)
    images = [[picture(*each) for each in group] for group, _ in IMAGES]
    counts = [count for _, tiles in IMAGES for count in tiles]
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [*[{"type": "image"}] * len(group), "What?"]}]
        )
        for group in images
    ]
    inputs = processor(text=prompts, images=images, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    found = processor.image_processor(images=images, crop_to_patches=True, return_tensors="pt")
    assert found["num_patches"].tolist() == counts
    assert torch.equal(found["pixel_values"], inputs["pixel_values"])
    expected = loaded.processor(text=prompts, images=images, return_tensors="pt")
    assert expected["num_tiles"] == counts  # the given processor is as it was
    for key, value in inputs.items():
        assert torch.equal(value, expected[key])


def test_processor_for_trl_saves_what_the_given_one_does(tmp_path):
    loaded = hub.load()
    processor_for_trl(loaded).save_pretrained(tmp_path / "trl")
    loaded.processor.save_pretrained(tmp_path / "plain")
    found, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("trl", "plain")
    )
    assert found == expected
