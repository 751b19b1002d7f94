"""Stage 1: train a gated network. ``python main_sp.py --help``"""

import sys

if __name__ == "__main__":
    try:
        from hybridprune.processes import run_together
        from hybridprune.stages import sp
    except KeyboardInterrupt:  # importing torch takes seconds
        sys.exit(130)
    sys.exit(run_together(lambda: sp.main(sys.argv[1:])))
