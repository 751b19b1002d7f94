"""Stage 3: fine-tune the gates. ``python main_rl_prune.py --help``"""

import sys

if __name__ == "__main__":
    try:
        from hybridprune.processes import run_together
        from hybridprune.stages import rl_prune
    except KeyboardInterrupt:  # importing torch takes seconds
        sys.exit(130)
    sys.exit(run_together(lambda: rl_prune.main(sys.argv[1:])))
