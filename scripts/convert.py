"""Converts, lists, explains and compares weights of PyTorch and Flax; run with --help."""

import argparse
import signal

from interop.arguments import conversion_commands, embedding_commands
from jaxkit.cli import reported

parser = argparse.ArgumentParser(description=__doc__, epilog="exit codes: 2 usage, 3 mismatch, 4 unsafe file")
commands = parser.add_subparsers(dest="command", required=True)
conversion_commands(commands)
command = commands.add_parser("inspect", help="list keys, shapes, types and bytes")
command.add_argument("path", metavar="FILE")
command.add_argument("--container", metavar="KEY", help="part of a checkpoint, such as model_ema")
command = commands.add_parser("explain", help="what the table does with a torch key or a Flax path")
command.add_argument("--model", required=True, metavar="NAME")
command.add_argument("key", metavar="KEY")
command = commands.add_parser("diff", help="compare two files of one framework, tensor by tensor")
for name in ("first", "second"):
    command.add_argument(name, metavar="FILE")
embedding_commands(commands)


def main() -> int:
    """Parses, then imports what is heavy; returns 3 for files that differ."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a listing may be piped into head
    options = vars(parser.parse_args())
    name = options.pop("command")
    from interop import listing
    from interop.diffusion import pipelines
    from interop.embeddings import commands as embeddings

    if name in ("to-flax", "to-torch"):
        lines = pipelines.convert_any(**options, to=name[3:]).lines()
    elif name == "embedding":
        lines = embeddings.convert(**options)
    elif name == "inspect-embedding":
        lines = embeddings.inspect(**options)
    else:
        lines = getattr(listing, name)(**options)
    lines = list(lines)
    print("\n".join(lines or ["the same tensors, byte for byte"]))
    return 3 if name == "diff" and lines else 0


if __name__ == "__main__":
    with reported("before anything was written"):
        raise SystemExit(main())
