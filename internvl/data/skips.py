"""What happens to samples that cannot be used: they are left out, counted, and bounded.

No other sample takes their place: an epoch then is what the mixture says it is, less what the
counts say.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from internvl.data.schema import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SkipPolicy:
    """How many samples may be left out.

    Attributes:
        max_share: largest share of the samples seen.
        grace: that many are allowed in any case, so that a few at the start stop nothing.
        shown: messages logged for each reason.
    """

    max_share: float = 0.05
    grace: int = 20
    shown: int = 5

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not 0 <= self.max_share <= 1 or self.grace < 0 or self.shown < 0:
            raise ValueError(
                f"{self}; expected max_share within 0..1, and grace and shown of at least 0."
            )


@dataclass
class Skips:
    """Counts of one reader.

    Attributes:
        policy: the bounds.
        seen: samples looked at.
        reasons: samples left out, by reason.
    """

    policy: SkipPolicy = field(default_factory=SkipPolicy)
    seen: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Samples left out."""
        return self.reasons.total()

    def note(self, error: DataError, where: Callable[[], str]) -> None:
        """Count a sample that cannot be used, and log the first of each reason.

        Args:
            error: what is wrong.
            where: tells the place of the sample; only called for a message.

        Raises:
            DataError: more than the policy allows.
        """
        self.reasons[error.reason] += 1
        if self.reasons[error.reason] <= self.policy.shown:
            logger.warning("left out (%s): %s: %s", error.reason, where(), error)
        if self.total > max(self.policy.grace, self.policy.max_share * self.seen):
            raise DataError(
                "too_many_skips",
                f"{self.total} of {self.seen} samples cannot be used ({dict(self.reasons)}), more "
                f"than max_share={self.policy.max_share} allows; run `internvl data validate` and "
                f"correct the data, or raise the bound. The last: {where()}: {error}",
            ) from error
