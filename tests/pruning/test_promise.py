"""What a plan promised and what a cut network costs."""

from __future__ import annotations

import pytest

from hybridprune.pruning.budget.space import Cost, Space
from hybridprune.pruning.promise import BrokenPromise, check_promise
from tests.networks_and_images import random_net
from tests.pruning.test_make_plan import plan_of


@pytest.mark.parametrize("found", [Cost(11, 20), Cost(10, 21)])
def test_any_difference_is_an_error(found: Cost) -> None:
    check_promise(Cost(10, 20), Cost(10, 20))
    with pytest.raises(BrokenPromise, match=f"promised 10 MACs and 20 parameters.*{found.macs} and {found.params}"):
        check_promise(Cost(10, 20), found)


@pytest.mark.parametrize("method", ["fisher-tucker", "l1"])
def test_a_plan_keeps_its_promise_or_fails(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(random_net(8, 4), cut={"method": method})
    kept = [units.least for units in plan.space.sets]
    plan.apply(kept)
    plan = plan_of(random_net(8, 4), cut={"method": method})
    cost = Space.cost
    monkeypatch.setattr(Space, "cost", lambda self, kept: cost(self, kept).plus(Cost(0, 1)))
    with pytest.raises(BrokenPromise, match="internal error: the plan promised"):
        plan.apply(kept)
