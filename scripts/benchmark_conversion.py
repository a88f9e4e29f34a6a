"""Measures memory and time of convert.py on 2 GB of weights; run with --help."""

import argparse
from pathlib import Path

from jaxkit.cli import reported

parser = argparse.ArgumentParser(
    description="Measures memory and time of convert.py, both ways, on a sharded bfloat16 checkpoint of 2.1 GB that it "
    "makes first. Linux only.",
)
parser.add_argument("--folder", type=Path, metavar="DIR", help="with room for 9 GB; default: a temporary one")


def main() -> None:
    """Parses, then imports what is heavy."""
    arguments = parser.parse_args()
    from interop.benchmark import measure

    for line in measure(arguments.folder):
        print(line, flush=True)


if __name__ == "__main__":
    with reported("before anything was written"):
        main()
