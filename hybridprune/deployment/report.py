"""The report of a deployment: what became of a network, layer by layer and block by block."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hybridprune.deployment.choice import Choice
from hybridprune.deployment.network import StepRecord
from hybridprune.deployment.validate import Validated


@dataclass(frozen=True)
class DeployReport:
    """The report of what `deploy` did."""

    batch: int
    device: str
    piece: int | None
    """Images that are run at a time, at most; None: as many as come."""
    pieces: Choice | None
    """The same by the clock of the whole network with dense layers; None: there was nothing to choose."""
    whole: Choice | None
    """Forms chosen layer by layer or all dense, by the clock of the whole network; None: they are the same."""
    folded: Mapping[str, str]
    """BatchNorm (or another scaling) -> the layer before it, which it was folded into."""
    folded_inputs: Mapping[str, str]
    """BatchNorm -> the layer behind it, which it was folded into after that took its form."""
    kept: tuple[str, ...]
    """BatchNorms that could not be folded."""
    forms: Mapping[str, Choice]
    """Of each factored layer and each 1x1 convolution that had several: as chosen by ``whole``, if not the fastest."""
    blocks: Mapping[str, Choice]
    """Of each gated block, by its number: what to do with it at its rate, asking the gate included."""
    fixed: Mapping[str, str]
    """Blocks whose gates were removed by hardening, and why."""
    steps: tuple[StepRecord, ...]
    """All blocks, in order; none without gates."""
    rates: tuple[float, ...]
    """Expected execution rates of the gated blocks, or of a cascade's members behind the first."""
    validated: Validated | None
    """The trained network beside the deployed one, where there were images for it."""
    macs_before: float
    """Expected, of one image, gates counted."""
    macs_after: float
    params_before: int
    params_after: int
    members: tuple[DeployReport, ...] = ()
    """A cascade's members, each on as many images as come as far."""
    trunk: DeployReport | None = None
    """Of the part of a member that the next one goes on from; names and choices here are then of the rest."""

    def behind(self, trunk: DeployReport) -> DeployReport:
        """The report of a member of which ``trunk`` runs first, and the part that this one is of then."""
        return dataclasses.replace(
            self,
            trunk=trunk,
            macs_before=trunk.macs_before + self.macs_before,
            macs_after=trunk.macs_after + self.macs_after,
            params_before=trunk.params_before + self.params_before,
            params_after=trunk.params_after + self.params_after,
        )

    def parts(self) -> Iterator[DeployReport]:
        """Reports of all the parts that were deployed by themselves, this one first."""
        yield self
        for part in (self.trunk, *self.members):
            if part is not None:
                yield from part.parts()

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"batch {self.batch} on {self.device}; medians in ms"]
        if self.trunk is not None:
            lines.append("  trunk, which the next member goes on from:")
            lines += [f"    {line}" for line in str(self.trunk).splitlines()]
        if self.pieces is not None:
            lines.append(f"  images at a time: {self.pieces}")
        if self.whole is not None:
            lines.append(f"  whole network: {self.whole}")
        lines += [f"  {name}: folded into {layer}" for name, layer in {**self.folded, **self.folded_inputs}.items()]
        lines += [f"  {name}: stays, there is nothing to fold it into" for name in self.kept]
        lines += [f"  {name}: {choice}" for name, choice in self.forms.items()]
        for i, step in enumerate(self.steps):
            name = str(i)
            rate = f" at rate {self.rates[i - 1]:.3f}" if i > 0 else ""
            why = [str(each[name]) for each in (self.blocks, self.fixed) if name in each]
            lines.append(f"  block {name}{rate}: {'; '.join(why) or step.action}")
        for k, (member, rate) in enumerate(zip(self.members, (1.0, *self.rates), strict=False)):
            lines.append(f"  member {k} at rate {rate:.3f}:")
            lines += [f"    {line}" for line in str(member).splitlines()]
        if self.validated is not None:
            lines.append(f"  {self.validated}")
        lines.append(f"  expected MACs {self.macs_before:,.0f} -> {self.macs_after:,.0f}")
        lines.append(f"  parameters {self.params_before:,} -> {self.params_after:,}")
        return "\n".join(lines)
