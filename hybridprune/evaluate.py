"""``python -m hybridprune.evaluate``: `hybridprune.commands.evaluate`."""

import sys

from hybridprune.commands.door import enter

if __name__ == "__main__":
    sys.exit(enter("hybridprune.commands.evaluate:main", sys.argv[1:], "python -m hybridprune.evaluate"))
