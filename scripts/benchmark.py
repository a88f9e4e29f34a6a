"""Measures a suite of benchmarks; run with --help."""

import argparse
from importlib import import_module
from pathlib import Path

from interop.benchmarks import SUITES
from jaxkit.cli import reported

parser = argparse.ArgumentParser(
    description="Measures one suite of benchmarks and says a line of each, ratios within the run.",
    epilog="suites: " + "; ".join(f"{name}: {what}" for name, what in SUITES.items()),
)
parser.add_argument("--suite", choices=SUITES, required=True)
parser.add_argument("--only", metavar="NAME", help="one benchmark of the suite; an unknown name lists them")
parser.add_argument("--out", type=Path, metavar="DIR", help="for figures and pictures, or for scratch files")


def main() -> None:
    """Parses, then imports what is heavy."""
    arguments = parser.parse_args()
    for line in import_module(f"interop.benchmarks.{arguments.suite}").measure(arguments.out, arguments.only):
        print(line, flush=True)


if __name__ == "__main__":
    with reported("before it was finished"):
        main()
