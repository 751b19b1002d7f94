"""``python -m hybridprune.bench``: `hybridprune.commands.bench`."""

import sys

from hybridprune.commands.door import enter

if __name__ == "__main__":
    sys.exit(enter("hybridprune.commands.bench:main", sys.argv[1:], "python -m hybridprune.bench"))
