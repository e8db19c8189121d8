"""The command line: `python -m internvl chat | explain | doctor`, thin calls into modules.

Those for checkpoints (adopt, verify, ...), data, filtering, training and evaluation stand in
commands.py of their packages.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from internvl.checkpoints.commands import COMMANDS
from internvl.data import commands as data_commands
from internvl.evaluation import commands as evaluation_commands
from internvl.evaluation import scaling_commands
from internvl.filtering import commands as filtering_commands
from internvl.training import commands as training_commands

if TYPE_CHECKING:  # torch and transformers are imported by the commands that need them
    from internvl.chat.media import Limits, Media
    from internvl.chat.session import ChatSession

app = typer.Typer(
    help="InternVL 1.5, 2.0 and 2.5: ask questions about images and videos.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_VIDEOS = (".mp4", ".webm", ".mov", ".avi", ".mkv")

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[IMAGE]... [QUESTION]", help="Images, then the question.", show_default=False
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="PATH_OR_ID", help="Folder or Hub id; the demo if not given."),
]
Subfolder = Annotated[
    str | None, typer.Option(help="Folder within the model's folder or repository.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]
Video = Annotated[
    list[str] | None, typer.Option("--video", metavar="FILE", help="A video; can be repeated.")
]
MaxTiles = Annotated[
    int | None, typer.Option(min=1, help="Most tiles of an image, thumbnail not counted.")
]
NumFrames = Annotated[int | None, typer.Option(min=1, help="Frames of a video.")]
AllowUrls = Annotated[bool, typer.Option("--allow-urls", help="Fetch images from http(s) URLs.")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
ShowTiles = Annotated[
    Path | None, typer.Option(metavar="PNG", help="Draw how the images are cut into this file.")
]


@app.callback()
def _options() -> None:
    """InternVL 1.5, 2.0 and 2.5: ask questions about images and videos."""


@app.command()
def chat(
    inputs: Inputs = None,
    model: Model = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    video: Video = None,
    max_tiles: MaxTiles = None,
    num_frames: NumFrames = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    show_tiles: ShowTiles = None,
    max_new_tokens: MaxNewTokens = None,
    cot: Annotated[
        bool, typer.Option("--cot", help="Ask for reasoning, with the prompt of the report.")
    ] = False,
    votes: Annotated[
        int | None, typer.Option(min=1, help="Sample so many answers and take the majority.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    keep_tags: Annotated[
        bool, typer.Option("--keep-tags", help="Leave <ref> and <box> in answers.")
    ] = False,
    loop_guard: Annotated[
        bool, typer.Option("--loop-guard", help="Stop an answer that repeats itself without end.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    device_map: Annotated[
        str,
        typer.Option(
            help="auto: over all accelerators, the CPU if there is none; or cpu, mps, ..."
        ),
    ] = "auto",
    attn_implementation: Annotated[
        str | None, typer.Option(help="sdpa, eager, flash_attention_2 ...")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Folder or Hub id of a PEFT adapter.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="bnb-int8, bnb-nf4, torchao-int8 or torchao-int4.")
    ] = None,
    allow_urls: AllowUrls = False,
    trust_source_code: Annotated[
        bool,
        typer.Option("--trust-source-code", help="Run the code that the model's folder carries."),
    ] = False,
) -> None:
    """Ask about images and videos. Without a question: a dialogue, /help lists its commands."""
    with _plain_errors():
        images, question = split_inputs(inputs or [])
        from internvl import hub
        from internvl.chat.console import Console
        from internvl.chat.media import Limits
        from internvl.chat.session import ChatSession

        _quiet()
        loaded = hub.load(
            model,
            subfolder=subfolder,
            revision=revision,
            dtype=dtype,
            device_map=_device_map(device_map),
            attn_implementation=attn_implementation,
            adapter=adapter,
            quantization=quantization,
            trust_source_code=trust_source_code,
        )
        if loaded.tokenizer is None:
            raise ValueError(
                f"{model} is a vision encoder, which cannot chat; name a chat checkpoint."
            )
        limits = Limits(max_tiles, num_frames, allow_urls)
        media = _media(loaded.processor, images, video or [], limits, show_tiles)
        session = ChatSession(
            loaded.model,
            loaded.processor,
            tokenizer=loaded.tokenizer,
            generation={"max_new_tokens": max_new_tokens},
            limits=limits,
            keep_grounding=keep_tags,
            loop_guard=loop_guard,
        )
        if question is None:
            if cot or votes:
                raise ValueError("--cot and --votes need a question; put it last, in quotes.")
            _dialogue(Console(session, _write, media))
        elif votes is not None:
            _vote(session, question, media, votes, cot=cot, seed=seed)
        else:
            _answer(session, question, media, stream=stream, cot=cot)


@app.command()
def explain(
    inputs: Inputs = None,
    model: Model = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    video: Video = None,
    max_tiles: MaxTiles = None,
    num_frames: NumFrames = None,
    show_tiles: ShowTiles = None,
    max_new_tokens: MaxNewTokens = None,
    allow_urls: AllowUrls = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the exact prompt, tiles, token counts and generation settings; needs no weights."""
    with _plain_errors():
        images, question = split_inputs(inputs or [])
        if question is None:
            raise ValueError("there is no question; put it last: explain IMAGE... QUESTION")
        from internvl import hub
        from internvl.chat import accounting, request
        from internvl.chat.media import Limits

        _quiet()
        prepared = hub.prepare(model, subfolder=subfolder, revision=revision)
        limits = Limits(max_tiles, num_frames, allow_urls)
        media = _media(prepared.processor, images, video or [], limits, show_tiles)
        asked = request.compose([request.Turn(question, media)], prepared.processor.frame_prefix)
        settings = request.generation_settings(prepared.generation, max_new_tokens=max_new_tokens)
        account = accounting.explain(prepared, asked, settings)
        typer.echo(
            json.dumps(account, ensure_ascii=False, indent=2)
            if as_json
            else accounting.describe(account)
        )


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Report versions, devices and attention, what is missing and what that costs."""
    from internvl import doctor as module

    report = module.examine()
    typer.echo(json.dumps(report, indent=2) if as_json else module.describe(report))
    if report["problems"]:
        raise typer.Exit(1)


# ---------------------------------------------------------------------- helpers
def split_inputs(words: list[str]) -> tuple[list[str], str | None]:
    """Split words into images and the question: the last word, unless it names an image.

    Raises:
        FileNotFoundError: a word that should be an image and is no file.
    """
    question: str | None = None
    if words and not _names_media(words[-1]):
        *words, question = words
        if Path(question).suffix.lower() in _PICTURES + _VIDEOS and " " not in question.strip():
            raise FileNotFoundError(f"there is no file {question!r}.")
    for word in words:
        if not _names_media(word):
            raise FileNotFoundError(
                f"there is no file {word!r}; images come first, the question last, in quotes."
            )
    return words, question


def _names_media(word: str) -> bool:
    if word.lower().startswith(("http://", "https://", "data:")) and " " not in word:
        return True
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # too long for a path
        return False


def _media(
    processor: Any, images: list[str], videos: list[str], limits: Limits, show_tiles: Path | None
) -> list[Media]:
    """Read images and videos, and draw the tiling if asked."""
    from internvl.chat.media import read_image, read_video
    from internvl.chat.tiles_picture import draw_tilings

    media = [read_image(processor, image, limits) for image in images]
    if show_tiles is not None:
        tilings = [each.tiling for each in media if each.tiling is not None]
        draw_tilings(tilings).save(show_tiles)
    return media + [read_video(processor, video, limits) for video in videos]


def _answer(
    session: ChatSession, question: str, media: list[Media], *, stream: bool, cot: bool
) -> None:
    """Answer one question, and say so when the answer was cut short."""
    images, videos = session.read(media)
    options: dict[str, Any] = {}
    if cot:
        from internvl.chat import sampling

        question = sampling.reasoning_prompt(question)
        options["max_new_tokens"] = sampling.reasoning_room(session, question, images, videos)
    if stream:
        for piece in session.stream(question, images, videos, **options):
            _write(piece)
        _write("\n")
    else:
        typer.echo(session.ask(question, images, videos, **options))
    if session.last is not None and session.last.detail:
        typer.echo(f"stopped: {session.last.detail}", err=True)


def _vote(
    session: ChatSession,
    question: str,
    media: list[Media],
    votes: int,
    *,
    cot: bool,
    seed: int | None,
) -> None:
    """Print the answer of the majority, and the count on standard error."""
    import torch

    from internvl.chat.sampling import vote

    if seed is not None:
        torch.manual_seed(seed)
    result = vote(session, question, media, votes=votes, cot=cot)
    typer.echo(result.answer if result.answer is not None else result.text)
    counts = [f"{answer}: {count}" for answer, count in result.vote.counts.items()]
    if result.vote.unparsed:
        counts.append(f"without an answer: {result.vote.unparsed}")
    tie = "; a tie, the first one wins" if result.vote.tie else ""
    typer.echo(f"votes  {', '.join(counts)}{tie}", err=True)


def _device_map(name: str) -> str | None:
    """`auto` spreads a model over accelerators; without one, the CPU takes it whole."""
    import torch

    if name in ("", "cpu") or (name == "auto" and not torch.accelerator.is_available()):
        return None
    return name


def _dialogue(console: Any) -> None:
    """Feed lines of standard input to a console until they end."""
    asking = sys.stdin.isatty()
    if asking:
        _write("Ask; /help lists the commands, /quit leaves.\n")
    while True:
        try:
            line = input("> " if asking else "")
        except (EOFError, KeyboardInterrupt):
            return
        try:
            if not console.feed(line):
                return
        except (ValueError, OSError, ImportError) as error:
            typer.echo(f"error: {_one_line(error)}", err=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _quiet() -> None:
    """Keep the output to answers and errors, and to progress bars at a terminal."""
    import transformers

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Print what went wrong as one line and exit with code 2; bugs keep their traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"error: {_one_line(error)}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _guarded(command: Callable[..., None], *, models: bool = True) -> Callable[..., None]:
    """A command whose errors are printed as by the others; `models` if it may load one."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        with _plain_errors():
            if models:
                _quiet()
            command(*arguments, **options)

    return run


for _command in COMMANDS:
    app.command()(_guarded(_command))

_data = typer.Typer(help="Look at training data.", no_args_is_help=True)
for _command in data_commands.COMMANDS:
    _data.command()(_guarded(_command))
app.add_typer(_data, name="data")

_filter = typer.Typer(
    help="Clean training data: rules, an LLM judge, review.", no_args_is_help=True
)
for _command in filtering_commands.COMMANDS:
    _filter.command()(_guarded(_command, models=False))
app.add_typer(_filter, name="filter")

_train = typer.Typer(
    help="Train: `internvl train RECIPE.yaml`, and what makes checkpoints to start from.",
    cls=training_commands.RecipeGroup,
    no_args_is_help=True,
)
for _command in training_commands.COMMANDS:
    _train.command()(_guarded(_command))
app.add_typer(_train, name="train")

_eval = typer.Typer(
    help="Evaluate: the benchmarks of the report, run, scored and compared.", no_args_is_help=True
)
for _name, _command in {**evaluation_commands.COMMANDS, **scaling_commands.COMMANDS}.items():
    _eval.command(_name)(_guarded(_command))
app.add_typer(_eval, name="eval")


def main() -> None:
    """Entry point of the `internvl` command."""
    app()


if __name__ == "__main__":
    main()
