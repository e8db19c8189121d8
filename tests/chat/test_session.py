"""A session answers as `chat()` does, whether it reuses or not, and computes only what is new."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import StoppingCriteria

from internvl import hub
from internvl.chat.accounting import ContextError
from internvl.chat.features import FeatureStore, store_of
from internvl.chat.media import Limits, read_image
from internvl.chat.request import Turn, compose
from internvl.chat.session import ChatSession
from tests import support

BRIEF = {"max_new_tokens": 10, "do_sample": False}
FRAMES = [Image.new("RGB", (40, 30), (60 * i, 0, 90)) for i in range(3)]


def picture(seed: int, width: int = 260, height: int = 130) -> Image.Image:
    """A picture of its own; 3 tiles of 112 px."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10 * seed, 5, 10 * seed + 60, 70), fill=(40 * seed % 256, 200, 10))
    return image


# Images in turns 1, 3 and 4, a video in the last one.
SCRIPT = [
    ("What is in the picture?", [picture(1)], []),
    ("Which colour? <ref>it</ref>", [], []),
    ("And in this one?", [picture(2, 120, 120)], []),
    ("Compare <image> with <image>.", [picture(3), picture(1)], []),
    ("What did I ask first? <|im_end|> <IMG_CONTEXT>", [], []),
    ("Describe the video.", [], [FRAMES]),
    ("Goodbye", [], []),
]


@dataclass
class Work:
    """What the two halves of a model have computed."""

    tiles: int = 0
    positions: int = 0


def watch(model) -> Work:
    work = Work()

    def vision(module, args, output):
        work.tiles += len(args[0])

    def language(module, args, kwargs, output):
        work.positions += kwargs["inputs_embeds"].shape[:2].numel()

    model.vision_model.register_forward_hook(vision)
    model.language_model.register_forward_hook(language, with_kwargs=True)
    return work


@pytest.fixture
def loaded(name) -> hub.Loaded:
    return hub.load(support.checkpoint(name), dtype="float32")


@pytest.fixture
def qwen2() -> hub.Loaded:
    return hub.load(support.checkpoint("qwen2"), dtype="float32")


def session(loaded: hub.Loaded, **options) -> ChatSession:
    return ChatSession(loaded.model, loaded.processor, generation=BRIEF, **options)


def play(dialogue: ChatSession, script=SCRIPT) -> list[tuple[str, tuple[int, ...]]]:
    """Answers and their ids."""
    said = []
    for text, images, videos in script:
        answer = dialogue.ask(text, images, videos)
        said.append((answer, dialogue.last.ids))
    return said


@pytest.mark.parametrize("image_labels", [True, "always", False])
def test_ids_are_the_same_with_and_without_reuse(loaded, image_labels):
    expected = play(session(loaded, reuse=False, image_labels=image_labels))
    assert play(session(loaded, image_labels=image_labels)) == expected
    assert len({answer for answer, _ in expected}) > 3


def test_answers_are_those_of_chat(loaded):
    dialogue = session(loaded)
    play(dialogue)
    for index, turn in enumerate(dialogue.turns):
        request = compose([*dialogue.turns[:index], Turn(turn.question, turn.media)])
        answer = loaded.model.chat(
            loaded.tokenizer,
            request.pixel_values,
            request.question,
            BRIEF,
            history=request.history or [],
            num_patches_list=request.num_tiles,
        )
        assert answer == turn.answer
    assert dialogue.history[0][0].startswith("Image-1: <image>\n")


def test_streams_join_to_the_answers(loaded):
    expected = play(session(loaded))
    dialogue = session(loaded)
    for (text, images, videos), (answer, ids) in zip(SCRIPT, expected, strict=True):
        assert "".join(dialogue.stream(text, images, videos)) == answer
        assert dialogue.last.ids == ids


def test_a_turn_costs_its_new_tokens(qwen2):
    dialogue = session(qwen2, image_labels="always", features=FeatureStore())
    work = watch(qwen2.model)
    for number, (text, images, videos) in enumerate(SCRIPT):
        work.tiles = work.positions = 0
        dialogue.ask(text, images, videos)
        last = dialogue.last
        new = last.prompt_tokens - last.reused_tokens + len(last.ids) - 1
        assert work.positions == new
        assert work.tiles == last.encoded_tiles
        if number:
            # The question, its frame and the end of the answer before it: nothing of the history.
            media = sum(sum(each.num_tiles) for each in dialogue.turns[-1].media)
            assert last.prompt_tokens - last.reused_tokens < 16 * media + 110
    tiles = sum(len(each.pixel_values) for turn in dialogue.turns for each in turn.media)
    distinct = {key for turn in dialogue.turns for each in turn.media for key in each.keys}
    assert last.tiles == tiles
    assert len(distinct) < tiles  # the first picture comes twice
    assert dialogue.features.misses == len(distinct)


class TestInvalidation:
    """What changed is computed again, and nothing else."""

    @pytest.fixture
    def dialogue(self, qwen2):
        dialogue = session(qwen2, image_labels=False, features=FeatureStore())
        play(dialogue, SCRIPT[:3])
        return dialogue

    @staticmethod
    def fresh(dialogue: ChatSession, text: str) -> str:
        """The answer of a session that never saw anything."""
        other = ChatSession(
            dialogue.model,
            dialogue.processor,
            generation=BRIEF,
            reuse=False,
            image_labels=False,
            system_message=dialogue.system_message,
        )
        other._turns = list(dialogue.turns)
        return other.ask(text)

    def ask(self, dialogue: ChatSession, text: str = "Really?"):
        expected = self.fresh(dialogue, text)
        assert dialogue.ask(text) == expected
        return dialogue.last

    def test_nothing_changed(self, dialogue):
        last = self.ask(dialogue)
        assert last.encoded_tiles == 0
        assert last.prompt_tokens - last.reused_tokens < 60

    def test_an_edited_turn(self, dialogue):
        first = dialogue.turns[0]
        dialogue.edit(1, "Which shape?")
        assert [turn.question for turn in dialogue.turns] == [SCRIPT[0][0], "Which shape?"]
        assert dialogue.turns[0] is first
        assert dialogue.last.encoded_tiles == 0
        assert dialogue.last.reused_tokens > 16 * 3  # system message, picture, first answer
        self.ask(dialogue)
        # The first question: its picture stands before the text, so that is kept too.
        dialogue.edit(0, "What else?")
        assert 16 * 3 < dialogue.last.reused_tokens < dialogue.last.prompt_tokens - 5
        assert dialogue.last.encoded_tiles == 0

    def test_another_system_message(self, dialogue):
        dialogue.system_message = "Answer in one word."
        last = self.ask(dialogue)
        assert last.reused_tokens < 10
        assert last.encoded_tiles == 0

    def test_another_tile_limit(self, dialogue):
        assert dialogue.turns[0].media[0].num_tiles == [3]
        dialogue.limits = Limits(max_tiles=1)
        assert dialogue.turns[0].media[0].num_tiles == [1]
        last = self.ask(dialogue)
        assert last.encoded_tiles == 0  # the thumbnail was known as a tile
        dialogue.limits = Limits()
        assert self.ask(dialogue).encoded_tiles == 0

    def test_new_language_weights(self, dialogue):
        with torch.no_grad():
            dialogue.model.language_model.model.layers[0].mlp.down_proj.weight.mul_(3)
        last = self.ask(dialogue)
        assert (last.reused_tokens, last.encoded_tiles) == (0, 0)

    def test_new_vision_weights(self, dialogue):
        with torch.no_grad():
            dialogue.model.mlp1[1].weight.mul_(3)
        last = self.ask(dialogue)
        assert last.encoded_tiles == 4
        assert 10 < last.reused_tokens < 100  # the system message up to the first picture

    def test_replaced_weights(self, dialogue):
        norm = dialogue.model.language_model.model.norm
        norm.weight = torch.nn.Parameter(norm.weight.detach() * -1)
        assert self.ask(dialogue).reused_tokens == 0

    def test_adapters(self, dialogue):
        peft = pytest.importorskip("peft")
        for part, target in (("language", r".*q_proj"), ("vision", r".*vision_model.*fc1")):
            config = peft.LoraConfig(r=2, target_modules=target, init_lora_weights=False)
            if part == "language":
                adapted = peft.get_peft_model(dialogue.model, config, adapter_name="language")
            else:
                adapted.add_adapter("vision", config)
        dialogue.model = adapted.get_base_model()
        last = self.ask(dialogue)
        assert (last.reused_tokens, last.encoded_tiles) == (0, 4)  # the layers were replaced
        with adapted.disable_adapter():
            last = self.ask(dialogue)
            assert (last.reused_tokens, last.encoded_tiles) == (0, 4)
        last = self.ask(dialogue)
        assert (last.reused_tokens, last.encoded_tiles) == (0, 0)  # the tokens of before fit again
        adapted.set_adapter("vision")
        last = self.ask(dialogue)
        assert (last.reused_tokens, last.encoded_tiles) == (0, 4)
        assert self.ask(dialogue).reused_tokens > 100

    def test_undo_and_reset(self, dialogue):
        turn = dialogue.undo()
        assert turn.question == SCRIPT[2][0]
        last = self.ask(dialogue)
        assert last.encoded_tiles == 0
        assert last.reused_tokens > 16 * 3
        dialogue.reset()
        assert dialogue.turns == ()
        with pytest.raises(IndexError, match="no turn to undo"):
            dialogue.undo()
        assert self.ask(dialogue, "Hello").reused_tokens > 10  # the system message


def test_the_rotary_table_of_another_length_is_not_reused():
    loaded = hub.load(support.checkpoint("internlm2"), dtype="float32")
    config = loaded.model.config.llm_config
    config.max_position_embeddings, config.rope_scaling = 180, {"type": "dynamic", "factor": 8.0}
    script = [SCRIPT[0], *[(f"And {k}, what do you say to that?", [], []) for k in range(3)]]
    expected = play(session(loaded, reuse=False), script)
    dialogue = session(loaded)
    reused = []
    for (text, images, videos), wanted in zip(script, expected, strict=True):
        assert (dialogue.ask(text, images, videos), dialogue.last.ids) == wanted
        reused.append((dialogue.last.prompt_tokens > 180, dialogue.last.reused_tokens > 0))
    assert (True, False) in reused
    assert (True, True) not in reused
    assert (False, True) in reused


def test_weights_on_disk_are_reused_as_well(qwen2, tmp_path):
    expected = play(session(qwen2))
    device_map = {"vision_model": "disk", "mlp1": "cpu", "language_model": "disk"}
    model = support.load("qwen2", device_map=device_map, offload_folder=str(tmp_path))
    dialogue = session(hub.Loaded(model, qwen2.processor, qwen2.tokenizer))
    assert play(dialogue) == expected
    assert dialogue.last.reused_tokens > 0.8 * dialogue.last.prompt_tokens


def test_a_sliding_window_can_be_gone_back_behind():
    def dialogue(window: int, **options) -> ChatSession:
        loaded = hub.load(support.checkpoint("phi3"), dtype="float32")
        loaded.model.config.llm_config.sliding_window = window
        return session(loaded, **options)

    answers = []
    for window in (48, 10_000):
        expected = play(dialogue(window, reuse=False))
        reusing = dialogue(window)
        assert play(reusing) == expected
        # The last question again, whose beginning has left the window.
        said = reusing.undo().answer
        assert reusing.ask(SCRIPT[-1][0]) == said
        assert reusing.last.reused_tokens == reusing.last.prompt_tokens - 1
        answers.append(expected)
    assert answers[0] != answers[1]


class TestForkAndFiles:
    def test_forks_go_their_own_ways(self, qwen2):
        one = session(qwen2, image_labels=False)
        play(one, SCRIPT[:2])
        two = one.fork()
        for dialogue, text in ((one, "Left?"), (two, "Right?"), (one, "Up?"), (two, "Down?")):
            expected = TestInvalidation.fresh(dialogue, text)
            assert dialogue.ask(text) == expected
            assert dialogue.last.reused_tokens > 60
        assert len(one.turns) == len(two.turns) == 4
        assert one.turns[2].question != two.turns[2].question

    def test_a_saved_dialogue_goes_on(self, loaded, tmp_path):
        script = [SCRIPT[5], *SCRIPT[:4]]
        dialogue = session(loaded, system_message="Be brief.", keep_grounding=True)
        play(dialogue, script)
        folder = tmp_path / "talks" / "one"
        dialogue.save(folder)
        again = ChatSession.load(folder, loaded.model, loaded.processor)
        assert again.history == dialogue.history
        for turn, other in zip(dialogue.turns, again.turns, strict=True):
            for media, read in zip(turn.media, other.media, strict=True):
                assert media.keys == read.keys
                assert (media.label, media.num_tiles) == (read.label, read.num_tiles)
        assert again.system_message == "Be brief."
        assert again.generation == dialogue.generation
        assert again.ask("And?") == dialogue.ask("And?")
        assert again.last.prompt_tokens == dialogue.last.prompt_tokens
        again.save(folder)  # replaced as a whole
        assert len(ChatSession.load(folder, loaded.model, loaded.processor).turns) == 6
        assert [path.name for path in folder.parent.iterdir()] == ["one"]

    def test_what_cannot_be_saved_or_read(self, qwen2, tmp_path):
        dialogue = session(qwen2)
        dialogue.ask("Hi", [picture(1)])
        (tmp_path / "other.txt").write_text("x")
        with pytest.raises(ValueError, match="give a new folder"):
            dialogue.save(tmp_path)
        dialogue.generation["stopping_criteria"] = [StoppingCriteria()]
        with pytest.raises(ValueError, match="cannot be saved as JSON"):
            dialogue.save(tmp_path / "one")
        assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]
        with pytest.raises(FileNotFoundError, match=r"no session\.json"):
            ChatSession.load(tmp_path / "one", qwen2.model, qwen2.processor)
        del dialogue.generation["stopping_criteria"]
        dialogue.save(tmp_path / "one")
        file = tmp_path / "one" / "session.json"
        text = file.read_text()
        for damaged in (text[:-40], text.replace("media/1.png", "../other.txt"), "[]"):
            file.write_text(damaged)
            with pytest.raises(ValueError, match="damaged or of another version"):
                ChatSession.load(tmp_path / "one", qwen2.model, qwen2.processor)
        file.write_text(text.replace('"limits"', '"limit"'))
        with pytest.raises(ValueError, match="settings of the session"):
            ChatSession.load(tmp_path / "one", qwen2.model, qwen2.processor)
        file.write_text(text)
        (tmp_path / "one" / "media" / "1.png").write_bytes(b"x")
        with pytest.raises(ValueError, match="image"):
            ChatSession.load(tmp_path / "one", qwen2.model, qwen2.processor)


class TestTrouble:
    """The session goes on, with the same answers, whatever went wrong."""

    @pytest.fixture
    def dialogue(self, qwen2):
        dialogue = session(qwen2)
        play(dialogue, SCRIPT[:2])
        return dialogue

    def goes_on(self, dialogue: ChatSession, turns: int = 2) -> None:
        assert len(dialogue.turns) == turns
        reuse = dialogue.fork()
        reuse.reuse = False
        expected = reuse.ask("And now?", [picture(2)])
        assert dialogue.ask("And now?", [picture(2)]) == expected

    @pytest.mark.parametrize("layer", [0, 1])
    @pytest.mark.parametrize("step", [1, 3])
    def test_an_exception_in_the_model(self, dialogue, layer, step):
        steps = []

        def fail(*_):
            steps.append(1)
            if len(steps) == step:
                raise ArithmeticError("broken")

        part = dialogue.model.language_model.model.layers[layer].mlp
        handle = part.register_forward_hook(fail)
        with pytest.raises(ArithmeticError):
            dialogue.ask("Well?")
        steps.clear()
        with pytest.raises(ArithmeticError):
            list(dialogue.stream("Well?"))
        handle.remove()
        before = dialogue._prefix.nbytes
        assert before > 0
        self.goes_on(dialogue)
        assert dialogue.last.reused_tokens > 10

    @pytest.mark.parametrize(
        "error",
        [
            pytest.param(torch.OutOfMemoryError("CUDA out of memory"), id="accelerator"),
            pytest.param(MemoryError(), id="python"),
            pytest.param(
                RuntimeError("DefaultCPUAllocator: can't allocate memory"), id="allocator"
            ),
        ],
    )
    def test_out_of_memory(self, dialogue, error):
        def fail(*_):
            raise error

        assert len(dialogue.features) > 0
        handle = dialogue.model.language_model.register_forward_hook(fail)
        with pytest.raises(type(error)) as caught:
            dialogue.ask("Well?")
        assert "lower max_tiles" in caught.value.__notes__[0]
        assert dialogue.memory()["kv_bytes"] == dialogue.memory()["feature_bytes"] == 0
        handle.remove()
        self.goes_on(dialogue)

    def test_a_stream_closed_early(self, dialogue):
        stream = dialogue.stream("Well?", max_new_tokens=300)
        said = next(stream)
        stream.close()
        assert dialogue.last.finish_reason == "stopped"
        assert dialogue.turns[-1].answer == said
        assert dialogue.undo().question == "Well?"
        self.goes_on(dialogue)

    def test_a_cancelled_stream(self, dialogue):
        cancel, said = threading.Event(), []
        for piece in dialogue.stream("Well?", max_new_tokens=300, cancel=cancel):
            said.append(piece)
            cancel.set()
        assert dialogue.last.finish_reason == "stopped"
        assert dialogue.turns[-1].answer == "".join(said)
        self.goes_on(dialogue, 3)

    def test_a_stream_never_begun(self, dialogue):
        dialogue.stream("Well?").close()
        self.goes_on(dialogue)

    def test_bad_input(self, dialogue, tmp_path):
        with pytest.raises(FileNotFoundError):
            dialogue.ask("What?", [str(tmp_path / "nothing.png")])
        with pytest.raises(ValueError, match="tags"):
            dialogue.ask("One <image> too few", [picture(1), picture(2)])
        with pytest.raises(IndexError):
            dialogue.edit(7, "What?")
        with pytest.raises(FileNotFoundError):
            dialogue.edit(0, "What?", ["nothing.png"])
        self.goes_on(dialogue)

    def test_one_question_at_a_time(self, dialogue):
        stream = dialogue.stream("Well?")
        next(stream)
        for call in (
            lambda: dialogue.ask("Now?"),
            lambda: next(dialogue.stream("Now?")),
            dialogue.undo,
            dialogue.reset,
            dialogue.fork,
            lambda: dialogue.edit(0, "Now?"),
        ):
            with pytest.raises(RuntimeError, match="answering another question"):
                call()
        stream.close()
        dialogue.undo()
        self.goes_on(dialogue)


class TestReplies:
    def test_reasons(self, qwen2):
        dialogue = session(qwen2)
        dialogue.ask("Hello")
        assert dialogue.last.finish_reason == "length"
        assert len(dialogue.last.ids) == 10
        end = qwen2.tokenizer.convert_tokens_to_ids("<|im_end|>")

        def stop(module, args, output):
            output.logits[:, -1, end] = 1e4

        handle = qwen2.model.language_model.register_forward_hook(stop)
        assert dialogue.ask("Hello") == ""
        handle.remove()
        assert dialogue.last.finish_reason == "stop"
        assert dialogue.last.ids == (end,)
        assert len(dialogue.turns) == 1  # nothing was said

    def test_the_loop_guard(self, qwen2):
        for layer in qwen2.model.language_model.model.layers:  # goes round in a circle
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
        ids = qwen2.tokenizer("The temple is old. ", add_special_tokens=False)["input_ids"]
        follow = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
        start = {"next": ids[0]}

        def say(module, args, output):
            output.logits[:, -1] = -1.0
            output.logits[:, -1, start["next"]] = 1.0
            start["next"] = follow[start["next"]]

        qwen2.model.language_model.register_forward_hook(say)
        guarded = session(qwen2, loop_guard=True)
        answer = guarded.ask("Say something", max_new_tokens=900)
        assert guarded.last.finish_reason == "repetition"
        assert "temple" in guarded.last.detail
        assert len(guarded.last.ids) < 300
        start["next"] = ids[0]
        assert "".join(guarded.fork().stream("Again", max_new_tokens=900)).startswith(answer[:50])
        start["next"] = ids[0]
        free = session(qwen2)
        free.ask("Say something", max_new_tokens=400)
        assert free.last.finish_reason == "length"

    def test_settings_of_one_answer(self, qwen2):
        dialogue = session(qwen2)
        dialogue.ask("Hello", max_new_tokens=3)
        assert len(dialogue.last.ids) == 3
        dialogue.ask("Hello")
        assert len(dialogue.last.ids) == 10
        with pytest.raises(ValueError, match="call sample"):
            dialogue.ask("Hello", num_return_sequences=2)

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({"num_beams": 3}, id="beams"),
            pytest.param({"prompt_lookup_num_tokens": 4}, id="prompt lookup"),
            pytest.param({"repetition_penalty": 1.3}, id="penalty"),
            pytest.param(
                {"cache_implementation": "static", "disable_compile": True}, id="static cache"
            ),
            pytest.param({"use_cache": False}, id="no cache"),
        ],
    )
    def test_other_ways_to_decode(self, loaded, options):
        expected, reused = [], []
        for reuse in (False, True):
            dialogue = session(loaded, reuse=reuse)
            said = [dialogue.ask(t, i, v, **options) for t, i, v in SCRIPT[:3]]
            (reused if reuse else expected).extend(said)
            # And then as usual.
            (reused if reuse else expected).append(dialogue.ask("Goodbye"))
        assert reused == expected


SAMPLED = {"temperature": 0.9, "top_p": 0.9, "max_new_tokens": 8}


class TestSample:
    def test_answers_are_those_of_generate(self, loaded):
        dialogue = session(loaded)
        play(dialogue, SCRIPT[:2])
        torch.manual_seed(3)
        answers = dialogue.sample("Why?", [picture(2)], answers=4, **SAMPLED)
        turn = Turn("Why?", [read_image(loaded.processor, picture(2))])
        request, row = dialogue._ids(turn)
        ids = torch.tensor([row])
        torch.manual_seed(3)
        output = loaded.model.generate(
            input_ids=ids,
            pixel_values=request.pixel_values,
            do_sample=True,
            num_return_sequences=4,
            eos_token_id=loaded.tokenizer.convert_tokens_to_ids(
                loaded.model.conv_template.end_of_turn
            ),
            pad_token_id=loaded.tokenizer.pad_token_id,
            **SAMPLED,
        )
        decoder = dialogue._decoder
        expected = [decoder.answer(row) for row in output[:, ids.shape[1] :].tolist()]
        assert answers == expected
        assert len(set(answers)) > 1
        assert len(dialogue.turns) == 2
        # The prompt was computed for them; the question itself may follow at no cost.
        dialogue.ask("Why?", [picture(2)])
        assert dialogue.last.reused_tokens == dialogue.last.prompt_tokens - 1

    def test_one_answer_is_kept(self, qwen2):
        dialogue = session(qwen2)
        (answer,) = dialogue.sample("Why?", [picture(2)], answers=1, **SAMPLED)
        dialogue.answer_with("Why?", answer, [picture(2)])
        expected = TestInvalidation.fresh(dialogue, "So?")
        assert dialogue.ask("So?") == expected
        with pytest.raises(ValueError, match="the answer is empty"):
            dialogue.answer_with("Why?", "")


class TestMemory:
    def test_reported_and_bounded(self, qwen2):
        store = FeatureStore(max_bytes=5 * 16 * 64 * 4)  # five tiles of 16 tokens, 64 wide
        dialogue = session(qwen2, features=store)
        play(dialogue)
        report = dialogue.memory()
        layers = qwen2.model.config.llm_config.num_hidden_layers
        assert report["kv_tokens"] == dialogue.last.prompt_tokens + len(dialogue.last.ids) - 1
        assert report["kv_bytes"] == report["kv_tokens"] * 2 * layers * 2 * 16 * 4
        assert report["feature_bytes"] == store.max_bytes
        assert report["media_bytes"] > 0
        dialogue.release()
        assert dialogue.memory()["kv_bytes"] == 0

    def test_a_cache_beyond_the_limit_is_dropped(self, qwen2):
        dialogue = session(qwen2, max_kv_bytes=1000)
        expected = play(session(qwen2, reuse=False), SCRIPT[:3])
        assert play(dialogue, SCRIPT[:3]) == expected
        assert dialogue.memory()["kv_bytes"] == 0

    def test_sessions_of_a_model_share_visual_tokens(self, qwen2):
        one, two = session(qwen2), session(qwen2)
        one.ask("What?", [picture(5)])
        two.ask("Who?", [picture(5)])
        assert two.last.encoded_tiles == 0
        assert one.features is two.features is store_of(qwen2.model)
        other = hub.load(support.checkpoint("qwen2"), dtype="float32")
        assert store_of(other.model) is not one.features


class TestCosts:
    def test_predicted_before_anything_runs(self, loaded):
        dialogue = session(loaded)
        play(dialogue, SCRIPT[:3])
        work = watch(loaded.model)
        account = dialogue.account("Compare", [picture(4)], [FRAMES], max_new_tokens=10)
        assert (work.tiles, work.positions) == (0, 0)
        dialogue.ask("Compare", [picture(4)], [FRAMES])
        assert account.prompt_tokens == dialogue.last.prompt_tokens
        assert account.visual_tokens == loaded.model.num_image_token * dialogue.last.tiles
        assert not account.excess
        # One position less than counted: nothing follows the last token.
        held = account.prompt_tokens + len(dialogue.last.ids) - 1
        assert dialogue.memory()["kv_bytes"] == held * account.kv_bytes_per_token

    def test_too_long(self, qwen2):
        qwen2.model.config.llm_config.max_position_embeddings = 200
        dialogue = session(qwen2)
        work = watch(qwen2.model)
        with pytest.raises(ContextError, match=r"max_tiles=\d+") as caught:
            dialogue.ask("What is it?", [picture(1, 900, 300)], max_new_tokens=40)
        assert work.tiles == 0
        limit = int(str(caught.value).split("max_tiles=")[1].split()[0])
        dialogue.limits = Limits(max_tiles=limit)
        dialogue.ask("What is it?", [picture(1, 900, 300)], max_new_tokens=40)
        dialogue.reset()
        dialogue.limits = Limits(max_tiles=limit + 1)
        with pytest.raises(ContextError):
            dialogue.ask("What is it?", [picture(1, 900, 300)], max_new_tokens=40)


def test_other_models_are_refused(qwen2):
    with pytest.raises(ValueError, match="a session needs an InternVLChatModel"):
        ChatSession(qwen2.model.language_model, qwen2.processor)
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=2,
        token_dim=64,
        num_layers=2,
        num_attention_heads=4,
    )
    with pytest.raises(ValueError, match="soft prompts"):
        ChatSession(peft.get_peft_model(qwen2.model, config), qwen2.processor)
