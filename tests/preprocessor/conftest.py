"""Property tests without a clock and without a folder of remembered examples."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repository", deadline=None, database=None)
settings.load_profile("repository")
