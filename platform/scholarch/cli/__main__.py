"""`python -m scholarch.cli`, which is how the launcher starts its workers."""

import sys

from scholarch.cli import main

# A loader's worker may import this module again.
if __name__ == "__main__":
    sys.exit(main())
