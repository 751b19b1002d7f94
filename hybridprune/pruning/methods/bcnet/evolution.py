"""Evolution of widths: the best of all so far have mutants and children, as in the authors' searcher (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hybridprune.pruning.methods.bcnet.choices import Widths

TRIES = 10
"""Candidates that are made for each that is wanted, at most: those that are known already are left out."""


@dataclass(frozen=True)
class Evolution:
    """The sizes of an evolution."""

    population: int
    """Of each generation: half mutants and half children, and new draws where these are too few."""
    generations: int
    """The first one included, which is drawn."""
    parents: int = 10
    mutated: float = 0.1
    """The probability that a width of a mutant is drawn anew."""


def evolve(
    evolution: Evolution,
    draw: Callable[[], Sequence[int]],
    repaired: Callable[[Sequence[int]], Widths],
    fitness: Callable[[Widths], float],
    source: torch.Generator,
) -> Widths:
    """The widths of the highest fitness that are found, of equals the first; none is tried twice.

    Args:
        draw: gives the widths of a new candidate.
        repaired: makes a candidate one that may live.
        source: decides who mutates where, and who is whose child.
    """
    known: dict[Widths, float] = {}

    def best() -> list[Widths]:
        return sorted(known, key=lambda widths: known[widths], reverse=True)[: evolution.parents]

    def fresh(make: Callable[[], Sequence[int]], number: int, others: Sequence[Widths] = ()) -> list[Widths]:
        found: list[Widths] = []
        for _ in range(TRIES * number):
            if len(found) == number:
                break
            candidate = repaired(make())
            if candidate not in known and candidate not in found and candidate not in others:
                found.append(candidate)
        return found

    population = fresh(draw, evolution.population)
    for generation in range(evolution.generations):
        known |= {widths: fitness(widths) for widths in population}
        if generation + 1 == evolution.generations:
            break
        parents = best()

        def chosen(parents: Sequence[Widths] = parents) -> Widths:
            return parents[int(torch.randint(len(parents), (), generator=source))]

        def mutant() -> list[int]:
            one, new = chosen(), draw()
            changes = (torch.rand(len(one), generator=source) < evolution.mutated).tolist()
            return [b if change else a for a, b, change in zip(one, new, changes, strict=True)]

        def child() -> list[int]:
            one, other = chosen(), chosen()
            sides = (torch.rand(len(one), generator=source) < 0.5).tolist()
            return [a if side else b for a, b, side in zip(one, other, sides, strict=True)]

        population = fresh(mutant, evolution.population // 2)
        population += fresh(child, evolution.population // 2, population)
        population += fresh(draw, evolution.population - len(population), population)
        if not population:
            break
    return best()[0]
