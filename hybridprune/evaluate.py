"""``python -m hybridprune.evaluate``: `hybridprune.commands.evaluate`."""

import sys

from hybridprune.commands.evaluate import main
from hybridprune.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
