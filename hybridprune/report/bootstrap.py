"""Whether one network beats another on the same images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """Accuracy of a over that of b on the same images, with its interval."""

    mean: float
    low: float
    high: float

    @property
    def beats(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0


def paired_bootstrap(
    correct_a: np.ndarray, correct_b: np.ndarray, *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Difference:
    """Percentile interval of the mean difference of two 0/1 vectors ``[M]`` over the same M images.

    Both networks see each resampled set of images, so what makes an image hard for both cancels.
    """
    assert correct_a.shape == correct_b.shape and correct_a.ndim == 1
    difference = correct_a.astype(np.float64) - correct_b.astype(np.float64)
    mean = float(difference.mean())
    if not difference.any():
        return Difference(0.0, 0.0, 0.0)
    # Here and not above: it is slow to import, and few tables compare image by image.
    from scipy.stats import bootstrap

    interval = bootstrap(
        (difference,),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high))
