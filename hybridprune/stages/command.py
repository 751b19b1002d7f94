"""The command of a stage: its words become a configuration, which is printed or run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hybridprune.config import Invocation, resolve
from hybridprune.stages.console import show_config
from hybridprune.stages.setup import C


def stage_command(
    default: C,
    run: Callable[[Invocation[C]], object],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    config_path: str | None = None,
) -> None:
    """Resolve the words ``argv`` of a stage and ``run`` them, or print what they mean (``--print-config``).

    The other arguments, and the UserError that is raised, are those of `resolve`.
    """
    invocation = resolve(default, argv, prog=prog, description=description, config_path=config_path)
    if invocation.print_config:
        show_config(invocation)
    else:
        run(invocation)
