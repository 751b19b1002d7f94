"""``hybridprune``, ``python -m hybridprune``: all commands."""

import sys
from pathlib import Path

from hybridprune.commands import door


def main() -> int:
    """Run the command that ``sys.argv`` spells, and return its exit code."""
    as_module = Path(sys.argv[0]).name == "__main__.py"
    return door.main(sys.argv[1:], "python -m hybridprune" if as_module else "hybridprune")


if __name__ == "__main__":
    sys.exit(main())
