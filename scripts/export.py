"""Writes what a run over tokens has trained as a folder of another project; run with --help."""

import argparse
from pathlib import Path

from jaxkit.cli import reported

parser = argparse.ArgumentParser(
    description="Writes the network of a run of the task maskgit or tokenizer, its adapter merged, as a folder that "
    "open-muse, diffusers or transformers loads, or as a checkpoint of Google's. Classifiers: scripts/convert.py.",
)
parser.add_argument("workdir", type=Path, metavar="DIR", help="the folder of the run")
parser.add_argument("path", type=Path, metavar="DST")
parser.add_argument(
    "--layout", choices=("open-muse", "diffusers", "transformers", "google"), help="default: the first it has"
)
parser.add_argument("--step", type=int, metavar="N", help="the checkpoint; default: the best")
parser.add_argument("--force", action="store_true", help="replace an existing DST")


def main() -> None:
    """Parses, then imports what is heavy."""
    arguments = parser.parse_args()
    from interop.masked.runs import export_run

    print("\n".join(export_run(**vars(arguments))))


if __name__ == "__main__":
    with reported("before anything was written"):
        main()
