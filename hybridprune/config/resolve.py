"""Resolution of defaults, ``config.json`` and flags to one checked configuration.

A flag beats a recipe that is a flag beats the file beats its recipe beats the default.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from hybridprune.config.check import Option, base_of, default_of, kind_name, options_of
from hybridprune.config.concern import Contradiction
from hybridprune.config.name_list import joined_names, split_names
from hybridprune.config.options import PruneConfig, RlConfig, SpConfig
from hybridprune.config.recipes import RECIPES
from hybridprune.config.several import Several, check_several
from hybridprune.config.suggest import suggest
from hybridprune.errors import UserError
from hybridprune.json_text import read_json

C = TypeVar("C", SpConfig, PruneConfig, RlConfig)


@dataclass(frozen=True)
class Invocation(Generic[C]):
    """A resolved configuration and what the command line asks to be done with it."""

    config: C
    resume: bool
    dry_run: bool
    print_config: bool
    unasked: str | None = None
    """The configuration file that was read although nobody had named it."""
    several: Several | None = None
    """The values of which each is for a run of its own; ``config`` has the first."""

    def each(self: Invocation[PruneConfig]) -> list[Invocation[PruneConfig]]:
        """One invocation for each run."""
        if self.several is None:
            return [self]
        alone = dataclasses.replace(self, unasked=None, several=None)
        return [dataclasses.replace(alone, config=config) for config in self.several.configs(self.config)]


def _options(default: SpConfig | PruneConfig | RlConfig) -> Iterator[Option]:
    """All options of a stage; what has a value by default has one always, but for one that follows another."""
    for concern in dataclasses.fields(default):
        for o in options_of(concern.name, getattr(default, concern.name)):
            yield o if o.default is None or o.metadata["follows"] else dataclasses.replace(o, kind=base_of(o.kind)[0])


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
    Raises UserError on an unknown flag or key, a wrong type, a value out of range, or a contradiction between options.
    """
    options = list(_options(default))
    arguments = vars(_parser(options, prog, description, config_path).parse_args(argv))
    named = arguments.pop("config_path")
    path = config_path if named is None else named
    wishes = {name: arguments.pop(name) for name in ("resume", "dry_run", "print_config")}
    file = {} if path is None else _read(Path(path), {o.key for o in options})

    raw = {o.key: arguments[f"{o.concern}.{o.name}"] for o in options}
    typed = {o.key: _from_text(o, raw[o.key]) for o in options if raw[o.key] is not None}
    flags = {o.key: check_several(o, typed[o.key], f"--{o.flags[0]}") for o in options if o.key in typed}
    unsaid = [o for o in options if o.key in file and o.key not in flags]
    keys = {o.key: check_several(o, file[o.key], f"{path}: {o.key}") for o in unsaid}
    for o in options:
        _refuse_code(o, keys.get(o.key), path)
    said = [part for given in (flags, keys) for part in (given, RECIPES.get(given.get("recipe", ""), {}))]
    concerns: dict[str, dict[str, Any]] = {}
    several: list[Several] = []
    for o in options:
        concern = concerns.setdefault(o.concern, {})
        own = [part[o.key] for part in said if o.key in part]
        if own and o.metadata["several"] and isinstance(own[0], tuple):
            several.append(Several(o.name, own[0]))
            own = list(own[0])
        concern[o.name] = own[0] if own else default_of(o, concern)
    if len(several) > 1:
        told = ", ".join(f"--{each.name} {each}" for each in several)
        raise UserError(f"{told}: give several values to one of them; hybridprune grid runs all combinations")
    try:
        made = {name: type(getattr(default, name))(**values) for name, values in concerns.items()}
        unasked = path if named is None else None
        config = dataclasses.replace(default, **made)
    except Contradiction as found:
        raise UserError(found.told) from found
    return Invocation(config, **wishes, unasked=unasked, several=several[0] if several else None)


def config_here() -> str | None:
    """The configuration file that ``hybridprune prune`` reads unasked: ``config.json``, if the working folder has one.

    ``main_prune.py``, which lies beside its published ``config.json``, wants it to be there.
    """
    return "config.json" if Path("config.json").is_file() else None


def help_text(
    default: SpConfig | PruneConfig | RlConfig,
    *,
    prog: str,
    description: str,
    config_path: str | None,
    only: Sequence[str],
) -> str:
    """The help of the command ``prog``, with those options alone whose flags are in ``only``, in that order."""
    by_flag = {flag: o for o in _options(default) for flag in o.flags}
    return _parser([by_flag[flag] for flag in only], prog, description, config_path).format_help()


def _refuse_code(o: Option, value: object, path: object) -> None:
    """UserError if a file, which may be a stranger's, says what is to be imported."""
    names = o.metadata["names"]
    if names is not None and names.imports(value):
        raise UserError(f"{path}: {o.key} {value}: a file may not say what is imported; give --{o.flags[0]} {value}")


_MEANT = {
    "--budget": "--target_flops",
    "--flops": "--target_flops",
    "--learning_rate": "--lr",
    "--model": "--network",
    "--ratio": "--prune_ratio",
    "--sparsity": "--prune_ratio",
}
"""Words that other tools and our own pages have for what a flag says."""


class _Parser(argparse.ArgumentParser):
    flags: frozenset[str] = frozenset()

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            unknown = message.removeprefix(prefix).split()[0]
            flag = unknown.split("=")[0]
            # The dashes are alike in all of them.
            hint = suggest(_MEANT.get(flag, flag), self.flags, least=0.75)
            raise UserError(f"{unknown}: no such flag{hint}; see --help")
        raise UserError(f"{message}; see --help")


def _parser(options: list[Option], prog: str, description: str, config_path: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    # The file of `hybridprune prune` (`config_here`) may lie where it is run, if not here.
    prunes = any(o.concern == "cut" for o in options)
    unasked = "config.json, where the working folder has one" if prunes else as_typed(config_path)
    parser.add_argument("--config_path", help=f"configuration file in JSON (default: {unasked})")
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
        common = {"dest": f"{o.concern}.{o.name}", "default": None, "help": _explained(o).replace("%", "%%")}
        if o.kind is bool:
            group.add_argument(*spellings, action=argparse.BooleanOptionalAction, **common)
        else:
            optional = {} if o.metadata["bare"] is None else {"nargs": "?", "const": o.metadata["bare"]}
            if o.metadata["several"]:
                optional = {"nargs": "+"}
            group.add_argument(*spellings, metavar=kind_name(o).upper(), **optional, **common)
    parser.flags = frozenset(parser._option_string_actions)
    return parser


def _explained(o: Option) -> str:
    """What ``--help`` says of an option: its meaning, where it comes from, and its default as one would type it."""
    text, source = o.metadata["help"], o.metadata["source"]
    if source is not None:
        text += f" [{source}]"
    # Where None stands for another value, the text says which.
    return text if o.default is None and "default" in text else f"{text} (default: {as_typed(o.default)})"


def as_typed(value: Any) -> str:
    """An option's value as a word of a command line, which for None and no names at all is none."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, tuple):
        return joined_names(value) if value else "none"
    return "none" if value is None else str(value)


def _read(path: Path, own: set[str]) -> dict[str, Any]:
    try:
        values = read_json(path)
    except OSError as error:
        raise UserError(
            f"--config_path {path}: cannot be read ({error.strerror}); name an existing JSON file"
        ) from error
    except ValueError as error:
        raise UserError(f"--config_path {path}: not valid JSON ({error}); mend that place") from error
    if not isinstance(values, dict):
        raise UserError(f"--config_path {path}: must hold one JSON object of keys and values")
    known = _known_keys()
    for key in values:
        if key not in known:
            raise UserError(f"{path}: unknown key {key!r}{suggest(key, known)}; remove or rename it")
    return {key: value for key, value in values.items() if key in own}


def _from_text(o: Option, raw: Any) -> Any:
    """The value that a flag's text would be in JSON; text that does not fit is left for ``check`` to refuse."""
    base, optional = base_of(o.kind)
    if isinstance(raw, list):  # of an option that takes several values
        words = [_from_text(o, word) for word in raw]
        return words if len(words) > 1 else words[0]
    if base is str or base is bool:
        return raw
    if optional and raw.lower() == "none":
        return None
    if typing.get_origin(base) is tuple:
        item = typing.get_args(base)[0]
        if item is str and raw.lower() == "none":
            return []
        words = _converted(split_names, raw)
        return [_converted(item, word) for word in words] if isinstance(words, list) and words else raw
    if typing.get_origin(base) is dict:
        return _converted(json.loads, raw)
    return _converted(base, raw)


def _converted(kind: Callable[[str], Any], raw: str) -> Any:
    """The text as this kind of value, or as it is if it is none."""
    try:
        return kind(raw)
    except ValueError:
        return raw
