"""Checking one option's value: its type, its choices, its range."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hybridprune.config.registry import Extension, Registry
from hybridprune.config.suggest import suggest
from hybridprune.errors import UserError

C = TypeVar("C")

_SHORT = 60
"""Characters up to which a value is shown as it is."""


@dataclass(frozen=True)
class Option:
    """A field of a concern: its type, its default and what `option` declares of it."""

    concern: str
    name: str
    kind: Any
    default: Any
    metadata: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The option's name in config.json."""
        return self.metadata["key"] or self.name

    @property
    def flags(self) -> tuple[str, ...]:
        """The option's names on the command line."""
        return self.metadata["flags"] or (self.name,)


def options_of(concern: str, values: Any) -> Iterator[Option]:
    """The options of one concern, an instance of its dataclass; their defaults are its values."""
    kinds = _kinds(type(values))
    for f in dataclasses.fields(values):
        yield Option(concern, f.name, kinds[f.name], getattr(values, f.name), f.metadata)


@functools.cache
def _kinds(concern: type) -> dict[str, Any]:
    return typing.get_type_hints(concern)


def default_of(o: Option, earlier: Mapping[str, Any]) -> Any:
    """The value of an option if nobody says, given the earlier ones of its concern."""
    if o.metadata["follows"] is None:
        return o.default
    name, default = o.metadata["follows"]
    return default(earlier[name])


def checked(values: C | None, source: str, kind: type[C]) -> C:
    """A concern as somebody filled it in (None: its defaults); UserError names ``source`` if it is another object."""
    values = kind() if values is None else values
    if not isinstance(values, kind):
        raise UserError(f"{source} {shown(values)}: must be an instance of {kind.__name__}")
    return values


def checked_value(concern: type, name: str, value: object, source: str) -> Any:
    """``value``, checked as that of the option ``name`` of ``concern`` would be; a UserError names ``source``."""
    (o,) = (o for o in options_of("", concern()) if o.name == name)
    return check(o, plain(value), source)


def plain(value: object) -> object:
    """A number of another library, numpy say, as Python's own; anything else as it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def check(o: Option, value: Any, source: str) -> Any:
    """``value`` in the option's type; UserError names ``source`` if it has another type or is out of range."""
    base, optional = base_of(o.kind)
    metadata = o.metadata
    if optional and value is None:
        return None
    if isinstance(value, Extension) and isinstance(metadata["choices"], Registry):
        return value
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        value = metadata["aliases"].get(value, value)
    told = shown(value)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = _float(value)
    if typing.get_origin(base) is dict:
        value = _points(value, source)
    elif typing.get_origin(base) is tuple:
        item = typing.get_args(base)[0]
        value = _names(value, source) if item is str else _numbers(value, item, source)
    elif type(value) is not base:
        if base is str and isinstance(metadata["choices"], tuple):
            hint = f", one of {', '.join(metadata['choices'])}"
        else:
            hint = " (without quotes)" if isinstance(value, str) and base is not str else ""
        raise UserError(f"{source} {told}: must be {_article(kind_name(o))}{hint}")
    if metadata["choices"] is not None and value not in metadata["choices"]:
        listed = ", ".join(str(choice) for choice in metadata["choices"])
        hint = suggest(str(value), map(str, metadata["choices"]))
        raise UserError(f"{source} {told}: {f'unknown{hint} It must' if hint else 'must'} be one of {listed}")
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in parts):
        raise UserError(f"{source} {told}: must be finite")
    for number in parts:
        _check_range(metadata, number, source, told)
    return value


def _check_range(metadata: Mapping[str, Any], value: Any, source: str, told: str) -> None:
    low, high, above = metadata["low"], metadata["high"], metadata["above"]
    if low is not None and value < low:
        raise UserError(f"{source} {told}: must be at least {low}")
    if high is not None and value > high:
        raise UserError(f"{source} {told}: must be at most {high}")
    if above is not None and value <= above:
        raise UserError(f"{source} {told}: must be above {above}")


def _points(value: Any, source: str) -> dict[str, float]:
    """A schedule ``{share of epochs: factor}`` with shares in [0, 1]."""
    try:
        points = {str(key): float(factor) for key, factor in value.items() if not isinstance(factor, (bool, str))}
        valid = len(points) == len(value) and all(0 <= float(k) <= 1 and math.isfinite(v) for k, v in points.items())
    except (AttributeError, TypeError, ValueError):
        valid, points = False, {}
    if not valid:
        raise UserError(
            f'{source} {shown(value)}: must map shares of the epochs in [0, 1] to factors, e.g. {{"0.5": 0.1}}'
        )
    return points


def _names(value: Any, source: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise UserError(f'{source} {shown(value)}: must be a list of names or patterns, e.g. ["backbone.conv"]')
    return tuple(value)


def _numbers(value: Any, item: type, source: str) -> tuple[Any, ...]:
    """One number or more, of the type ``item``: int or float."""
    allowed = (int, float) if item is float else (int,)
    plain_ones = isinstance(value, list | tuple) and all(type(number) in allowed for number in value)
    if not plain_ones or not value:
        kind, example = ("whole numbers", "[10, 20]") if item is int else ("numbers", "[0.5, 0.4]")
        raise UserError(f"{source} {shown(value)}: must be a list of {kind}, e.g. {example}, with commas in a flag")
    return tuple(map(_float, value)) if item is float else tuple(value)


def _float(value: float) -> float:
    """A whole number as a float may be too large for one."""
    return float(value) if abs(value) < sys.float_info.max else math.inf


def base_of(kind: Any) -> tuple[Any, bool]:
    """The type without None and what stands in the place of a name, and whether None is allowed."""
    if isinstance(kind, types.UnionType):
        (base,) = [k for k in typing.get_args(kind) if k not in (type(None), Extension)]
        return base, type(None) in typing.get_args(kind)
    return kind, False


def kind_name(o: Option) -> str:
    """The kind of an option's value, in one word."""
    base, _ = base_of(o.kind)
    if typing.get_origin(base) is tuple:
        return "names" if typing.get_args(base)[0] is str else "numbers"
    if typing.get_origin(base) is dict:
        return "json"
    return {str: "text", int: "int", float: "number", bool: "bool"}[base]


def _article(kind: str) -> str:
    return {"text": "a text", "int": "a whole number", "number": "a number", "bool": "true or false"}[kind]


def shown(value: object) -> str:
    """A value in a message: as JSON, with the kinds of things that would take much room."""
    return json.dumps(value, default=_in_short)


def _in_short(value: object) -> str:
    text = str(value) if isinstance(value, Extension) else repr(value)
    return text if len(text) <= _SHORT and "\n" not in text else f"<{type(value).__name__}>"
