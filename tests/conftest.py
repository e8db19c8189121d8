"""Fixtures for all tests."""

from __future__ import annotations

import os
import tempfile

# Remote code is copied into a folder of this process: the user's stays as it is, and no two
# processes write the same file. Read once, when transformers is imported.
_modules = tempfile.TemporaryDirectory(prefix="internvl-modules-")
os.environ["HF_MODULES_CACHE"] = _modules.name

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests import support  # noqa: E402

# Property tests have no clock, no folder of remembered examples, and the same examples
# in every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("repository", deadline=None, database=None, derandomize=True)
settings.register_profile("explore", deadline=None, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repository"))


@pytest.fixture(autouse=True)
def _quiet_and_seeded() -> None:
    """Same random numbers in every test; no progress bars."""
    torch.manual_seed(0)
    transformers.logging.disable_progress_bar()


@pytest.fixture(params=support.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Each golden checkpoint."""
    return request.param


@pytest.fixture(params=["eager", "sdpa"])
def attention(request: pytest.FixtureRequest) -> str:
    """Each attention implementation that a CPU has."""
    return request.param


@pytest.fixture(scope="module")
def qwen2():
    """The Qwen2 golden checkpoint and its tokenizer."""
    return support.load("qwen2"), support.tokenizer("qwen2")
