"""Stage 1: train a gated network. ``python main_sp.py --help``"""

import sys

from hybridprune.processes import run_together
from hybridprune.stages import sp

if __name__ == "__main__":
    sys.exit(run_together(lambda: sp.main(sys.argv[1:])))
