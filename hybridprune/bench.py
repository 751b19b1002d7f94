"""``python -m hybridprune.bench``: `hybridprune.commands.bench`."""

import sys

from hybridprune.commands.bench import main
from hybridprune.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
