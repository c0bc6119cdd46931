"""`python -m glue_eval` and the console script `glue-eval`."""

import sys

from glue_eval.command import main

if __name__ == "__main__":
    sys.exit(main())
