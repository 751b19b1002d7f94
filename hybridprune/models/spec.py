"""The specification of a network: a registry name, its arguments and the edits made to it. It rebuilds it exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hybridprune.config.networks import NETWORKS
from hybridprune.config.options import DEEPEST, WIDEST, NetworkOptions
from hybridprune.errors import UserError
from hybridprune.json_text import short, value_at
from hybridprune.models.architectures import allow, architecture, is_network
from hybridprune.models.edits import Edit, apply_edits, edit_from_json
from hybridprune.models.gates import GATES, UNGATED
from hybridprune.models.own_network import READABLE
from hybridprune.models.skipnet import GatedNetwork

MOST_CLASSES = 1 << 20
_IN_LABELS = {
    "width": "w{}",
    "pyramid_alpha": "a{}",
    "bottleneck": "bottleneck",
    "shakedrop": "shakedrop{:g}",
    "gate": "{}",
}


@dataclass(frozen=True)
class NetworkSpec:
    """A gated network's architecture. What its network does not read is kept and has no effect.

    A network of a user's own may be without a depth or a width: then its factory has one by default, or none.
    """

    network: str
    depth: int | None
    width: int | None
    classes: int
    edits: tuple[Edit, ...] = ()
    bottleneck: bool = False
    pyramid_alpha: int = 48
    shakedrop: float = 0.0
    gate: str = "rnn"

    @staticmethod
    def of(options: NetworkOptions, classes: int) -> NetworkSpec:
        """The unpruned network that the options ask for.

        Options are the user's, so a ``module:factory`` is imported. Raises UserError if there is no such network, if it
        does not read one of the options given, or if it needs one that is not.
        """
        allow(options.network)
        found = architecture(options.network)
        usual = NetworkOptions()
        for name in (*READABLE, "gate"):
            value, ours = getattr(options, name), not found.foreign
            # A configuration file, as the published one, has the usual sizes whatever the network is.
            if name in found.reads or value in (None, getattr(usual, name)) or (ours and name in ("depth", "width")):
                continue
            readers = " or ".join(network for network in NETWORKS.built_in if name in architecture(network).reads)
            remedy = f"use {readers}" if ours else f"give its factory a parameter {name}"
            raise UserError(
                f"--{name} {value}: --network {options.network} does not read it; leave it out, or {remedy}"
            )
        for name in found.needs:
            if getattr(options, name) is None:
                raise UserError(f"--{name}: --network {options.network} needs it; give it, or its factory a default")
        return NetworkSpec(classes=classes, **{f.name: getattr(options, f.name) for f in dataclasses.fields(options)})

    @property
    def arguments(self) -> dict[str, Any]:
        """The fields that shape this network, by name, beside its classes and edits."""
        values = {name: getattr(self, name) for name in architecture(self.network).reads}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def label(self) -> str:
        """A short name for folders and tables, e.g. resnet32-w64 or torchvision_resnet50."""
        arguments = self.arguments
        if arguments.get("gate") == "rnn":  # the default is not named: labels are older than the choice
            del arguments["gate"]
        parts = [self.network.replace(":", "_") + str(arguments.pop("depth", ""))]
        return "-".join(parts + [_IN_LABELS[name].format(value) for name, value in arguments.items() if value])

    def __str__(self) -> str:
        arguments = self.arguments
        depth = f"-{arguments.pop('depth')}" if "depth" in arguments else ""
        return ", ".join([self.network + depth, *(f"{name} {value}" for name, value in arguments.items())])

    def build(self) -> GatedNetwork:
        """A freshly initialised network of this architecture; UserError if its arguments make none."""
        net = GatedNetwork(architecture(self.network).build(self.classes, self.arguments), self.gate)
        apply_edits(net, self.edits)
        return net

    def classifier(self) -> list[str]:
        """Names of the backbone's parameters whose shapes depend on the number of classes."""
        with torch.device("meta"):
            own, other = (
                dataclasses.replace(self, classes=classes).build().backbone.state_dict()
                for classes in (self.classes, self.classes + 1)
            )
        return [name for name, tensor in own.items() if tensor.shape != other[name].shape]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**fields, "edits": [edit.to_json() for edit in self.edits]}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> NetworkSpec:
        """The inverse of ``to_json``; raises KeyError, TypeError or ValueError on anything else.

        Fields younger than the record take their defaults.
        """
        if not isinstance(record, Mapping):
            raise TypeError(f"a network is a {type(record).__name__}, not an object")
        if not is_network(record["network"]):
            raise ValueError(f"unknown network {short(record['network'])}")
        fields = {f.name: f.default for f in dataclasses.fields(NetworkSpec)}
        if unknown := sorted(record.keys() - fields.keys()):
            raise ValueError(f"unknown field {short(unknown[0])}")
        values = {
            name: record[name] if default is dataclasses.MISSING else record.get(name, default)
            for name, default in fields.items()
        }
        for name, low, high in (
            ("depth", 1, DEEPEST), ("width", 1, WIDEST), ("pyramid_alpha", 0, WIDEST), ("classes", 1, MOST_CLASSES)
        ):  # fmt: skip
            if values[name] is None and name in ("depth", "width") and not NETWORKS.ours(values["network"]):
                continue
            value_at(values, name, int, low, high)
        value_at(values, "bottleneck", bool)
        value_at(values, "shakedrop", float, 0, 1)
        if values["gate"] not in (*GATES, UNGATED):
            raise ValueError(f"unknown gate {short(values['gate'])}")
        values["edits"] = tuple(edit_from_json(edit) for edit in value_at({"edits": record["edits"]}, "edits", list))
        return NetworkSpec(**values)
