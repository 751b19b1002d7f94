"""``python -m hybridprune.sweep``: `hybridprune.commands.threshold_sweep`."""

import sys

from hybridprune.commands.threshold_sweep import main
from hybridprune.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
