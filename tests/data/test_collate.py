"""Collation: every tensor of a batch by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from internvl.data.collate import collate
from internvl.data.examples import Example

SIDE = 2


def example(ids: list[int], labels: list[int], tiles: int = 0, fill: int = 0) -> Example:
    """A sample whose weights are 0.5 where it has labels, its pixels numbered from `fill`."""
    targets = np.array(labels)
    pixels = np.arange(tiles * SIDE * SIDE * 3).reshape(tiles, SIDE, SIDE, 3) + fill
    return Example(
        input_ids=np.array(ids),
        labels=targets,
        response=np.where(targets == -100, -1, 0).astype(np.int32),
        tiles=pixels.astype(np.uint8),
        key=(0, ids[0], 0),
        loss_weight=np.where(targets == -100, 0, 0.5).astype(np.float32),
    )


FIRST = example([5, 6, 7], [-100, 6, 7], tiles=1)
SECOND = example([8, 9], [8, 9])  # its first token is supervised
THIRD = example([1, 2, 3, 4], [-100, -100, -100, 4], tiles=2, fill=100)


def test_one_row():
    batch = collate([FIRST, SECOND, THIRD])
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "input_ids": (torch.int64, (1, 9)),
        "labels": (torch.int64, (1, 9)),
        "position_ids": (torch.int64, (1, 9)),
        "loss_weight": (torch.float32, (1, 9)),
        "pixel_values": (torch.uint8, (3, 3, SIDE, SIDE)),
        "image_flags": (torch.int64, (3,)),
    }
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 2, 3, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, -100, -100, -100, 4]]
    assert batch["loss_weight"].tolist() == [[0, 0.5, 0.5, 0, 0.5, 0, 0, 0, 0.5]]
    assert batch["image_flags"].tolist() == [1, 1, 1]
    tiles = np.concatenate([FIRST.tiles, THIRD.tiles])
    assert np.array_equal(batch["pixel_values"].numpy(), tiles.transpose(0, 3, 1, 2))
    assert batch["pixel_values"].is_contiguous()


def test_rows_are_padded_with_a_sample_of_its_own():
    batch = collate([FIRST, SECOND, THIRD], rows=[1, 2], pad_id=99, flash=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 99, 99, 99], [8, 9, 1, 2, 3, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]]
    assert batch["labels"].tolist()[0] == [-100, 6, 7, -100, -100, -100]
    assert batch["loss_weight"].tolist()[0] == [0, 0.5, 0.5, 0, 0, 0]
    # Borders run over the flattened rows: 3 tokens, 3 of padding, 2, 4.
    for side in "qk":
        assert batch[f"cu_seq_lens_{side}"].tolist() == [0, 3, 6, 8, 12]
        assert batch[f"cu_seq_lens_{side}"].dtype == torch.int32
        assert batch[f"max_length_{side}"] == 4
        assert type(batch[f"max_length_{side}"]) is int


def test_a_batch_without_images_gets_one_tile_that_does_not_count():
    for rows in (None, [1, 1]):
        batch = collate([SECOND, SECOND], rows=rows)
        assert batch["pixel_values"].shape == (1, 3, SIDE, SIDE)
        assert batch["pixel_values"].dtype == torch.uint8
        assert batch["image_flags"].tolist() == [0]
    assert collate([SECOND, FIRST])["image_flags"].tolist() == [1]


def test_weights_that_are_given_win_and_nothing_is_changed():
    given = [np.array([0.25, 2.0])]
    batch = collate([SECOND], weights=given)
    assert batch["loss_weight"].tolist() == [[0, 2]]
    assert given[0].tolist() == [0.25, 2.0]
    batch["input_ids"].zero_()
    batch["pixel_values"].zero_()
    assert (SECOND.input_ids.tolist(), SECOND.labels.tolist()) == ([8, 9], [8, 9])
    assert SECOND.loss_weight.tolist() == [0.5, 0.5]
    collate([THIRD])["pixel_values"].zero_()
    assert THIRD.tiles.max() > 100


def test_there_is_no_attention_mask():
    assert "attention_mask" not in collate([FIRST])
    assert "attention_mask" not in collate([FIRST, SECOND], rows=[1, 1], flash=True)


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([], {}, "no examples to collate"),
        ([FIRST], {"weights": []}, "0 arrays of weights for 1 examples"),
        ([FIRST], {"weights": [np.ones(2)]}, "3 ids, 3 labels and 2 weights"),
        ([FIRST], {"weights": [np.ones(3)]}, "weights where it has no labels"),
        ([SECOND], {"weights": [np.array([1, -1])]}, "negative or not finite"),
        ([SECOND], {"weights": [np.array([1, np.nan])]}, "negative or not finite"),
        ([FIRST, SECOND], {"rows": [1]}, r"rows of \[1\] samples for 2 examples"),
        ([FIRST, SECOND], {"rows": [2, 0]}, r"rows of \[2, 0\] samples"),
        ([FIRST, SECOND], {"rows": []}, r"rows of \[\] samples"),
    ],
    ids=["none", "count", "length", "unlabelled", "negative", "nan", "left", "empty", "no row"],
)
def test_what_does_not_fit_is_refused(examples, options, message):
    with pytest.raises(ValueError, match=message):
        collate(examples, **options)


def test_examples_of_two_checkpoints_are_refused():
    other = Example(**{**vars(FIRST), "tiles": np.zeros((1, 4, 4, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"tiles of shapes .*one checkpoint"):
        collate([FIRST, other])
    bare = Example(**{**vars(FIRST), "loss_weight": None})
    with pytest.raises(ValueError, match="has no loss_weight"):
        collate([bare])
