"""A dialogue as a folder: session.json, and its images and frames as PNG, which loses nothing.

session.json        turns, settings, names of the files below
media/1.png         an image, whole
media/2/1.png ...   the frames of a video, as the model saw them
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from internvl.chat.media import Limits, Media, read_image, read_video
from internvl.chat.request import Turn

FILE, FORMAT = "session.json", 1


@dataclass(frozen=True)
class StoredMedia:
    """An image (one file) or a video (one file for each frame)."""

    label: str
    is_video: bool
    files: list[Path]


@dataclass(frozen=True)
class StoredTurn:
    """A turn whose media are still files."""

    question: str
    media: list[StoredMedia]
    answer: str


def write(folder: Path, turns: Sequence[Turn], settings: dict[str, Any]) -> None:
    """Write a dialogue to a folder, as a whole or not at all.

    Raises:
        ValueError: the folder holds something else, or a setting is no JSON.
    """
    if folder.exists() and not (folder / FILE).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} has files but no {FILE}; give a new folder.")
    try:
        json.dumps(settings)
    except TypeError as error:
        raise ValueError(
            f"the settings cannot be saved as JSON ({error}); pass such objects to ask() instead."
        ) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        made = Path(name) / "new"
        made.mkdir()
        numbers: dict[int, dict[str, Any]] = {}
        written = []
        for turn in turns:
            media = []
            for each in turn.media:
                if id(each) not in numbers:
                    numbers[id(each)] = _write_media(made, len(numbers) + 1, each)
                media.append(numbers[id(each)])
            written.append({"question": turn.question, "media": media, "answer": turn.answer})
        content = {"format": FORMAT, "settings": settings, "turns": written}
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (made / FILE).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(name) / "old")
        made.rename(folder)


def _write_media(folder: Path, number: int, media: Media) -> dict[str, Any]:
    if media.tiling is not None:
        pictures = {f"media/{number}.png": media.tiling.image}
    else:
        frames = media.pixel_values.permute(0, 2, 3, 1).contiguous().numpy()
        pictures = {
            f"media/{number}/{index}.png": Image.fromarray(frame)
            for index, frame in enumerate(frames, 1)
        }
    for name, picture in pictures.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    return {"label": media.label, "is_video": media.is_video, "files": list(pictures)}


def read(folder: Path) -> tuple[dict[str, Any], list[StoredTurn]]:
    """Read what `write` wrote.

    Returns:
        Settings and turns.

    Raises:
        FileNotFoundError: there is no session in the folder.
        ValueError: it is damaged, or of a later version.
    """
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is no {FILE} in {folder}; save() writes one.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} is not {FORMAT}")
        turns = [
            StoredTurn(
                turn["question"],
                [
                    StoredMedia(m["label"], m["is_video"], [_inside(folder, f) for f in m["files"]])
                    for m in turn["media"]
                ],
                turn["answer"],
            )
            for turn in content["turns"]
        ]
        return content["settings"], turns
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged or of another version ({error!r}); save the session anew."
        ) from error


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder, and no other."""
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} is outside of the session")
    return file


def to_media(processor: Any, stored: StoredMedia, limits: Limits) -> Media:
    """Cut the images of a stored turn again.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    if not stored.is_video:
        media = read_image(processor, stored.files[0], limits)
    else:
        frames = []
        for file in stored.files:
            with Image.open(file) as picture:
                frames.append(picture.convert("RGB"))
        media = read_video(processor, frames)
    return Media(stored.label, media.is_video, media.pixel_values, media.num_tiles, media.tiling)
