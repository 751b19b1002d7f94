"""``python -m hybridprune.sweep_runs``: `hybridprune.commands.grid`."""

import sys

from hybridprune.commands.door import enter

if __name__ == "__main__":
    sys.exit(enter("hybridprune.commands.grid:main", sys.argv[1:], "python -m hybridprune.sweep_runs"))
