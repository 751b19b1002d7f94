"""Stage 2: prune it statically. ``python main_prune.py --help``"""

import sys

from hybridprune.commands.door import enter

if __name__ == "__main__":
    sys.exit(enter("hybridprune.stages.prune:main", sys.argv[1:], "main_prune.py", together=True))
