"""The text of a recommendation: the choices, the networks that take part, and the command that makes the winner."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from hybridprune.commands.member_runs import MemberRun
from hybridprune.commands.recommendation import Recommendation
from hybridprune.config import DataOptions
from hybridprune.config.name_list import joined_names
from hybridprune.config.networks import NETWORKS
from hybridprune.report.rows import build_rows
from hybridprune.report.speed import Setting, Speed, shown
from hybridprune.routing.choose_members import Chosen
from hybridprune.routing.price import met
from hybridprune.tables import Table

NAMES = {1: "one network", 2: "cascade of two", 3: "cascade of three"}
NONE = "-"
NOTE = (
    "FLOPs = 2 x MACs of an image on average, gates counted, as shares of {base}'s before its cut. Accuracy is on the "
    "validation images, those of a cascade's half by gates that were fitted on the other half, as hybridprune route "
    "says it. It is the highest of all that were tried, hence optimistic. What a cascade is ahead is not: each half is "
    "answered by the networks that the other half has chosen, the single one as well. Bytes are those of the stored "
    "weights."
)
TIME = (
    "Times are median ms of a batch, of a network with its speed-up over its dense one. Those of a cascade are the sum "
    "of its members', each times the images that it runs on: a member is expected to take as long per image in the "
    "smaller batches that it gets."
)
UNTIMED = "No time was measured; hybridprune bench RUN measures a member's."
"""Below the tables."""

Speeds = Mapping[int, Mapping[Setting, Speed]]
"""The latencies of the networks that take part, by their number."""


def text(found: Recommendation, results: Path, data_dir: str | None) -> str:
    """All that is printed."""
    choices = [found.alone, *found.cascades]
    taking_part = sorted({each for choice in choices for each in choice.group})
    speeds = {each: shown(build_rows([found.members[each].record])[0]) for each in taking_part}
    notes = [NOTE.format(base=found.base.run.path), TIME if any(speeds.values()) else UNTIMED, *_missed(choices)]
    budget, base = found.budget_macs, found.base
    tried = ", ".join(f"{choice.tried:,} ({NAMES[len(choice.group)]})" for choice in choices)
    return "\n\n".join(
        [
            f"{len(found.members)} networks on {len(found.alone.right):,} validation images, at most "
            f"{2 * budget / 1e9:.4g} GFLOPs an image on average, {budget / base.record.dense_macs:.1%} of those of "
            f"{base.run.path} before its cut. Tried: {tried}.",
            _choices(found, choices, speeds).markdown(),
            _networks(found, taking_part, speeds).markdown(),
            " ".join(notes),
            verdict(found, results, data_dir),
        ]
    )


def _missed(choices: Sequence[Chosen]) -> list[str]:
    """What is to be said of cascades that don't meet the budget."""
    return [
        f"Warning: the {NAMES[len(choice.group)]} takes {choice.macs / choice.budget_macs:.1%} of the budget: few "
        "images tell a threshold."
        for choice in choices
        if not met(choice.macs, choice.budget_macs)
    ]


def verdict(found: Recommendation, results: Path, data_dir: str | None) -> str:
    """The winner, and how to get it."""
    winner = found.winner
    if winner is not found.alone:
        gain = found.ahead[found.cascades.index(winner)]
        return (
            f"Static and dynamic: a {NAMES[len(winner.group)]} is {_points(gain)} points ahead of the best single "
            f"network. This makes it:\n\n{shlex.join(command(found, winner, results, data_dir))}"
        )
    why = "no cascade is ahead of the best single network beyond its interval"
    if not found.cascades:
        why = "no cascade fits the budget; it takes two networks that differ in cost, and the cheaper one within it"
    return f"All static: {why}. Ship this run:\n\n{found.members[winner.group[0]].run.path}"


def command(found: Recommendation, cascade: Chosen, results: Path, data_dir: str | None) -> list[str]:
    """The words of the command that makes a cascade: stage 3 with its members, its budget and its images."""
    members = [found.members[each] for each in cascade.group]
    named = joined_names(member.run.path for member in members)
    own = next((name for member in members if NETWORKS.imports(name := member.spec.network.network)), None)
    return [
        *("hybridprune", "route", "--routing", "cascade", "--members", named),
        *("--target_flops", _target(found, cascade)),
        *([] if own is None else ["--network", own]),
        *_images(members[-1], data_dir),
        *("--result_dir", str(results)),
    ]


def _target(found: Recommendation, cascade: Chosen) -> str:
    """The budget as stage 3 reads it: a share is of the dearest member before its cut."""
    dense = found.members[cascade.group[-1]].record.dense_macs
    as_given = cascade.budget_macs == found.budget_macs
    if as_given and (found.target_flops > 1 or dense == found.base.record.dense_macs):
        return f"{found.target_flops:.17g}" if found.target_flops > 1 else repr(found.target_flops)
    return f"{2 * cascade.budget_macs:.17g}"


def _images(member: MemberRun, data_dir: str | None) -> list[str]:
    """The flags of the images that a run was trained on."""
    stored = {**member.run.read_json("config.json"), "resize": member.spec.input_size}
    default = DataOptions()
    if data_dir is not None:
        stored["data_dir"] = data_dir
    words: list[str] = []
    for name in ("dataset", "data_dir", "img_type", "resize", "validation_from"):
        value = stored.get(name, getattr(default, name))
        if value != getattr(default, name):
            words += [f"--{name}", str(value)]
    if stored.get("classes"):
        words += ["--classes", joined_names(stored["classes"])]
    return words


def _choices(found: Recommendation, choices: Sequence[Chosen], speeds: Speeds) -> Table:
    settings, dense = _settings(speeds), found.base.record.dense_macs
    gains = [NONE, *map(_points, found.ahead)]
    head = ["Choice", "Networks, and the images that they run on", "FLOPs %", "Accuracy %", "ahead of one (95 %)"]
    body = []
    for choice, gain in zip(choices, gains, strict=True):
        records = [found.members[each].record for each in choice.group]
        runs = zip(choice.group, choice.rates, strict=True)
        body.append(
            [
                NAMES[len(choice.group)],
                " -> ".join(f"{each + 1} ({rate:.0%})" for each, rate in runs),
                f"{100 * choice.macs / dense:.1f}",
                f"{100 * float(choice.right.double().mean()):.2f}",
                gain,
                f"{sum(record.backbone_params for record in records):,}",
                f"{sum(record.stored_bytes for record in records):,}",
                *(_time(choice, speeds, each) for each in settings),
            ]
        )
    head += ["Parameters", "Bytes", *map(_heading, settings)]
    return Table(head, "ll" + "r" * (len(head) - 2), body)


def _networks(found: Recommendation, taking_part: Sequence[int], speeds: Speeds) -> Table:
    settings, dense = _settings(speeds), found.base.record.dense_macs
    head = ["Network", "Run", "FLOPs %", "Accuracy %", "Parameters", "Bytes", *map(_heading, settings)]
    body = []
    for each in taking_part:
        member = found.members[each]
        record, said = member.record, member.said
        accuracy = float((said.logits.argmax(1) == said.labels).double().mean())
        times = [_own_time(speeds[each].get(setting)) for setting in settings]
        body.append(
            [
                *(f"{each + 1}", str(member.run.path), f"{100 * record.backbone_macs / dense:.1f}"),
                *(f"{100 * accuracy:.2f}", f"{record.backbone_params:,}", f"{record.stored_bytes:,}", *times),
            ]
        )
    return Table(head, "ll" + "r" * (len(head) - 2), body)


def _settings(speeds: Speeds) -> list[Setting]:
    return sorted({setting for each in speeds.values() for setting in each})


def _heading(setting: Setting) -> str:
    return f"{'Deployed' if setting.deployed else 'Eager'} ms, batch {setting.batch}, {setting.place}"


def _own_time(speed: Speed | None) -> str:
    if speed is None:
        return NONE
    gain = speed.realised_speedup
    return f"{speed.median_ms.mean:.4g}" + ("" if gain is None else f" ({gain.mean:.2f}x)")


def expected_ms(choice: Chosen, speeds: Speeds, setting: Setting) -> float | None:
    """The sum of the members' medians, each times the share of the images that it runs on; None if one is unknown."""
    times = [speeds[each].get(setting) for each in choice.group]
    if any(speed is None for speed in times):
        return None
    return sum(rate * speed.median_ms.mean for rate, speed in zip(choice.rates, times, strict=True) if speed)


def _time(choice: Chosen, speeds: Speeds, setting: Setting) -> str:
    found = expected_ms(choice, speeds, setting)
    return NONE if found is None else f"{found:.4g}"


def _points(gain: Sequence[float]) -> str:
    mean, low, high = (100 * value for value in gain)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
