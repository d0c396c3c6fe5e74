"""Numbers with how far they can be trusted: rates, means, and what a report is made of."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor


class Part(BaseModel):
    """A part of a report: its fields and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(Part):
    """k of n, with the exact (Clopper–Pearson) two-sided 95% interval and the one-sided 95% upper bound."""

    k: int
    n: int
    low: float
    high: float
    upper: float

    @classmethod
    def of(cls, k: int, n: int) -> Self:
        """Count k events in n independent trials."""
        from scipy.stats import binomtest  # half a second to import, and only measuring needs it

        test = binomtest(k, n)
        both = test.proportion_ci(0.95, "exact")
        upper = binomtest(k, n, alternative="less").proportion_ci(0.95, "exact").high
        return cls(k=k, n=n, low=float(both.low), high=float(both.high), upper=float(upper))

    @classmethod
    def among(cls, hits: "Tensor") -> Self:
        """How many of some flags are set, (B,) bool."""
        return cls.of(int(hits.sum()), len(hits))

    @staticmethod
    def needed(bound: float) -> int:
        """How many drawings without one event say that the rate is at most `bound`, with 95% confidence.

        By the rule of three, 3 / bound; exactly, the least n with (1 - bound)^n <= 0.05.
        """
        return math.ceil(math.log(0.05) / math.log1p(-bound))

    def __str__(self) -> str:
        return f"{self.k} of {self.n} ({self.low:.1%} to {self.high:.1%})"


def interval(values: Sequence[float], over: Sequence[float] | None = None) -> tuple[float, float]:
    """Of a mean, 95%, by 2,000 bootstrap resamples of a fixed seed (percentiles).

    Args:
        values: independent numbers.
        over: as many others, drawn pair by pair with them; the interval is then of the one mean over the other.
    """
    import numpy as np
    from scipy.stats import bootstrap

    def mean(x: Any, y: Any = None, axis: int = -1) -> Any:
        return x.mean(axis) if y is None else x.mean(axis) / y.mean(axis)

    pairs = [np.asarray(one, dtype=float) for one in (values, over) if one is not None]
    drawn = bootstrap(pairs, mean, paired=True, vectorized=True, n_resamples=2000, method="percentile", rng=0)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


class Mean(Part):
    """A number with its 95% interval; none of fewer than two."""

    value: float
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, values: Sequence[float], over: Sequence[float] | None = None) -> Self:
        """The mean of independent numbers, or the ratio of it to that of others, by bootstrap."""
        value = sum(values) / (len(values) if over is None else sum(over))
        return cls(value=value, interval=interval(values, over) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.value:.4f}" + (" ({:.4f} to {:.4f})".format(*self.interval) if self.interval else "")
