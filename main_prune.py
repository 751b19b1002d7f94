"""Stage 2: prune it statically. ``python main_prune.py --help``"""

import sys

from hybridprune.errors import run_command
from hybridprune.stages import prune

if __name__ == "__main__":
    sys.exit(run_command(lambda: prune.main(sys.argv[1:])))
