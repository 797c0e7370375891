"""`python -m entrostat`, and the `entrostat` command."""

import sys

from entrostat.cli import main

if __name__ == "__main__":
    sys.exit(main())
