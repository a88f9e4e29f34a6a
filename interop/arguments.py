"""Arguments of scripts/convert.py that take more than a line; nothing heavy is imported."""

import argparse
import re


def size(text: str) -> int:
    """Bytes of a text such as 5GB."""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)B?", text):
        return int(float(found[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[found[2]])
    raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500MB or 5GB")


def conversion_commands(commands: argparse._SubParsersAction) -> None:
    """Adds the commands that convert weights; of what has no default here, the result holds only what was given."""
    for name in ("to-flax", "to-torch"):
        command = commands.add_parser(
            name, help=f"convert a file or folder {name.replace('-', ' ')}", argument_default=argparse.SUPPRESS
        )
        command.add_argument(
            "source", metavar="SRC", help=".pt .pth .bin .safetensors .msgpack .npz, a folder, a pipeline, a workdir"
        )
        command.add_argument("destination", metavar="DST", help="its suffix chooses the kind of file; none: a folder")
        command.add_argument("--model", metavar="NAME", help="or FILE.py:NAME, or a config.json; default: found out")
        command.add_argument("--dtype", choices=("keep", "f32", "bf16", "f16"), help="default: keep")
        command.add_argument("--container", metavar="KEY", help="part of a checkpoint, such as model_ema")
        command.add_argument("--variant", metavar="NAME", help="of a folder's files, such as fp16")
        command.add_argument(
            "--image-size", type=int, nargs=2, metavar=("H", "W"), help="where the weights depend on it"
        )
        command.add_argument("--max-shard-size", type=size, default="5GB", metavar="SIZE", help="default: 5GB")
        command.add_argument("--check", action="store_true", help="read DST again, convert back, compare every byte")
        command.add_argument("--dry-run", action="store_true", help="write nothing")
        command.add_argument("--force", action="store_true", help="replace an existing DST")


def embedding_commands(commands: argparse._SubParsersAction) -> None:
    """Adds the commands for files of textual inversion."""
    command = commands.add_parser("embedding", help="write a learned word of textual inversion for another program")
    command.add_argument("source", metavar="SRC", help="a file of any program, or a checkpoint's folder")
    command.add_argument("destination", metavar="DST", help=".safetensors; of bin .bin, of a1111 .pt")
    command.add_argument("--format", choices=("diffusers", "bin", "a1111", "sdxl"), default="diffusers")
    command.add_argument("--token", metavar="NAME", help="what to call the word; of several, which to take")
    command.add_argument("--force", action="store_true", help="replace an existing DST")
    command = commands.add_parser("inspect-embedding", help="list vectors, norms, base model and nearest words")
    command.add_argument("path", metavar="FILE")
    command.add_argument(
        "--text-encoder", nargs="+", default=(), metavar="FOLDER", help="whose words to compare with; of XL both"
    )
    command.add_argument("--tokenizer", metavar="FOLDER", help="which has the words' names")
