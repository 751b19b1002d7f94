"""Stage 3: fine-tune the gates. ``python main_rl_prune.py --help``"""

import sys

from hybridprune.commands.door import enter

if __name__ == "__main__":
    sys.exit(enter("hybridprune.stages.rl_prune:main", sys.argv[1:], "main_rl_prune.py", together=True))
