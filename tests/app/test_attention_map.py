"""Attention finds its way back: through the model, pixel unshuffle, tiling and the resize."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from internvl import hub
from internvl.chat.attention_map import (
    Cells,
    Word,
    attention_of,
    cells_of,
    eager_attention,
    to_pixels,
    token_of_patch,
    word_attention,
    words_of,
    words_of_turn,
)
from internvl.chat.prompt import PromptMaker
from internvl.chat.request import Turn
from internvl.chat.session import ChatSession
from tests import support

tiling = hub.ring0("preprocessor.tiling")
functional = hub.ring0("functional_internvl_chat")
GRIDS = tiling.candidate_grids(1, 12)
PATCH, SIDE = 7, 28  # 4 x 4 patches, 2 x 2 tokens of a tile


# ---------------------------------------------------------------------- geometry
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_patch_is_found_in_its_token(version):
    owner = token_of_patch(8, 0.5, version)
    assert owner.unique().numel() == 16
    for patch in range(64):
        marked = torch.zeros(1, 8, 8, 3)
        marked.view(64, 3)[patch] = 1
        tokens = functional.unshuffle_pixels(marked, 0.5, version).flatten(0, 2).sum(-1)
        assert tokens.nonzero().item() == owner.view(-1)[patch]


def tokens_of(image: Image.Image, grid, version: str) -> torch.Tensor:
    """How bright each visual token of an image is: (n, Q), by the code that the model is fed by."""
    tiles = torch.from_numpy(tiling.split(image, grid, tile=SIDE, thumbnail=True)[..., :1].copy())
    patches = tiles.float().unflatten(1, (-1, PATCH)).unflatten(3, (-1, PATCH)).mean((2, 4))
    return functional.unshuffle_pixels(patches, 0.5, version).flatten(1, 2).sum(-1)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.rows}x{grid.cols}")
def test_a_marked_patch_comes_back_to_its_pixels(grid, version):
    height, width = grid.rows * SIDE, grid.cols * SIDE
    owner = token_of_patch(SIDE // PATCH, 0.5, version)
    block = 2 * PATCH  # pixels of a visual token
    for top in range(0, height, block):
        for left in range(0, width, block):
            marked = np.zeros((height, width, 3), dtype=np.uint8)
            # One patch of the token, another one each time.
            y, x = top + PATCH * (left // block % 2), left + PATCH * (top // block % 2)
            marked[y : y + PATCH, x : x + PATCH] = 255
            weights = tokens_of(Image.fromarray(marked), grid, version)
            cells = cells_of(weights, grid.rows, grid.cols, owner)
            found = to_pixels(cells.of("tiles"), height, width)
            expected = torch.zeros(height, width)
            expected[top : top + block, left : left + block] = 1
            assert torch.equal(found > 0, expected > 0)
            if cells.thumbnail is not None:  # blurred by the resize, yet brightest there
                small = to_pixels(cells.of("thumbnail"), height, width)
                assert small[y + PATCH // 2, x + PATCH // 2] == small.max()


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.rows}x{grid.cols}")
def test_sums_are_kept(grid):
    n = tiling.count_tiles(grid, thumbnail=True)
    weights = torch.rand(n, 4)
    cells = cells_of(weights, grid.rows, grid.cols, token_of_patch(4, 0.5, "v2"))
    assert cells.of("image").sum() == pytest.approx(float(weights.sum()), rel=1e-5)
    assert cells.of("tiles").sum() == pytest.approx(float(weights[: grid.tiles].sum()), rel=1e-5)
    if n > 1:
        assert cells.of("thumbnail").sum() == pytest.approx(float(weights[-1].sum()), rel=1e-5)


def test_the_pixel_under_a_cell_is_that_of_the_resize():
    # Cells that are the tiles of a stretched picture: back at its size, every pixel is its own.
    cells = torch.arange(24.0).reshape(4, 6)
    for height, width in ((4, 6), (8, 12), (7, 11), (3, 2), (1, 40), (100, 1)):
        pixels = to_pixels(cells, height, width)
        assert pixels.shape == (height, width)
        for y in range(height):
            for x in range(width):
                row, col = int((y + 0.5) / height * 4), int((x + 0.5) / width * 6)
                assert pixels[y, x] == cells[row, col]


def test_wrong_parts_are_named():
    cells = Cells(torch.ones(4, 4), None)
    with pytest.raises(ValueError, match="has no thumbnail"):
        cells.of("thumbnail")
    with pytest.raises(ValueError, match="expected image, tiles or thumbnail"):
        cells.of("frame")
    with pytest.raises(ValueError, match="expected 6, or one more"):
        cells_of(torch.ones(5, 4), 2, 3, token_of_patch(4, 0.5, "v2"))


# ---------------------------------------------------------------------- attention
def whole(model, embeds: torch.Tensor) -> torch.Tensor:
    """All attention weights (L, heads, T, T), from one eager pass."""
    with eager_attention(model), torch.no_grad():
        output = model(inputs_embeds=embeds, output_attentions=True, use_cache=False)
    return torch.stack([layer[0] for layer in output.attentions])


def test_rows_equal_those_of_one_eager_pass(name, attention):
    model = support.load(name, attn_implementation=attention)
    torch.manual_seed(1)
    embeds = torch.randn(1, 23, model.config.llm_config.hidden_size)
    reference = whole(model, embeds)
    for first in (0, 7, 21, 22):
        rows = attention_of(model, embeds, first)
        assert rows.shape == (*reference.shape[:2], 23)
        torch.testing.assert_close(rows, reference[:, :, first:].mean(2), atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:2]))
    assert model.language_model.config._attn_implementation == attention
    with pytest.raises(ValueError, match="expected 0 to 22"):
        attention_of(model, embeds, 23)


def test_attention_is_switched_back_after_an_error():
    model = support.load("qwen2", attn_implementation="sdpa")
    with pytest.raises(ValueError, match="inputs_embeds"), eager_attention(model):
        model()
    assert model.language_model.config._attn_implementation == "sdpa"


@pytest.fixture(scope="module")
def dialogue() -> ChatSession:
    """Images of one and of four tiles in two turns, and a video."""
    loaded = hub.load(dtype="float32")
    session = ChatSession(
        loaded.model, loaded.processor, keep_grounding=True, generation={"max_new_tokens": 32}
    )
    wide = Image.open(support.ROOT / "examples/six.jpg").resize((900, 300))
    session.ask("What color is the star?", support.ROOT / "examples/star.jpg")
    session.ask("Where is the <ref>purple cross</ref>?", wide, support.ROOT / "examples/moving.mp4")
    return session


def test_a_word_has_the_attention_of_the_rows_that_wrote_it(dialogue):
    session, model = dialogue, dialogue.model
    words = words_of_turn(session, -1, session.last.ids)
    word = words[-1]
    seen = word_attention(session, -1, word, session.last.ids)
    assert [len(tiles) for tiles in seen.on_tiles()] == [1, 4, 4]
    assert [len(maps) for maps in seen.maps()] == [1, 1, 4]
    assert [each.of().shape for each in seen.maps()[1]] == [(8, 24)]

    # The same by the long way: the prompt of chat() and one eager pass over all of it.
    prompts = []
    handle = model.language_model.register_forward_hook(
        lambda module, args, kwargs, output: prompts.append(kwargs["inputs_embeds"]),
        with_kwargs=True,
    )
    twin = ChatSession(model, session.processor, keep_grounding=True, reuse=False)
    for turn in session.turns[:-1]:
        twin.answer_with(turn.question, turn.answer, list(turn.media))
    images, videos = twin.read(list(session.turns[-1].media))
    twin.ask(session.turns[-1].question, images, videos, max_new_tokens=1)
    handle.remove()
    prompt = torch.cat(prompts, 1)
    answer = model.get_input_embeddings()(torch.tensor([session.last.ids[: word.end - 1]]))
    weights = whole(model, torch.cat([prompt, answer], 1))
    start = prompt.shape[1]
    rows = weights[:, :, start + word.first - 1 : start + word.end - 1].mean(2)
    maker = PromptMaker(model, session.processor, session.tokenizer)
    asked = [*session.turns[:-1], Turn(session.turns[-1].question, session.turns[-1].media)]
    ids = torch.tensor(maker.ids(maker.compose(asked, True), session.system_message))
    places = (ids == maker.image_token).nonzero().flatten()
    expected = rows[:, :, places].unflatten(-1, (-1, 16))
    torch.testing.assert_close(seen.weights, expected, atol=1e-6, rtol=1e-3)
    layered = torch.cat(seen.on_tiles(layer=1, head=2))
    torch.testing.assert_close(layered, expected[1, 2], atol=1e-6, rtol=1e-3)


def test_nothing_of_the_dialogue_changes(dialogue):
    before = (dialogue.turns, dialogue.last, dialogue.memory()["kv_tokens"])
    words = words_of_turn(dialogue, 0)
    word_attention(dialogue, 0, words[0])
    assert (dialogue.turns, dialogue.last, dialogue.memory()["kv_tokens"]) == before


def test_what_cannot_be_mapped_is_refused(dialogue):
    words = words_of_turn(dialogue, -1, dialogue.last.ids)
    with pytest.raises(IndexError, match="the dialogue has 2"):
        word_attention(dialogue, 2, words[0])
    with pytest.raises(ValueError, match="not of this answer"):
        word_attention(dialogue, -1, Word("x", 90, 91), dialogue.last.ids)
    bare = ChatSession(dialogue.model, dialogue.processor)
    bare.answer_with("Is 2 a number?", "yes")
    with pytest.raises(ValueError, match="no image up to this answer"):
        word_attention(bare, 0, words_of_turn(bare, 0)[0])


# ---------------------------------------------------------------------- words
def test_words_keep_their_tokens(loaded):
    tokenizer = loaded.tokenizer
    text = "The red star, 42 of them:\n\nnaïve 红色的 star☂ end"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(part):
        return tokenizer.decode(part, skip_special_tokens=True)

    words = words_of(ids, decode)
    assert [word.text for word in words[:6]] == ["The", "red", "star,", "42", "of", "them:"]
    assert "".join(word.text for word in words) == "".join(text.split())
    assert [word.text for word in words if "红" in word.text] == ["红"]
    for word in words:  # and each is spelled by its tokens
        assert decode(ids[word.first : word.end]).strip() == word.text


def test_tags_and_the_end_of_turn_are_no_words(loaded):
    known = loaded.tokenizer.get_added_vocab()
    star = loaded.tokenizer("red star", add_special_tokens=False)["input_ids"]
    ids = [known["<ref>"], *star, known["</ref>"], *star, known["<|im_end|>"]]
    words = words_of(ids, lambda part: loaded.tokenizer.decode(part, skip_special_tokens=True))
    assert [word.text for word in words] == ["red", "star", "red", "star"]
    assert words[0].first == 1
    assert words[-1].end == len(ids) - 1
