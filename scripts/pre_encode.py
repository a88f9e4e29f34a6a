"""Encodes the data of a config before training; run with --help."""

import argparse
from pathlib import Path

from jaxkit.cli import reported
from jaxkit.config import load
from jaxkit.errors import ConfigError

parser = argparse.ArgumentParser(
    description="Runs the frozen tokenizer and text encoder of a maskgit config once over its data, and writes tokens, "
    "text states, micro-conditions and the empty caption in shards. Train from them with data.name=encoded "
    "data.path=DIR. The same command goes on where it was stopped.",
)
parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, such as configs/maskgit_digits.yaml")
parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values in place of the file's")
parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the shards are written")
parser.add_argument("--shard", type=int, default=1024, metavar="N", help="examples of a shard; default 1024")
parser.add_argument("--half", action="store_true", help="store text states in float16, half as large")
parser.add_argument("--part", default="0/1", metavar="I/N", help="make shards I, I + N, ... only: for N processes")


def main() -> None:
    """Parses, validates, and only then imports what is heavy."""
    arguments = parser.parse_intermixed_args()
    number, _, count = arguments.part.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ConfigError(f"--part {arguments.part}: write I/N, from 0/N to N-1/N")
    if arguments.shard < 1:
        raise ConfigError(f"--shard {arguments.shard}: give 1 or more")
    config = load(arguments.config, tuple(arguments.overrides))
    from interop.starts import READERS
    from jaxkit.pre_encode import pre_encode

    part = (int(number), int(count))
    sizes = {"shard_size": arguments.shard, "half": arguments.half}
    written = pre_encode(config, arguments.out, **sizes, part=part, readers=READERS)
    print(f"{arguments.out}: {written} shards written; train with data.name=encoded data.path={arguments.out}")


if __name__ == "__main__":
    with reported("; the same command goes on behind the last whole shard"):
        main()
