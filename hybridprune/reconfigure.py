"""``python -m hybridprune.reconfigure``: `hybridprune.commands.reconfigure`."""

import sys

from hybridprune.commands.door import enter

if __name__ == "__main__":
    sys.exit(enter("hybridprune.commands.reconfigure:main", sys.argv[1:], "python -m hybridprune.reconfigure"))
