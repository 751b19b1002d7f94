"""A hook of MkDocs that writes what the code knows into the pages: options, methods, figures, `--help`.

A line ``<!-- table: KIND NAMES -->`` of a page becomes that table; so no page can name an option that is gone, or miss
a new one. `render` needs neither MkDocs nor the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridprune import config
from hybridprune.commands.door import COMMANDS
from hybridprune.config import PruneConfig, RlConfig, SpConfig
from hybridprune.config.check import Option, kind_name, options_of
from hybridprune.pruning.method import BranchMethod, DirectionMethod
from hybridprune.pruning.methods import find
from hybridprune.tables import Table

ROOT = Path(__file__).parent.parent.parent
STAGES = {"sp": SpConfig(), "prune": PruneConfig(), "rl": RlConfig()}
NEEDS = {
    None: "nothing",
    "factors": "curvature",
    "taylor": "gradients",
    "saliency": "gradients",
    "variance": "activations",
    "scatter": "activations and class ids",
}
"""What a method reads of the images, in words."""
STAGE_COMMANDS = ("train", "prune", "route")


def render(markdown: str, page: str = "index.md") -> str:
    """The page with each ``<!-- table: KIND NAMES -->`` replaced, without what is for readers of the source.

    That is the paragraph below a line ``<!-- in a clone -->``. ``page`` is where it lies below ``docs/``, from where
    links of the tables to other pages lead. Raises KeyError or UserError if a name is unknown.
    """
    to_docs = "../" * page.count("/")

    def table(match: re.Match[str]) -> str:
        kind, *names = match[1].split()
        return re.sub(r"\]\((?=[\w/-]+\.md)", f"]({to_docs}", TABLES[kind](names))

    markdown = re.sub(r"^<!-- in a clone -->\n(?:.+\n)+\n", "", markdown, flags=re.MULTILINE)
    return re.sub(r"^<!-- table: (.*?) -->$", table, markdown, flags=re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs calls this for every page."""
    return render(markdown, page.file.src_uri)


def stage_options(names: Sequence[str]) -> str:
    """All options of a stage, a table a concern."""
    (stage,) = names
    parts = []
    for concern in dataclasses.fields(STAGES[stage]):
        values = getattr(STAGES[stage], concern.name)
        summary = (type(values).__doc__ or "").splitlines()[0]
        parts.append(f"**{concern.name}**: {summary}\n\n{_options(options_of(concern.name, values))}")
    return "\n\n".join(parts)


def some_options(names: Sequence[str]) -> str:
    """The named options, wherever they are first found, for a page of a method."""
    known: dict[str, Option] = {}
    for stage in STAGES.values():
        for concern in dataclasses.fields(stage):
            for o in options_of(concern.name, getattr(stage, concern.name)):
                known.setdefault(o.name, o)
    return _options(known[name] for name in names)


def fields(names: Sequence[str]) -> str:
    """The fields of options classes, as Python users write them, a table a class."""
    parts: list[str] = []
    for name in names:
        values = getattr(config, name)()
        rows = [(f"`{o.name}`", kind_name(o), f"`{o.default!r}`", _text(o)) for o in options_of("", values)]
        summary = (type(values).__doc__ or "").splitlines()[0]
        parts.append(
            f"**{name}**: {summary}\n\n{Table(('Field', 'Kind', 'Default', 'Meaning'), 'llll', rows).markdown()}"
        )
    return "\n\n".join(parts)


def command_help(names: Sequence[str]) -> str:
    """What ``--help`` of a command prints, or another flag that is named behind it."""
    name, flag = (*names, "--help")[:2]
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            module, _, function = COMMANDS[name].function.partition(":")
            getattr(importlib.import_module(module), function)([flag], f"hybridprune {name}")
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return f"```text\n{printed.getvalue().rstrip()}\n```"


def commands(names: Sequence[str]) -> str:
    """All subcommands of ``hybridprune``."""
    del names
    return Table(("Command", "What it does"), "ll", [(f"[{n}](#{n})", c.about) for n, c in COMMANDS.items()]).markdown()


def method_facts(names: Sequence[str]) -> str:
    """What the registry says of a method."""
    (name,) = names
    method = find(name)
    if isinstance(method, DirectionMethod):
        about = "It cuts directions and needs no training before"
        facts = {"cuts": "directions of each layer", "trains before the cut": "no"}
    elif isinstance(method, BranchMethod):
        about = "It cuts inputs of groups of filters after a training"
        facts = {"cuts": "inputs of groups of filters", "trains before the cut": "yes"}
    else:
        about = "It cuts channels" + (
            " and needs no training before" if method.sparsity is None else " after a training"
        )
        facts = {
            "cuts": "channels" + (", those of residual streams too" if method.coupled else ""),
            "trains before the cut": "no" if method.sparsity is None else "yes",
            "needs from the images": NEEDS[method.needs],
            "scores compare": "within a layer" if method.relative else "between layers",
            "changes what stays": "yes" if method.update else "no",
        }
    facts["allocation `auto` is"] = f"`{method.allocation}`"
    return f"{about}:\n\n" + Table(("", ""), "ll", list(facts.items())).markdown()


def measured(names: Sequence[str]) -> str:
    """The figures of a method: of all methods side by side, and of the larger static comparison where it took part."""
    (name,) = names
    parts = []
    rows = [
        (row["network"], f"{100 * row['share']:.2f}", f"{row['params']:,}", f"{100 * row['accuracy']:.2f}", _ahead(row))
        for row in json.loads((ROOT / "docs/methods.json").read_text())
        if row["arm"] == name
    ]
    if rows:
        head = ["Network", "FLOPs %", "Parameters", "Accuracy %", "ahead of uniform by (95 %)"]
        parts.append(
            "Half of the FLOPs, a short training ([how](results_methods.md)):\n\n"
            + Table(head, "lrrrr", rows).markdown()
        )
    lines = map(json.loads, (ROOT / "benchmarks/results/static_arms.jsonl").read_text().splitlines())
    arms = [
        (
            row["arm"],
            f"{100 * row['budget']:.0f}",
            f"{row['params']:,}",
            f"{100 * row['after_cut']:.2f}",
            f"{100 * row['tuned']:.2f}",
        )
        for row in lines
        if row["arm"].split(",")[0] == name
    ]
    if arms:
        head = ["Arm", "FLOPs %", "Parameters", "After the cut %", "Fine-tuned %"]
        parts.append(
            "ResNet-32, dense 58.71 %, half an epoch ([how](static.md)):\n\n" + Table(head, "lrrrr", arms).markdown()
        )
    return "\n\n".join(parts) or "Nothing was measured yet."


def _ahead(row: Mapping[str, Any]) -> str:
    ahead = row["ahead"]
    if ahead is None:
        return ""
    mean, low, high = (100 * ahead[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _options(options: Iterable[Option]) -> str:
    rows = [
        (", ".join(f"`--{f}`" for f in o.flags), f"`{o.key}`", kind_name(o), _default(o), _text(o), _origin(o))
        for o in options
    ]
    return Table(("Flag", "Key", "Kind", "Default", "Meaning", "From"), "llllll", rows).markdown()


def _origin(o: Option) -> str:
    """Where an option comes from, and where it says what it was worth."""
    source, measured = o.metadata["source"], o.metadata["measured"]
    parts = [
        source and f"[{source}](options.md#sources)",
        measured and f"[measured]({measured})",
    ]
    return ", ".join(part for part in parts if part)


def _default(o: Option) -> str:
    return f"`{json.dumps(o.default)}`"


def _text(o: Option) -> str:
    """What an option means, and the range that it may have."""
    words = {"low": "at least", "above": "above", "high": "at most"}
    bounds = [f"{word} {o.metadata[name]:g}" for name, word in words.items() if o.metadata[name] is not None]
    return o.metadata["help"] + (f" ({', '.join(bounds)})" if bounds else "")


TABLES: dict[str, Callable[[Sequence[str]], str]] = {
    "stage": stage_options,
    "options": some_options,
    "fields": fields,
    "commands": commands,
    "help": command_help,
    "facts": method_facts,
    "measured": measured,
}
