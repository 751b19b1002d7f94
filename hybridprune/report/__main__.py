"""``python -m hybridprune.report``: `hybridprune.report.command`."""

import sys
from collections.abc import Sequence

from hybridprune.commands.door import enter


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    return enter("hybridprune.report.command:main", words, "python -m hybridprune.report")


if __name__ == "__main__":
    sys.exit(main())
