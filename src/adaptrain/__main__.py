"""`python -m adaptrain`."""

import sys

from adaptrain.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
