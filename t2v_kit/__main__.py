"""`python -m t2v_kit` is the command `t2v`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
