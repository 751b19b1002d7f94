"""What the table of options says of each: its unit, its default, and where it comes from."""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import Any, get_origin

import pytest

from hybridprune.config import PruneConfig, RlConfig, SpConfig, resolve
from hybridprune.config.check import base_of, options_of
from hybridprune.config.resolve import as_typed
from tests import ROOT

STAGES = (SpConfig(), PruneConfig(), RlConfig())
OPTIONS = {
    (type(getattr(stage, f.name)).__name__, o.name): o
    for stage in STAGES
    for f in dataclasses.fields(stage)
    for o in options_of(f.name, getattr(stage, f.name))
}

UNITS = (
    "blocks|channels|epochs|execution rate|FLOPs|generations|images|iterations|layers|logits|losses|minutes|multiples|"
    "networks|norm|parameters|passes|pixels|probability|probabilities|seconds|share|steps|sweeps|threads|workers"
)
UNITLESS = {
    "seed", "lr", "momentum", "weight_decay", "ma", "rate_penalty", "sparsity_weight", "mask_threshold", "alpha_nuc",
    "pool_momentum", "kd_temperature", "gamma", "rl_weight", "gate_lr_factor", "entropy_bonus", "rate_bound_weight",
    "price_step", "rni_shift", "sparse_lr", "imitate_lr", "pruner_id", "temperature",
}  # fmt: skip
"""Numbers that count or measure nothing: weights, factors, decays, temperatures."""

PLAIN = {"RunOptions", "ParentOptions", "DataOptions", "CompileOptions", "LatencyTarget"}
"""What is run on what: nothing that was invented."""
PLAIN_NAMES = {
    "network", "depth", "epochs", "weights", "lr", "scheduler_params", "tf32", "channels_last", "sync_batchnorm",
    "target_flops", "target_params", "target_latency", "exclude", "epochs_start", "epochs_end", "pruner_id",
}  # fmt: skip
"""Likewise: what a user wants, and how it is computed."""


def test_a_number_has_a_unit_or_is_known_to_have_none() -> None:
    numbers = [
        o for o in OPTIONS.values() if base_of(o.kind)[0] in (int, float) or get_origin(base_of(o.kind)[0]) is dict
    ]
    without = {o.name for o in numbers if not re.search(rf"\b({UNITS})\b", o.metadata["help"])}
    assert without <= UNITLESS <= {o.name for o in numbers}


@pytest.mark.parametrize("stage", STAGES, ids=["sp", "prune", "rl"])
def test_the_shown_default_is_what_happens(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every default that the help shows, typed: the configuration is that of a command line without a word."""
    parsers: list[argparse.ArgumentParser] = []
    parse = argparse.ArgumentParser.parse_args

    def keep(parser: argparse.ArgumentParser, *given: Any) -> object:
        parsers.append(parser)
        return parse(parser, *given)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", keep)
    unasked = resolve(stage, [], prog="", description="").config
    words = []
    for action in parsers[0]._actions:
        concern, _, name = action.dest.partition(".")
        if not name:  # --help, --resume, ...
            continue
        flag, text = action.option_strings[0], action.help or ""
        if getattr(getattr(stage, concern), name) is None:
            assert "default" in text
            continue
        _, _, shown = text.replace("%%", "%").removesuffix(")").rpartition(" (default: ")
        if isinstance(action, argparse.BooleanOptionalAction):
            words.append({"True": flag, "False": f"--no-{flag.removeprefix('--')}"}[shown])
        else:
            words.append(f"{flag}={shown}")
    assert len(words) > 30
    assert resolve(stage, words, prog="", description="").config == unasked


@pytest.mark.parametrize(
    ("value", "words"), [(True, "True"), (None, "none"), ((), "none"), (("a", "b"), "a,b"), ({"0": 1.0}, '{"0": 1.0}')]
)
def test_values_as_they_are_typed(value: object, words: str) -> None:
    assert as_typed(value) == words


def test_what_shapes_a_result_has_a_source_or_was_measured() -> None:
    shaping = {key: o for key, o in OPTIONS.items() if key[0] not in PLAIN and o.name not in PLAIN_NAMES}
    assert [key for key, o in shaping.items() if not (o.metadata["source"] or o.metadata["measured"])] == []
    assert {o.name for o in OPTIONS.values()} >= PLAIN_NAMES and len(shaping) > 60


def test_every_measurement_is_there() -> None:
    for o in OPTIONS.values():
        if o.metadata["measured"] is None:
            continue
        page, _, anchor = o.metadata["measured"].partition("#")
        text = (ROOT / "docs" / page).read_text()
        headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
        slugs = {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, o.name
        if page == "options.md":
            section = text.split(f"\n## Stage {anchor.removeprefix('stage-')}\n")[1].split("\n## ")[0]
            assert f"--{o.flags[0]}" in section or f"--no-{o.flags[0]}" in section, o.name


def test_every_source_has_a_title() -> None:
    _, _, listed = (ROOT / "docs/options.md").read_text().partition("\n## Sources\n")
    known = set(re.findall(r"^- (.*? \d{4}):", listed, flags=re.MULTILINE))
    cited = {work for o in OPTIONS.values() for work in re.findall(r"[A-Z][\w&. ]*? \d{4}", o.metadata["source"] or "")}
    assert cited == known
