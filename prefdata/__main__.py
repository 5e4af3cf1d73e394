"""`python -m prefdata` is `prefdata`."""

import sys

from prefdata.cli import main

if __name__ == "__main__":
    sys.exit(main())
