"""Files that visitors send: looked at before anything decodes them, and removed with their owner.

Gradio stores an upload under the digest of its content, so two visitors who send the same file
share one path. A file goes when the last of its owners does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from internvl.app.bounds import MEBI, Bounds

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
_EBML = b"\x1a\x45\xdf\xa3"


def is_video(path: Path) -> bool:
    """Whether a file is named as a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def check_upload(path: Path, bounds: Bounds) -> None:
    """Refuse what is not a picture or a clip of a common kind, by its first bytes.

    The decoders know more kinds than a visitor needs, among them playlists that name other files
    and page descriptions that are programs.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: an empty or too large file, or one of another kind; the message is for the
            visitor.
    """
    name = path.name
    if not path.is_file():
        raise FileNotFoundError(f"{name} is no longer here; please add it again.")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{name} is empty.")
    if size > bounds.file_bytes:
        most = bounds.file_bytes / MEBI
        raise ValueError(f"{name} has {size / MEBI:.1f} MB; files may have up to {most:g} MB.")
    if is_video(path):
        with path.open("rb") as file:
            head = file.read(16)
        if not _is_clip(head):
            raise ValueError(
                f"{name} is not a readable video: expected MP4, MOV, WebM, MKV or AVI content."
            )
        return
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise ValueError(
            f"{name} is not a readable image: expected PNG, JPEG, WebP, GIF, BMP or TIFF content, "
            "or a video that ends in .mp4, .mov, .webm, .mkv or .avi."
        ) from None
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is not a readable image: {error}") from error
    if width * height > bounds.pixels:
        raise ValueError(
            f"{name} has {width} x {height} = {width * height / 1e6:.0f} megapixels; images may "
            f"have up to {bounds.pixels / 1e6:g}. Please make it smaller."
        )


def _is_clip(head: bytes) -> bool:
    riff = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    boxes = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
    return riff or head[:4] == _EBML or head[4:8] in boxes


class Uploads:
    """Who owns which file; safe to call from several threads.

    Args:
        folder: where all of them lie; files elsewhere are never touched.
        most_bytes: files of one owner; None for any number.
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self.folder, self.most_bytes = folder.resolve(), most_bytes
        self._owners: dict[Path, set[str]] = {}
        self._kept: set[Path] = set()
        self._lock = threading.Lock()

    def keep(self, paths: Iterable[Path]) -> None:
        """Never remove these: files of the page itself."""
        with self._lock:
            self._kept |= {path.resolve() for path in paths}

    def claim(self, owner: str, paths: Iterable[Path]) -> None:
        """Note that files belong to a visitor, until `release`.

        Raises:
            ValueError: his files would take too much; none of these is noted then.
        """
        with self._lock:
            held = {path for path, owners in self._owners.items() if owner in owners}
            found = {each.resolve() for each in paths} - self._kept - held
            fresh = [path for path in found if path.is_relative_to(self.folder)]
            if fresh and self.most_bytes is not None:
                size = sum(map(_size, [*held, *fresh]))
                if size > self.most_bytes:
                    raise ValueError(
                        f"The files of this chat take {size / MEBI:.0f} MB on disk; up to "
                        f"{self.most_bytes / MEBI:.0f} are possible. Please start a new chat."
                    )
            for path in fresh:
                self._owners.setdefault(path, set()).add(owner)

    def release(self, owner: str, paths: Iterable[Path] | None = None) -> None:
        """Remove files that no one else owns.

        Args:
            owner: whose claim ends.
            paths: which of the files; all of them when None.
        """
        with self._lock:
            chosen = list(self._owners) if paths is None else [path.resolve() for path in paths]
            for path in chosen:
                owners = self._owners.get(path, set())
                if owner not in owners:
                    continue
                owners.discard(owner)
                if not owners:
                    del self._owners[path]
                    _remove(path)

    def sweep(self, age: float) -> None:
        """Remove files without an owner: sent and never used, or left by a broken upload.

        Args:
            age: seconds since their last change from which on they go.
        """
        limit = time.time() - age
        found = [Path(top, name) for top, _, names in os.walk(self.folder) for name in names]
        for path in found:
            with self._lock, contextlib.suppress(FileNotFoundError):  # gone meanwhile
                known = path in self._owners or path in self._kept
                if path.is_file() and not known and path.stat().st_mtime < limit:
                    _remove(path)

    def owned(self, owner: str) -> list[Path]:
        """Files of a visitor."""
        with self._lock:
            return [path for path, owners in self._owners.items() if owner in owners]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder of the digest may hold other names
        path.parent.rmdir()
