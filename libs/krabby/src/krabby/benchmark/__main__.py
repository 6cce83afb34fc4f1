"""Prints the cells of the suite `wild` for docs/benchmark.md."""

import sys

from krabby.benchmark.suites import SUITES, cell_table

if __name__ == "__main__":
    sys.stdout.write(f"{cell_table(SUITES['wild'])}\n")
