"""``python -m hybridprune.sweep_runs``: `hybridprune.commands.grid`."""

import sys

from hybridprune.commands.grid import main
from hybridprune.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
