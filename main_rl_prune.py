"""Stage 3: fine-tune the gates. ``python main_rl_prune.py --help``"""

import sys

from hybridprune.processes import run_together
from hybridprune.stages import rl_prune

if __name__ == "__main__":
    sys.exit(run_together(lambda: rl_prune.main(sys.argv[1:])))
