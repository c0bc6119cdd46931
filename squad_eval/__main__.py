"""`python -m squad_eval` and the console script `squad-eval`."""

import sys

from squad_eval.command import main

if __name__ == "__main__":
    sys.exit(main())
