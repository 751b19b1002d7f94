"""Stage 1: train a gated network. ``python main_sp.py --help``"""

import sys

from hybridprune.commands.door import enter

if __name__ == "__main__":
    sys.exit(enter("hybridprune.stages.sp:main", sys.argv[1:], "main_sp.py", together=True))
