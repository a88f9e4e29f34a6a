"""Translates a config of open-muse's trainer; run with --help."""

import argparse
from pathlib import Path

from jaxkit.cli import reported
from jaxkit.errors import ConfigError

parser = argparse.ArgumentParser(
    description="Writes what a config of open-muse's trainer comes to here, as a config of the task maskgit, and says "
    "what is different and what has to be downloaded. docs/open_muse.md lists every key.",
)
parser.add_argument("source", type=Path, metavar="SRC.yaml")
parser.add_argument("destination", type=Path, metavar="DST.yaml")
parser.add_argument("--devices", type=int, default=1, metavar="N", help="of the original's run, with a batch each")
parser.add_argument("--force", action="store_true", help="replace an existing DST.yaml")


def main() -> None:
    """Parses, then imports what is heavy."""
    arguments = parser.parse_args()
    if arguments.devices < 1:
        raise ConfigError(f"--devices {arguments.devices}: give 1 or more")
    from interop.open_muse import convert_config

    print("\n".join(convert_config(**vars(arguments))))


if __name__ == "__main__":
    with reported("before anything was written"):
        main()
