"""Seeds of the fuzz: new cases in each run, unless ``FUZZ_SEED`` says which."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, note, seed, settings

Test = TypeVar("Test", bound=Callable[..., None])
SEED = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(2**32))


def fuzzed(cases: int) -> Callable[[Test], Test]:
    """Try so many cases, other ones each time; a failure prints its seed and the line that reproduces it."""

    def decorate(test: Test) -> Test:
        slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
        options = settings(
            max_examples=cases,
            derandomize=False,
            database=None,
            deadline=None,
            print_blob=True,
            phases=[Phase.generate],  # a case is found again by its seed; to make it smaller takes minutes
            suppress_health_check=slow,
        )
        return seed(SEED)(options(test))

    return decorate


def tell() -> None:
    """Print the seed if the case fails."""
    note(f"FUZZ_SEED={SEED}")
