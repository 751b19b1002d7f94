"""The paired bootstrap against the normal approximation and its own symmetries."""

from __future__ import annotations

import math

import numpy as np

from hybridprune.report.bootstrap import paired_bootstrap


def answers(share: float, seed: int, images: int = 10_000) -> np.ndarray:
    return np.random.default_rng(seed).random(images) < share


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    a, b = answers(0.6, 0), answers(0.57, 1)
    found = paired_bootstrap(a, b, resamples=3000)
    difference = a.astype(float) - b.astype(float)
    half = 1.96 * difference.std() / math.sqrt(len(a))
    assert found.mean == difference.mean()
    assert abs(found.low - (found.mean - half)) < 0.1 * half and abs(found.high - (found.mean + half)) < 0.1 * half


def test_what_both_get_wrong_cancels() -> None:
    hard = answers(0.5, 2)
    a, b = hard.copy(), hard.copy()
    b[np.flatnonzero(hard)[:100]] = False
    paired = paired_bootstrap(a, b, resamples=2000)
    shuffled = paired_bootstrap(a, np.random.default_rng(3).permutation(b), resamples=2000)
    assert paired.beats and not shuffled.beats
    assert paired.high - paired.low < 0.3 * (shuffled.high - shuffled.low)


def test_exchanging_the_networks_changes_the_sign() -> None:
    a, b = answers(0.6, 0), answers(0.57, 1)
    one, other = paired_bootstrap(a, b, resamples=2000), paired_bootstrap(b, a, resamples=2000)
    assert one.mean == -other.mean and abs(one.low + other.high) < 2e-3
    assert one.beats and not other.beats


def test_equal_answers_beat_nothing() -> None:
    a = answers(0.6, 0)
    assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0) and not paired_bootstrap(a, a).beats
