"""Stage 2: prune it statically. ``python main_prune.py --help``"""

import sys

if __name__ == "__main__":
    try:
        from hybridprune.processes import run_together
        from hybridprune.stages import prune
    except KeyboardInterrupt:  # importing torch takes seconds
        sys.exit(130)
    sys.exit(run_together(lambda: prune.main(sys.argv[1:])))
