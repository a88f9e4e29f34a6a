"""Writes what a run has trained as a folder of another project; run with --help."""

import argparse
import re
from pathlib import Path

from jaxkit.cli import reported


def repository(text: str) -> str:
    """The argparse type of a name on the model hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not like owner/name")
    return text


parser = argparse.ArgumentParser(
    description="Writes what a run has trained as a folder of another project. Of the tasks maskgit and tokenizer: the "
    "network, its adapter merged, for open-muse or diffusers, or a checkpoint of Google's tokenizer. Of "
    "text_to_image and textual_inversion: a pipeline of diffusers. Classifiers: scripts/convert.py.",
)
parser.add_argument("workdir", type=Path, metavar="DIR", help="the folder of the run")
parser.add_argument("path", type=Path, metavar="DST")
form = parser.add_mutually_exclusive_group()
form.add_argument("--layout", choices=("open-muse", "diffusers", "google"), help="default: the first it has")
form.add_argument(
    "--pipeline", type=Path, metavar="SRC", help="write a whole pipeline of aMUSEd, with texts and scheduler of SRC"
)
parser.add_argument("--step", type=int, metavar="N", help="the checkpoint; default: the best")
parser.add_argument("--force", action="store_true", help="replace an existing DST")
parser.add_argument(
    "--push-to-hub",
    type=repository,
    metavar="OWNER/NAME",
    help="then upload DST to the model hub, logged in as `hf auth login` or HF_TOKEN says",
)


def main() -> None:
    """Parses, then imports what is heavy."""
    arguments = vars(parser.parse_args())
    repository = arguments.pop("push_to_hub")
    with reported("before anything was written"):
        from interop.exports import export_run, upload

        print("\n".join(export_run(**arguments)), flush=True)
    if repository is not None:
        with reported(f"while it was uploaded; {arguments['path']} stays"):
            print(upload(arguments["path"], repository))


if __name__ == "__main__":
    main()
