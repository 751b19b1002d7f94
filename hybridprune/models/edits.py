"""Edits of a network: layers that became narrower, factored or branched. From them a fresh one is rebuilt."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from hybridprune.json_text import short, value_at
from hybridprune.models.branched import Branch, BranchedConv2d
from hybridprune.models.factored import (
    DENSE,
    FactoredConv2d,
    FactoredLayer,
    FactoredLinear,
    Ranks,
    blank,
    factored,
    form,
)
from hybridprune.models.factored_weights import outline
from hybridprune.models.frozen_norm import is_frozen_norm, is_norm
from hybridprune.models.replace import inherit, memory_format, replace_module


@dataclass(frozen=True)
class FactorEdit:
    """One edit of a network: ``layer`` becomes factored with these ranks (None: no such rotation)."""

    layer: str
    rank_in: int | None
    rank_out: int | None
    separable: bool = False
    """Whether its core is depthwise, and both ranks the number of its channels."""

    @property
    def ranks(self) -> Ranks:
        """The form that the layer gets."""
        return Ranks(self.rank_in, self.rank_out, self.separable)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; it says ``separable`` where that is so."""
        record = asdict(self)
        if not self.separable:
            del record["separable"]
        return record

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> FactorEdit:
        """The inverse of ``to_json``; raises KeyError or ValueError on anything else."""
        rank_in, rank_out = (
            None if record[name] is None else value_at(record, name, int, low=1) for name in ("rank_in", "rank_out")
        )
        separable = value_at(record, "separable", bool) if "separable" in record else False
        return FactorEdit(value_at(record, "layer", str), rank_in, rank_out, separable)


@dataclass(frozen=True)
class ResizeEdit:
    """One edit of a network: a convolution, linear layer or BatchNorm gets other numbers of channels (features)."""

    layer: str
    in_channels: int
    out_channels: int

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, of kind ``resize``."""
        return {"kind": "resize", **asdict(self)}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> ResizeEdit:
        """The inverse of ``to_json``; raises KeyError or ValueError on anything else."""
        if record["kind"] != "resize":
            raise ValueError(f"an edit of kind {short(record['kind'])}")
        inputs, outputs = (value_at(record, name, int, low=1) for name in ("in_channels", "out_channels"))
        return ResizeEdit(value_at(record, "layer", str), inputs, outputs)


@dataclass(frozen=True)
class BranchEdit:
    """One edit of a network: a convolution becomes branches of these sizes; which channels they have, its weights say.

    See `BranchedConv2d`.
    """

    layer: str
    branches: tuple[Branch, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, of kind ``branch``."""
        return {"kind": "branch", "layer": self.layer, "branches": [list(sizes) for sizes in self.branches]}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> BranchEdit:
        """The inverse of ``to_json``; raises KeyError, TypeError or ValueError on anything else."""
        sizes = [{"inputs": inputs, "outputs": outputs} for inputs, outputs in value_at(record, "branches", list)]
        branches = ((value_at(each, "inputs", int, low=1), value_at(each, "outputs", int, low=1)) for each in sizes)
        return BranchEdit(value_at(record, "layer", str), tuple(branches))


Edit = FactorEdit | ResizeEdit | BranchEdit


def edit_from_json(record: Mapping[str, Any]) -> Edit:
    """The edit that ``to_json`` wrote; raises KeyError, TypeError or ValueError on anything else."""
    if not isinstance(record, Mapping):
        raise TypeError(f"an edit is a {type(record).__name__}, not an object")
    if "kind" not in record:
        return FactorEdit.from_json(record)
    return BranchEdit.from_json(record) if record["kind"] == "branch" else ResizeEdit.from_json(record)


def resize(module: nn.Module, in_channels: int, out_channels: int) -> nn.Module:
    """A layer like ``module`` with other numbers of channels, its weights uninitialised.

    A depthwise convolution keeps a group for each channel, any other its number of groups. Raises ValueError if
    ``module`` is no convolution, linear layer or BatchNorm, or if it cannot have these numbers: none are larger.
    """
    sizes = f"{in_channels} input and {out_channels} output channels"
    if min(in_channels, out_channels) < 1:
        raise ValueError(f"no layer has {sizes}")
    before = channels_of(module)
    if before is not None and (in_channels > before[0] or out_channels > before[1]):
        raise ValueError(f"{module} cannot have {sizes}: it is smaller")
    if isinstance(module, FactoredLayer):
        dense = resize(outline(module), in_channels, out_channels)
        # Its ranks may be larger than what its channels have become.
        ranks = form(module)
        if isinstance(dense, nn.Conv2d):
            return inherit(FactoredConv2d(dense, *ranks), module, blank(module))
        assert isinstance(dense, nn.Linear)
        return inherit(FactoredLinear(dense, ranks.rank_in, ranks.rank_out), module, blank(module))
    new = copy.deepcopy(module)
    if isinstance(new, nn.Conv2d):
        depthwise = new.groups == new.in_channels == new.out_channels > 1
        new.groups = in_channels if depthwise else new.groups
        if in_channels % new.groups or out_channels % new.groups or (depthwise and in_channels != out_channels):
            raise ValueError(f"{module} cannot have {sizes}")
        new.in_channels, new.out_channels = in_channels, out_channels
        _reshape(new, "weight", (out_channels, in_channels // new.groups, *new.kernel_size))
        _reshape(new, "bias", (out_channels,))
    elif isinstance(new, nn.Linear):
        new.in_features, new.out_features = in_channels, out_channels
        _reshape(new, "weight", (out_channels, in_channels))
        _reshape(new, "bias", (out_channels,))
    elif is_norm(new):
        if in_channels != out_channels:
            raise ValueError(f"{module} cannot have {sizes}")
        if isinstance(new, nn.BatchNorm2d):
            new.num_features = out_channels
        for name in ("weight", "bias", "running_mean", "running_var"):
            _reshape(new, name, (out_channels,))
    else:
        raise ValueError(f"a {type(module).__name__} cannot be resized")
    return new.to(memory_format=memory_format(module.parameters()))  # type: ignore[call-overload]


def _reshape(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Give a parameter or buffer another shape, if the module has it at all."""
    old: Tensor | None = getattr(module, name)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(old.detach().new_empty(shape), requires_grad=old.requires_grad))
    elif old is not None:
        setattr(module, name, old.new_empty(shape))


def channels_of(module: nn.Module | None) -> tuple[int, int] | None:
    """Input and output channels; None if the module has no numbers of its own to compare."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.BatchNorm2d):
        return module.num_features, module.num_features
    if module is not None and is_frozen_norm(module):
        return len(module.get_buffer("weight")), len(module.get_buffer("weight"))
    if isinstance(module, FactoredLayer):
        return module.channels
    if isinstance(module, BranchedConv2d):
        return module.in_channels, module.out_channels
    return None


def branches_of(module: nn.Module) -> tuple[Branch, ...]:
    """The sizes of a layer's branches; none of a layer without."""
    return module.sizes if isinstance(module, BranchedConv2d) else ()


def edits_between(original: nn.Module, edited: nn.Module, history: Sequence[Edit] = ()) -> tuple[Edit, ...]:
    """The edits from the architecture of ``original`` to that of ``edited``: first factored layers, then resized ones,
    then branched ones.

    Edits say what a layer becomes, and not by how much it changes. So with the ``history`` of what had made
    ``original`` already, they lead to ``edited`` from ``original`` and from whatever that was made of. Layers that are
    in one of the two only, or that have become of another type, are passed over; a factored layer counts by the
    channels that it connects.
    """
    again = {(type(edit), edit.layer) for edit in history}
    others = dict(edited.named_modules())
    resizes: list[Edit] = []
    factors: list[Edit] = []
    branches: list[Edit] = []
    for name, module in original.named_modules():
        before, after = channels_of(module), channels_of(others.get(name))
        if before is None or after is None:
            continue
        if before != after or (ResizeEdit, name) in again:
            resizes.append(ResizeEdit(name, *after))
        ranks = ranks_of(others[name])
        if ranks != ranks_of(module) or (FactorEdit, name) in again:
            factors.append(FactorEdit(name, *ranks))
        sizes = branches_of(others[name])
        if sizes and (sizes != branches_of(module) or (BranchEdit, name) in again):
            branches.append(BranchEdit(name, sizes))
    inside = tuple(f"{name}." for name, module in others.items() if isinstance(module, FactoredLayer | BranchedConv2d))
    return tuple(edit for edit in (*factors, *resizes, *branches) if not edit.layer.startswith(inside))


def factor_edits(model: nn.Module) -> tuple[FactorEdit, ...]:
    """The edits that make the factored layers of ``model``, in its own order."""
    return tuple(
        FactorEdit(name, *form(module)) for name, module in model.named_modules() if isinstance(module, FactoredLayer)
    )


def ranks_of(layer: nn.Module) -> Ranks:
    """The form of a layer, factored or not."""
    return form(layer) if isinstance(layer, FactoredLayer) else DENSE


def apply_edits(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Give ``model`` the edited architecture in place, with uninitialised weights in the edited layers.

    A layer that is factored already gets other ranks, or without ranks becomes dense; one that has its branches
    already is left as it is. Raises ValueError if an edit names no layer that it could be applied to.
    """
    for edit in edits:
        if isinstance(edit, FactorEdit):
            _factor(model, edit)
            continue
        try:
            layer = model.get_submodule(edit.layer)
            if isinstance(edit, BranchEdit):
                _branch(model, edit, layer)
            elif not (
                isinstance(layer, BranchedConv2d) and channels_of(layer) == (edit.in_channels, edit.out_channels)
            ):
                replace_module(model, edit.layer, resize(layer, edit.in_channels, edit.out_channels))
        except (AttributeError, ValueError) as error:
            raise ValueError(f"an edit of {short(edit.layer)} does not fit the network: {error}") from error


def _branch(model: nn.Module, edit: BranchEdit, layer: nn.Module) -> None:
    if isinstance(layer, BranchedConv2d) and layer.sizes == edit.branches:
        return
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(f"a {type(layer).__name__} cannot be given branches")
    replace_module(model, edit.layer, inherit(BranchedConv2d(layer, edit.branches), layer, blank(layer)))


def _factor(model: nn.Module, edit: FactorEdit) -> None:
    try:
        layer = model.get_submodule(edit.layer)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Conv2d | nn.Linear | FactoredLayer):
        raise ValueError(f"an edit of {short(edit.layer)}, which is no convolution or linear layer of the network")
    if isinstance(layer, FactoredLayer) and edit.ranks == form(layer):
        return
    new: nn.Module = outline(layer) if isinstance(layer, FactoredLayer) else layer
    if edit.ranks != DENSE:
        new = factored(new, *edit.ranks)
    if new is not layer:
        replace_module(model, edit.layer, inherit(new, layer, blank(layer)))
