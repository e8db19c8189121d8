"""A dialogue at a terminal: questions in, answers out, images added on the way."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from internvl import hub
from internvl.chat.request import Limits, Media, Request, Turn, compose, read_image, read_video
from internvl.chat.tiles_picture import plural

HELP = """\
/image PATH   add an image to the next question
/video PATH   add a video to the next question
/reset        forget the dialogue
/help         this list
/quit         leave"""


def answer(loaded: hub.Loaded, request: Request, generation: dict[str, Any]) -> str:
    """Answer a request with `chat`."""
    return loaded.model.chat(
        loaded.tokenizer,
        _on_device(loaded.model, request.pixel_values),
        request.question,
        generation,
        history=request.history or [],
        num_patches_list=request.num_tiles,
    )


def answer_stream(
    loaded: hub.Loaded, request: Request, generation: dict[str, Any]
) -> Generator[str, None, None]:
    """Answer a request with `chat_stream`: the pieces join to what `answer` returns."""
    yield from loaded.model.chat_stream(
        loaded.tokenizer,
        _on_device(loaded.model, request.pixel_values),
        request.question,
        generation,
        history=request.history or [],
        num_patches_list=request.num_tiles,
    )


def _on_device(model: Any, pixel_values: Any) -> Any:
    """Tiles where the vision encoder takes them, in its dtype (a Conv2d is never quantised)."""
    if pixel_values is None:
        return None
    weight = model.vision_model.embeddings.patch_embedding.weight
    if weight.device.type == "meta":  # offloaded: the hooks of accelerate move the tiles
        return pixel_values.to(weight.dtype)
    return pixel_values.to(weight.device, weight.dtype)


class Console:
    """A dialogue that keeps its turns.

    Args:
        loaded: the checkpoint.
        generation: settings of the generation.
        write: receives text to show.
        limits: how media are read.
        media: what the first question is about.
    """

    def __init__(
        self,
        loaded: hub.Loaded,
        generation: dict[str, Any],
        write: Callable[[str], None],
        limits: Limits | None = None,
        media: list[Media] | None = None,
    ) -> None:
        self.loaded, self.generation, self.write = loaded, generation, write
        self.limits = limits or Limits()
        self.turns: list[Turn] = []
        self.pending: list[Media] = list(media or [])

    def feed(self, line: str) -> bool:
        """Follow a command or answer a question. Returns False when the dialogue is over."""
        command, _, rest = line.strip().partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command == "/reset":
            self.turns, self.pending = [], []
            self.write("the dialogue is empty.\n")
        elif command in ("/image", "/video"):
            self._add(command, rest.strip())
        elif command.startswith("/") and " " not in command and command.count("/") == 1:
            self.write(HELP + "\n")
        elif line.strip():
            self.ask(line.strip())
        return True

    def ask(self, question: str) -> str:
        """Answer a question and keep the turn; a failure leaves the dialogue as it was."""
        turn = Turn(question, tuple(self.pending))
        request = compose([*self.turns, turn], self.loaded.processor.frame_prefix)
        pieces: list[str] = []
        stream = answer_stream(self.loaded, request, self.generation)
        try:
            for piece in stream:
                pieces.append(piece)
                self.write(piece)
        except KeyboardInterrupt:  # what was said so far stays
            self.write(" [stopped]")
        finally:
            stream.close()
        self.write("\n")
        said = "".join(pieces)
        if said:  # a turn without an answer would leave the template open in the middle
            self.turns.append(Turn(question, turn.media, said))
            self.pending = []
        return said

    def _add(self, command: str, path: str) -> None:
        if not path:
            self.write(f"{command} needs a path.\n")
            return
        read = read_image if command == "/image" else read_video
        media = read(self.loaded.processor, path, self.limits)
        self.pending.append(media)
        count = plural(sum(media.num_tiles), "tile")
        self.write(f"{media.label}: {count}, for the next question.\n")
