"""TRL's trainers on the demo: images of different tile counts, samples without images, LoRA.

The collators, the fused output layer and the splitting of tiles by sample are TRL's own; what they
compute is compared with the model alone.
"""

from __future__ import annotations

import math

import pytest
import torch

from internvl import hub
from internvl.checkpoints.adapters import lora_config
from tests.adapters.training import IMAGES, picture, processor_for_trl

trl = pytest.importorskip("trl", reason="needs the packages of docs/adapters.md, section TRL")
datasets = pytest.importorskip("datasets")
pytest.importorskip("peft")

QUESTION = [{"role": "user", "content": "What color is the object?"}]
ANSWERS = ("red", "a yellow star", "none", "blue")


def answer(text):
    return [{"role": "assistant", "content": text}]


def samples(**columns):
    """Rows of a data set: images, the question, and columns of answers."""
    rows = [
        {"images": [picture(*each) for each in images], "prompt": QUESTION} for images, _ in IMAGES
    ]
    for name, texts in columns.items():
        for row, text in zip(rows, texts, strict=True):
            row[name] = answer(text)
    return datasets.Dataset.from_list(rows)


def settings(kind, folder, **options):
    """Settings of a trainer that runs here, quietly and without dropout of data."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 0,
    }
    return kind(**{**defaults, **options})


def logged(trainer, name):
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def changed(model, before):
    """Parts of a model whose weights are not those of `before` any more."""
    return {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_sft(tmp_path):
    loaded = hub.load(dtype="float32")
    processor = processor_for_trl(loaded)
    before = snapshot(loaded.model)
    trainer = trl.SFTTrainer(
        model=loaded.model,
        processing_class=processor,
        train_dataset=samples(completion=ANSWERS),
        args=settings(trl.SFTConfig, tmp_path, max_steps=10, max_length=None),
    )
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    assert batch["pixel_values"].shape[0] == sum(sum(tiles) for _, tiles in IMAGES)
    supervised = batch["labels"] != -100
    texts = [
        loaded.tokenizer.decode(ids[mask])
        for ids, mask in zip(batch["input_ids"], supervised, strict=True)
    ]
    assert texts == [f"{text}<|im_end|>\n" for text in ANSWERS]
    with torch.no_grad():
        expected = loaded.model(**batch).loss.item()
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0] / 2
    assert changed(loaded.model, before) == {"vision_model", "mlp1", "language_model"}
    trainer.save_model(str(tmp_path / "saved"))
    again = hub.load(tmp_path / "saved")
    assert again.processor.image_processor.max_tiles == 4
    with torch.no_grad():
        assert again.model(**batch).loss.item() == pytest.approx(
            loaded.model.eval()(**batch).loss.item(), rel=1e-6
        )


@pytest.mark.parametrize("images", [True, False], ids=["images", "text"])
def test_sft_on_messages(images, tmp_path):
    loaded = hub.load(dtype="float32")
    processor = processor_for_trl(loaded)
    data = samples()
    data = data.map(lambda row: {"messages": [*QUESTION, *answer("red")]})
    data = data.remove_columns("prompt" if images else ["prompt", "images"])
    trainer = trl.SFTTrainer(
        model=loaded.model,
        processing_class=processor,
        train_dataset=data,
        args=settings(trl.SFTConfig, tmp_path, max_length=None),
    )
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    "adapter", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["lora", "full"]
)
def test_dpo(adapter, tmp_path):
    loaded = hub.load(dtype="float32")
    processor = processor_for_trl(loaded)
    before = snapshot(loaded.model)
    trainer = trl.DPOTrainer(
        model=loaded.model,
        ref_model=None if adapter else hub.load(dtype="float32").model,
        processing_class=processor,
        train_dataset=samples(chosen=ANSWERS, rejected=("green", "square", "it", "what is it")),
        peft_config=lora_config(loaded.model.config, "both", rank=4, dropout=0.0)
        if adapter
        else None,
        args=settings(trl.DPOConfig, tmp_path, max_steps=3, max_length=None),
    )
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    trainer.train()
    # Log-ratios are 0 before the first step: the reference sees the same images.
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert logged(trainer, name)[0] == 0
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses[-1] < losses[0]
    assert logged(trainer, "rewards/margins")[-1] > 0
    assert logged(trainer, "logps/chosen")[0] == pytest.approx(chosen_log_probability(batch), 1e-4)
    if not adapter:
        assert changed(loaded.model, before) == {"vision_model", "mlp1", "language_model"}


@torch.no_grad()
def chosen_log_probability(batch):
    """Mean over samples of log p(chosen answer), by the demo alone."""
    model = hub.load(dtype="float32").model
    inputs = {key: value for key, value in batch.items() if key != "completion_mask"}
    logits = model(**inputs).logits[:, :-1].log_softmax(-1)
    ids, mask = batch["input_ids"][:, 1:, None], batch["completion_mask"][:, 1:]
    values = (logits.gather(-1, ids).squeeze(-1) * mask).sum(-1)
    return float(values[: len(values) // 2].mean())


@pytest.mark.parametrize(
    "adapter", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["lora", "full"]
)
def test_grpo(adapter, tmp_path):
    loaded = hub.load(dtype="float32")
    processor = processor_for_trl(loaded)
    loaded.model.config.image_token_id = loaded.model.context_token_id
    before = snapshot(loaded.model)
    seen = []

    def length(completions, **_):
        texts = [completion[0]["content"] for completion in completions]
        seen.extend(texts)
        return [float(len(text)) for text in texts]

    trainer = trl.GRPOTrainer(
        model=loaded.model,
        reward_funcs=length,
        processing_class=processor,
        train_dataset=samples(),
        peft_config=lora_config(loaded.model.config, "both", rank=4, dropout=0.0)
        if adapter
        else None,
        args=settings(
            trl.GRPOConfig,
            tmp_path,
            num_generations=2,
            gradient_accumulation_steps=2,  # tiles are dealt out to the parts of a step
            max_completion_length=5,
            temperature=2.0,
            beta=0.1 if adapter else 0.0,
        ),
    )
    trainer.train()
    assert len(seen) == 2 * 2 * 4
    assert len(set(seen)) > 4
    assert "<IMG_CONTEXT>" not in "".join(seen)
    assert all(math.isfinite(value) and value > 0 for value in logged(trainer, "grad_norm"))
    if adapter:  # the reference is the model without the adapter
        kl = logged(trainer, "kl")
        assert kl[0] == 0
        assert kl[-1] > 0
        trainer.save_model(str(tmp_path / "adapter"))
        assert hub.load(adapter=tmp_path / "adapter").model.peft_config
    else:
        assert changed(loaded.model, before) == {"vision_model", "mlp1", "language_model"}
