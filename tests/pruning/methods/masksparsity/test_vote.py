"""What BatchNorms want to lose and what a group loses, against the sentences of the paper spelled out."""

from __future__ import annotations

from itertools import combinations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.pruning.methods.masksparsity.vote import RULES, energy_share, magnitude, vote, wishes

MASKS = st.integers(1, 5).flatmap(
    lambda norms: st.integers(1, 7).flatmap(
        lambda channels: st.lists(
            st.lists(st.booleans(), min_size=channels, max_size=channels), min_size=norms, max_size=norms
        )
    )
)


def by_subsets(wanted: list[list[bool]]) -> set[int]:
    """V_i as the union, over all i BatchNorms, of what these all want; the largest i whose V_i is large enough."""
    wants = [{channel for channel, yes in enumerate(row) if yes} for row in wanted]
    fewest = min(map(len, wants))
    agreed = [
        set().union(*(set.intersection(*some) for some in combinations(wants, i))) for i in range(1, len(wants) + 1)
    ]
    return max((size, found) for size, found in enumerate(agreed) if len(found) >= fewest)[1]


@hypothesis.settings(max_examples=200)
@hypothesis.given(MASKS)
def test_the_vote_is_that_of_all_subsets(wanted: list[list[bool]]) -> None:
    assert set(vote(torch.tensor(wanted)).nonzero().flatten().tolist()) == by_subsets(wanted)


def test_a_vote_by_hand() -> None:
    wanted = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 1, 0, 1, 0]]).bool()
    # All agree on channel 1 alone, which is less than the two that the third wants; two agree on 0, 1 and 3.
    assert vote(wanted).tolist() == [True, True, False, True, False]
    assert vote(wanted[:1]).tolist() == wanted[0].tolist()
    wanted[2] = False
    assert not vote(wanted).any()


@hypothesis.settings(max_examples=50)
@hypothesis.given(seed=st.integers(0, 1000), share=st.floats(0.0, 1.0))
def test_the_energy_rule_takes_the_smallest_that_fit_into_the_share(seed: int, share: float) -> None:
    gammas = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = wishes(energy_share(gammas), share)
    for row, mine in zip(gammas, found, strict=True):
        left, expected = share * float((row**2).sum()), []
        for channel in row.abs().argsort().tolist()[:-1]:
            left -= float(row[channel] ** 2)
            if left < 0:
                break
            expected.append(channel)
        assert set(mine.nonzero().flatten().tolist()) == set(expected)


def test_the_energy_rule_takes_all_but_the_largest_of_a_batchnorm_that_is_dead() -> None:
    gammas = torch.tensor([[2e-4, -9.9e-4, 9e-4, 1e-4], [2e-4, -1.01e-3, 9e-4, 1e-4]])
    assert wishes(energy_share(gammas), 0.0).tolist() == [[True, False, True, True], [False] * 4]


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("gammas", [torch.zeros(2, 3), torch.full((1, 3), 1e-30), torch.ones(1, 1)])
def test_a_batchnorm_keeps_its_largest(rule: str, gammas: Tensor) -> None:
    levels = RULES[rule](gammas)
    assert levels.shape == gammas.shape and bool(levels.isfinite().all())
    assert wishes(levels, 2.0).sum(1).tolist() == [gammas.shape[1] - 1] * len(gammas)


def test_the_threshold_is_included_and_signs_do_not_matter() -> None:
    assert wishes(magnitude(torch.tensor([[0.5, -0.25, -2.0, 0.75]])), 0.5).tolist() == [[True, True, False, False]]
