"""A dialogue at a terminal: questions in, answers out, images added on the way."""

from __future__ import annotations

from collections.abc import Callable

from internvl.chat.accounting import mebibytes
from internvl.chat.media import Media, read_image, read_video
from internvl.chat.session import ChatSession
from internvl.chat.tiles_picture import plural

HELP = """\
/image PATH   add an image to the next question
/video PATH   add a video to the next question
/undo         take the last question back
/info         tokens of the last answer, and memory
/reset        forget the dialogue
/help         this list
/quit         leave"""


class Console:
    """Follows commands and hands questions to a session.

    Args:
        session: the dialogue.
        write: receives text to show.
        media: what the first question is about.
    """

    def __init__(
        self,
        session: ChatSession,
        write: Callable[[str], None],
        media: list[Media] | None = None,
    ) -> None:
        self.session, self.write = session, write
        self.pending: list[Media] = list(media or [])

    def feed(self, line: str) -> bool:
        """Follow a command or answer a question. Returns False when the dialogue is over."""
        command, _, rest = line.strip().partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command == "/reset":
            self.session.reset()
            self.pending = []
            self.write("the dialogue is empty.\n")
        elif command == "/undo":
            self._undo()
        elif command == "/info":
            self.write(self._info() + "\n")
        elif command in ("/image", "/video"):
            self._add(command, rest.strip())
        elif command.startswith("/") and " " not in command and command.count("/") == 1:
            self.write(HELP + "\n")
        elif line.strip():
            self.ask(line.strip())
        return True

    def ask(self, question: str) -> str:
        """Answer a question; a failure leaves the dialogue as it was."""
        images = [each for each in self.pending if not each.is_video]
        videos = [each for each in self.pending if each.is_video]
        turns, pieces = len(self.session.turns), []
        stream = self.session.stream(question, images, videos)
        try:
            for piece in stream:
                pieces.append(piece)
                self.write(piece)
        except KeyboardInterrupt:  # what was said so far stays
            self.write(" [stopped]")
        finally:
            stream.close()
        last = self.session.last
        if last is not None and last.detail:
            self.write(f" [stopped: {last.detail}]")
        self.write("\n")
        if len(self.session.turns) > turns:
            self.pending = []
        return "".join(pieces)

    def _undo(self) -> None:
        if not self.session.turns:
            self.write("there is nothing to take back.\n")
            return
        turn = self.session.undo()
        self.pending = list(turn.media)
        note = "; its images and videos go to the next one" if turn.media else ""
        self.write(f"took back: {turn.question}{note}.\n")

    def _info(self) -> str:
        lines = []
        if (last := self.session.last) is not None:
            lines.append(
                f"prompt {last.prompt_tokens} tokens, {last.reused_tokens} of them reused; "
                f"answer {len(last.ids)} tokens ({last.finish_reason}); "
                f"{plural(last.tiles, 'tile')}, {last.encoded_tiles} encoded"
            )
        memory = self.session.memory()
        lines.append(
            f"keys and values {mebibytes(memory['kv_bytes'])}, visual tokens "
            f"{mebibytes(memory['feature_bytes'])}, images {mebibytes(memory['media_bytes'])}"
        )
        return "\n".join(lines)

    def _add(self, command: str, path: str) -> None:
        if not path:
            self.write(f"{command} needs a path.\n")
            return
        read = read_image if command == "/image" else read_video
        media = read(self.session.processor, path, self.session.limits)
        self.pending.append(media)
        count = plural(sum(media.num_tiles), "tile")
        self.write(f"{media.label}: {count}, for the next question.\n")
