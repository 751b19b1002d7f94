"""``python -m hybridprune.sweep``: `hybridprune.commands.threshold_sweep`."""

import sys

from hybridprune.commands.door import enter

if __name__ == "__main__":
    sys.exit(enter("hybridprune.commands.threshold_sweep:main", sys.argv[1:], "python -m hybridprune.sweep"))
