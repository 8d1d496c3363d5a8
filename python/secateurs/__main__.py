"""`python -m secateurs`: the command `secateurs`."""

import sys

from secateurs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
