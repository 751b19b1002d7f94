"""``python -m hybridprune.export``: `hybridprune.commands.export`."""

import sys

from hybridprune.commands.door import enter

if __name__ == "__main__":
    sys.exit(enter("hybridprune.commands.export:main", sys.argv[1:], "python -m hybridprune.export"))
