"""Converts, lists, explains and compares weights of PyTorch and Flax; run with --help."""

import argparse
import signal

from interop.arguments import embedding_commands, size
from jaxkit.cli import reported

parser = argparse.ArgumentParser(description=__doc__, epilog="exit codes: 2 usage, 3 mismatch, 4 unsafe file")
commands = parser.add_subparsers(dest="command", required=True)
for name in ("to-flax", "to-torch"):
    command = commands.add_parser(name, help=f"convert a file or folder {name.replace('-', ' ')}")
    command.add_argument("source", metavar="SRC", help=".pt .pth .bin .safetensors .msgpack .npz, a folder, a workdir")
    command.add_argument("destination", metavar="DST", help="its suffix chooses the kind of file; none: a folder")
    command.add_argument("--model", metavar="NAME", help="or FILE.py:NAME, or a config.json; default: found out")
    command.add_argument("--dtype", choices=("keep", "f32", "bf16", "f16"), default="keep")
    command.add_argument("--container", metavar="KEY", help="part of a checkpoint, such as model_ema")
    command.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), help="where the weights depend on it")
    command.add_argument("--max-shard-size", type=size, default="5GB", metavar="SIZE", help="default: 5GB")
    command.add_argument("--check", action="store_true", help="read DST again, convert back, compare every byte")
    command.add_argument("--dry-run", action="store_true", help="write nothing")
    command.add_argument("--force", action="store_true", help="replace an existing DST")
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
    from interop import conversion, listing
    from interop.embeddings import commands as embeddings

    if name in ("to-flax", "to-torch"):
        lines = conversion.convert(**options, to=name[3:]).lines()
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
