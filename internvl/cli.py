"""The command line: `python -m internvl chat | explain | doctor`, thin calls into modules.

Those for checkpoints (adopt, verify, ...), data, filtering, training and evaluation stand in
commands.py of their packages.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from internvl import cli_loading, cli_output
from internvl.app import commands as app_commands
from internvl.checkpoints.commands import COMMANDS
from internvl.data import commands as data_commands
from internvl.evaluation import commands as evaluation_commands
from internvl.evaluation import scaling_commands
from internvl.evaluation.engines import commands as engine_commands
from internvl.evaluation.vision import commands as vision_commands
from internvl.evaluation.vision.segmentation import commands as segmentation_commands
from internvl.filtering import commands as filtering_commands
from internvl.training import commands as training_commands

if TYPE_CHECKING:  # torch and transformers are imported by the commands that need them
    from internvl.chat.media import Limits, Media
    from internvl.chat.session import ChatSession

app = typer.Typer(
    help="InternVL 1.5, 2.0 and 2.5: ask questions about images and videos.",
    cls=cli_output.Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_VIDEOS = (".mp4", ".webm", ".mov", ".avi", ".mkv")

Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE|QUESTION", help="Images, then the question.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="PATH_OR_ID", help="Folder or Hub id; the demo if not given."),
]
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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _options() -> None:
    """InternVL 1.5, 2.0 and 2.5: ask questions about images and videos."""


@app.command()
@cli_output.with_quiet
def chat(
    inputs: Inputs = None,
    model: Model = None,
    subfolder: cli_loading.Subfolder = None,
    revision: cli_loading.Revision = None,
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
    dtype: cli_loading.Dtype = "auto",
    device_map: cli_loading.DeviceMap = "auto",
    attn_implementation: cli_loading.AttnImplementation = None,
    adapter: cli_loading.Adapter = None,
    quantization: cli_loading.Quantization = None,
    allow_urls: AllowUrls = False,
    trust_source_code: Annotated[
        bool,
        typer.Option("--trust-source-code", help="Run the code that the model's folder carries."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask about images and videos. Without a question: a dialogue, /help lists its commands."""
    with _plain_errors():
        images, question = split_inputs(inputs or [])
        if question is None and (cot or votes or as_json):
            raise ValueError("--cot, --votes and --json need a question; put it last, in quotes.")
        if as_json and stream:
            raise ValueError("--stream prints an answer as it comes, --json once it is whole.")
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
            device_map=cli_loading.device_map_of(device_map),
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
        how: dict[str, Any] = {"cot": cot, "most": max_new_tokens, "as_json": as_json}
        if question is None:
            _dialogue(Console(session, _write, media))
        elif votes is not None:
            _vote(session, question, media, votes, seed=seed, **how)
        else:
            _answer(session, question, media, stream=stream, **how)


@app.command()
@cli_output.with_quiet
def explain(
    inputs: Inputs = None,
    model: Model = None,
    subfolder: cli_loading.Subfolder = None,
    revision: cli_loading.Revision = None,
    video: Video = None,
    max_tiles: MaxTiles = None,
    num_frames: NumFrames = None,
    show_tiles: ShowTiles = None,
    max_new_tokens: MaxNewTokens = None,
    allow_urls: AllowUrls = False,
    as_json: AsJson = False,
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
@cli_output.with_quiet
def doctor(as_json: AsJson = False) -> None:
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
        picture = draw_tilings(tilings)
        show_tiles.parent.mkdir(parents=True, exist_ok=True)
        picture.save(show_tiles)
    return media + [read_video(processor, video, limits) for video in videos]


def _answer(
    session: ChatSession,
    question: str,
    media: list[Media],
    *,
    stream: bool,
    cot: bool,
    most: int | None,
    as_json: bool,
) -> None:
    """Answer one question, and say so when the answer was cut short; reasoning has all the room
    that there is, if `most` tokens are not said."""
    images, videos = session.read(media)
    options: dict[str, Any] = {}
    if cot:
        from internvl.chat import sampling

        question = sampling.reasoning_prompt(question)
        if most is None:
            options["max_new_tokens"] = sampling.reasoning_room(session, question, images, videos)
    if stream:
        for piece in session.stream(question, images, videos, **options):
            _write(piece)
        _write("\n")
    else:
        answer = session.ask(question, images, videos, **options)
        typer.echo(_reply_as_json(session) if as_json else answer)
    if session.last is not None and session.last.detail:
        typer.echo(f"stopped: {session.last.detail}", err=True)


def _reply_as_json(session: ChatSession) -> str:
    """The last answer, and how it came about."""
    last = session.last
    assert last is not None
    found = {
        "answer": last.text,
        "finish_reason": last.finish_reason,
        "detail": last.detail,
        "prompt_tokens": last.prompt_tokens,
        "answer_tokens": len(last.ids),
        "tiles": last.tiles,
    }
    return json.dumps(found, ensure_ascii=False)


def _vote(
    session: ChatSession,
    question: str,
    media: list[Media],
    votes: int,
    *,
    cot: bool,
    most: int | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Print the answer of the majority, and the count on standard error."""
    import torch

    from internvl.chat.sampling import vote

    if seed is not None:
        torch.manual_seed(seed)
    result = vote(session, question, media, votes=votes, cot=cot, max_new_tokens=most)
    if as_json:
        found: dict[str, Any] = {"answer": result.answer, "text": result.text}
        found |= {"texts": result.texts, "answers": result.answers, **asdict(result.vote)}
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    typer.echo(result.answer if result.answer is not None else result.text)
    counts = [f"{answer}: {count}" for answer, count in result.vote.counts.items()]
    if result.vote.unparsed:
        counts.append(f"without an answer: {result.vote.unparsed}")
    tie = "; a tie, the first one wins" if result.vote.tie else ""
    typer.echo(f"votes  {', '.join(counts)}{tie}", err=True)


def _dialogue(console: Any) -> None:
    """Feed lines of standard input to a console until they end."""
    asking = sys.stdin.isatty()
    if asking:
        _write("Ask; /help lists the commands, /quit leaves.\n")
    while True:
        try:
            line = input("> " if asking else "")
        except EOFError:
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
    except BrokenPipeError:  # `internvl eval list | head`: nobody reads on, which is no error
        raise
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"error: {_one_line(error)}", err=True)
        raise typer.Exit(cli_output.REFUSED) from error
    except KeyboardInterrupt:
        raise typer.Exit(cli_output.STOPPED) from None


def _guarded(command: Callable[..., None], *, models: bool = True) -> Callable[..., None]:
    """A command with --quiet whose errors are one line; `models` if it may load a model."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        with _plain_errors():
            if models:
                _quiet()
            command(*arguments, **options)

    return cli_output.with_quiet(run)


for _command in (*COMMANDS, *app_commands.COMMANDS):
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
_engine = typer.Typer(
    help="Run benchmarks through VLMEvalKit, lmms-eval and lm-eval.", no_args_is_help=True
)
for _name, _command in engine_commands.COMMANDS.items():
    _engine.command(_name)(_guarded(_command))
_eval.add_typer(_engine, name="engine")
_vision = typer.Typer(
    help="Evaluate the vision encoder: probing, segmentation.", no_args_is_help=True
)
for _command in (*vision_commands.COMMANDS, *segmentation_commands.COMMANDS):
    _vision.command()(_guarded(_command))
_eval.add_typer(_vision, name="vision")
app.add_typer(_eval, name="eval")


def main() -> None:
    """Entry point of the `internvl` command."""
    try:
        app()
    except Exception:  # noqa: BLE001  # typer ends the process itself where an end was foreseen
        traceback.print_exc()
        sys.exit(cli_output.BUG)


if __name__ == "__main__":
    main()
