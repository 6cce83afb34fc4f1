"""`trainer`, the process."""

import sys

from krabby_trainer.run.cli import main

if __name__ == "__main__":
    sys.exit(main())
