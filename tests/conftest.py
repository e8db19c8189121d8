"""Fixtures for all tests."""

from __future__ import annotations

import os

import pytest
import torch
import transformers
from hypothesis import settings

from tests import support

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
