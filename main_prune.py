"""Stage 2: prune it statically. ``python main_prune.py --help``"""

import sys

from hybridprune.processes import run_together
from hybridprune.stages import prune

if __name__ == "__main__":
    sys.exit(run_together(lambda: prune.main(sys.argv[1:])))
