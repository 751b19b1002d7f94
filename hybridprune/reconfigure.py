"""``python -m hybridprune.reconfigure``: `hybridprune.commands.reconfigure`."""

import sys

from hybridprune.commands.reconfigure import main
from hybridprune.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
