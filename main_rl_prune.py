"""Stage 3: fine-tune the gates. ``python main_rl_prune.py --help``"""

import sys

from hybridprune.errors import run_command
from hybridprune.stages import rl_prune

if __name__ == "__main__":
    sys.exit(run_command(lambda: rl_prune.main(sys.argv[1:])))
