"""Figures of samples."""

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: a value that was seen. Below 100 samples, that of 0.99 is the largest."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]
