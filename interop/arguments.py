"""Arguments of scripts/convert.py that take more than a line; nothing heavy is imported."""

import argparse
import re


def size(text: str) -> int:
    """Bytes of a text such as 5GB."""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)B?", text):
        return int(float(found[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[found[2]])
    raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500MB or 5GB")


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
