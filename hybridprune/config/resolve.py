"""From defaults, ``config.json`` and flags to one checked configuration. A flag beats the file beats the default."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from hybridprune.config.options import PruneConfig, RlConfig, SpConfig
from hybridprune.errors import UserError

C = TypeVar("C", SpConfig, PruneConfig, RlConfig)


@dataclass(frozen=True)
class Invocation(Generic[C]):
    """A resolved configuration and what the command line asks to be done with it."""

    config: C
    resume: bool
    dry_run: bool
    print_config: bool


@dataclass(frozen=True)
class _Option:
    concern: str
    name: str
    kind: Any
    default: Any
    metadata: Mapping[str, Any]

    @property
    def key(self) -> str:
        return self.metadata["key"] or self.name

    @property
    def flags(self) -> tuple[str, ...]:
        return self.metadata["flags"] or (self.name,)


def _options(default: SpConfig | PruneConfig | RlConfig) -> Iterator[_Option]:
    for concern in dataclasses.fields(default):
        values = getattr(default, concern.name)
        kinds = typing.get_type_hints(type(values))
        for f in dataclasses.fields(values):
            yield _Option(concern.name, f.name, kinds[f.name], getattr(values, f.name), f.metadata)


def _known_keys() -> set[str]:
    return {o.key for config in (SpConfig(), PruneConfig(), RlConfig()) for o in _options(config)}


def to_json(config: SpConfig | PruneConfig | RlConfig) -> dict[str, Any]:
    """The resolved configuration with config.json's keys: reading it back gives the same configuration."""
    values = {o.key: o.default for o in _options(config)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def identity(config: SpConfig | PruneConfig | RlConfig) -> set[str]:
    """The keys of the configuration that determine the result: what a resumed run must share."""
    return {o.key for o in _options(config) if o.metadata["identity"]}


def resolve(
    default: C, argv: Sequence[str], *, prog: str, description: str, config_path: str | None = None
) -> Invocation[C]:
    """Parse ``argv`` and the configuration file into a checked copy of ``default``.

    ``config_path`` is the file that is read when ``--config_path`` is not given (None: no file).
    Raises UserError on an unknown flag or key, a wrong type, or a value out of range.
    """
    options = list(_options(default))
    arguments = vars(_parser(options, prog, description, config_path).parse_args(argv))
    path = arguments.pop("config_path")
    wishes = {name: arguments.pop(name) for name in ("resume", "dry_run", "print_config")}
    file = {} if path is None else _read(Path(path), {o.key for o in options})
    concerns: dict[str, dict[str, Any]] = {}
    for o in options:
        raw = arguments[f"{o.concern}.{o.name}"]
        if raw is not None:
            value = _check(o, _from_text(o, raw), f"--{o.flags[0]}")
        elif o.key in file:
            value = _check(o, file[o.key], f"{path}: {o.key}")
        else:
            value = _default(o, concerns.get(o.concern, {}))
        concerns.setdefault(o.concern, {})[o.name] = value
    replaced = {name: dataclasses.replace(getattr(default, name), **values) for name, values in concerns.items()}
    return Invocation(dataclasses.replace(default, **replaced), **wishes)


def _default(o: _Option, earlier: Mapping[str, Any]) -> Any:
    """What an option is if nobody says, given the earlier ones of its concern."""
    if o.metadata["follows"] is None:
        return o.default
    name, defaults = o.metadata["follows"]
    return dict(defaults[earlier[name]])


class _Parser(argparse.ArgumentParser):
    flags: frozenset[str] = frozenset()

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            unknown = message.removeprefix(prefix).split()[0]
            raise UserError(f"{unknown}: no such flag{_suggest(unknown.split('=')[0], self.flags)}; see --help")
        raise UserError(f"{message}; see --help")


def _parser(options: list[_Option], prog: str, description: str, config_path: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config_path", default=config_path, help="configuration file in JSON (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run of this configuration")
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="print what would be done and stop")
    parser.add_argument(
        "--print-config", "--print_config", action="store_true", help="print the resolved configuration and stop"
    )
    groups: dict[str, Any] = {}
    for o in options:
        group = groups.setdefault(o.concern, None) or parser.add_argument_group(o.concern)
        groups[o.concern] = group
        spellings = [f"--{flag}" for flag in o.flags]
        text = o.metadata["help"].replace("%", "%%")
        shown = list(o.default) if isinstance(o.default, tuple) else o.default
        common = {"dest": f"{o.concern}.{o.name}", "default": None, "help": f"{text} (default: {shown})"}
        if o.kind is bool:
            group.add_argument(*spellings, action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(*spellings, metavar=_kind_name(o).upper(), **common)
    parser.flags = frozenset(parser._option_string_actions)
    return parser


def _read(path: Path, own: set[str]) -> dict[str, Any]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"--config_path {path}: cannot be read ({reason}); name an existing JSON file") from error
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"--config_path {path}: not valid JSON ({error}); mend that place") from error
    if not isinstance(values, dict):
        raise UserError(f"--config_path {path}: must hold one JSON object of keys and values")
    known = _known_keys()
    for key in values:
        if key not in known:
            raise UserError(f"{path}: unknown key {key!r}{_suggest(key, known)}; remove or rename it")
    return {key: value for key, value in values.items() if key in own}


def _suggest(word: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def _base(kind: Any) -> tuple[Any, bool]:
    """The type without None, and whether None is allowed."""
    if isinstance(kind, types.UnionType):
        (base,) = [k for k in typing.get_args(kind) if k is not type(None)]
        return base, True
    return kind, False


def _kind_name(o: _Option) -> str:
    base, _ = _base(o.kind)
    if typing.get_origin(base) in (dict, tuple):
        return {dict: "json", tuple: "names"}[typing.get_origin(base)]
    return {str: "text", int: "int", float: "number", bool: "bool"}[base]


def _from_text(o: _Option, raw: Any) -> Any:
    """The value that a flag's text would be in JSON; text that does not fit is left for ``_check`` to refuse."""
    base, optional = _base(o.kind)
    if base is str or base is bool:
        return raw
    if optional and raw.lower() == "none":
        return None
    if typing.get_origin(base) is tuple:
        return [name.strip() for name in raw.split(",") if name.strip()]
    try:
        return json.loads(raw) if typing.get_origin(base) is dict else base(raw)
    except ValueError:
        return raw


def _check(o: _Option, value: Any, source: str) -> Any:
    base, optional = _base(o.kind)
    metadata = o.metadata
    if optional and value is None:
        return None
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        value = metadata["aliases"].get(value, value)
    shown = json.dumps(value)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if typing.get_origin(base) is dict:
        value = _points(value, source)
    elif typing.get_origin(base) is tuple:
        value = _names(value, source)
    elif type(value) is not base:
        hint = " (without quotes)" if isinstance(value, str) and base is not str else ""
        raise UserError(f"{source} {shown}: must be {_article(_kind_name(o))}{hint}")
    if metadata["choices"] is not None and value not in metadata["choices"]:
        listed = ", ".join(str(choice) for choice in metadata["choices"])
        raise UserError(
            f"{source} {shown}: must be one of {listed}{_suggest(str(value), map(str, metadata['choices']))}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{source} {shown}: must be finite")
    for number in value.values() if isinstance(value, dict) else [value]:
        _check_range(metadata, number, source, shown)
    return value


def _check_range(metadata: Mapping[str, Any], value: Any, source: str, shown: str) -> None:
    low, high, above = metadata["low"], metadata["high"], metadata["above"]
    if low is not None and value < low:
        raise UserError(f"{source} {shown}: must be at least {low}")
    if high is not None and value > high:
        raise UserError(f"{source} {shown}: must be at most {high}")
    if above is not None and value <= above:
        raise UserError(f"{source} {shown}: must be above {above}")


def _points(value: Any, source: str) -> dict[str, float]:
    """A schedule ``{share of epochs: factor}`` with shares in [0, 1]."""
    try:
        points = {str(key): float(factor) for key, factor in value.items() if not isinstance(factor, (bool, str))}
        valid = len(points) == len(value) and all(0 <= float(k) <= 1 and math.isfinite(v) for k, v in points.items())
    except (AttributeError, TypeError, ValueError):
        valid, points = False, {}
    if not valid:
        raise UserError(
            f'{source} {json.dumps(value)}: must map shares of the epochs in [0, 1] to factors, e.g. {{"0.5": 0.1}}'
        )
    return points


def _names(value: Any, source: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise UserError(f'{source} {json.dumps(value)}: must be a list of names or patterns, e.g. ["backbone.conv"]')
    return tuple(value)


def _article(kind: str) -> str:
    return {"text": "a text", "int": "a whole number", "number": "a number", "bool": "true or false"}[kind]
