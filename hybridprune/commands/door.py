"""The commands' one door: what is typed leads to a function, and how the function ends to an exit code.

Nothing here imports torch. ``hybridprune --help`` answers at once, and Ctrl-C while a command is being imported, which
takes seconds, ends it without a traceback.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from hybridprune.config.suggest import suggest
from hybridprune.errors import UserError, run_command
from hybridprune.version import __version__


@dataclass(frozen=True)
class Command:
    """A subcommand of ``hybridprune``."""

    about: str
    function: str
    """``module:name`` of what is called with its words and with what the user typed before them."""
    together: bool = False
    """Whether torchrun may start it in several processes."""


COMMANDS = {
    "train": Command("stage 1: train a gated network", "hybridprune.commands.stages:train", together=True),
    "prune": Command("stage 2: prune it statically", "hybridprune.commands.stages:prune", together=True),
    "route": Command("stage 3: fine-tune its gates", "hybridprune.commands.stages:route", together=True),
    "evaluate": Command("accuracy, execution rates and FLOPs of a finished run", "hybridprune.commands.evaluate:main"),
    "curve": Command("accuracy over FLOPs as the gates' threshold moves", "hybridprune.commands.threshold_sweep:main"),
    "report": Command("table, plot and page of finished runs", "hybridprune.report.command:main"),
    "recommend": Command("one network or a cascade, for a budget", "hybridprune.commands.recommend:main"),
    "export": Command("the network as it is shipped: folded, ONNX, torch.export", "hybridprune.commands.export:main"),
    "bench": Command("what the stages gained by the clock", "hybridprune.commands.bench:main"),
    "reconfigure": Command("the small network that masks of nuspm leave", "hybridprune.commands.reconfigure:main"),
    "grid": Command("the stages over seeds, ratios and alphas", "hybridprune.commands.grid:main"),
    "demo": Command("all three stages on embedded digits, and their report", "hybridprune.commands.demo:main"),
}


def main(words: Sequence[str], prog: str) -> int:
    """Run the subcommand that the first word names, and return its exit code."""
    if words and words[0] == "help":  # `help prune` is `prune --help`
        words = [*words[1:2], "--help"]
    if words and words[0] in COMMANDS:
        command = COMMANDS[words[0]]
        return enter(command.function, words[1:], f"{prog} {words[0]}", together=command.together)
    return run_command(lambda: _tell(words, prog))


def enter(function: str, words: Sequence[str], prog: str, *, together: bool = False) -> int:
    """Call ``function(words, prog)``, written ``module:name``, and return its exit code."""
    module, _, name = function.partition(":")
    try:
        called = getattr(import_module(module), name)
        run = import_module("hybridprune.processes").run_together if together else run_command
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("hybridprune"):
            raise
        package = error.name
        return run_command(lambda: _miss(package))
    return run(lambda: called(words, prog))


def _miss(package: str) -> None:
    raise UserError(f"{package}: not installed for {sys.executable}; pip install . in a clone installs what is needed")


def _tell(words: Sequence[str], prog: str) -> None:
    """What the command says without a subcommand; UserError if the first word is none."""
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: {prog} COMMAND ...\n\nPrunes convolutional networks, statically and dynamically.\n")
        width = max(map(len, COMMANDS))
        for name, command in COMMANDS.items():
            print(f"  {name:{width}}  {command.about}")
        print(f"\n{prog} COMMAND --help tells what a command takes; {prog} --version the version.")
    elif words[0] == "--version":
        print(f"hybridprune {__version__}")
    else:
        raise UserError(f"{words[0]}: no such command{suggest(words[0], COMMANDS)}; see {prog} --help")
