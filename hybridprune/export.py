"""``python -m hybridprune.export``: `hybridprune.commands.export`."""

import sys

from hybridprune.commands.export import main
from hybridprune.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
