"""Evaluates a checkpoint of a run; run with --help."""

import argparse
import json
from pathlib import Path

from jaxkit.cli import distributed_arguments, reported, start_processes

parser = argparse.ArgumentParser(description="Prints the metrics of a checkpoint and writes evaluation_<step>.json.")
parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="the folder of the run")
parser.add_argument("--step", type=int, metavar="N", help="the checkpoint; default: the best")
distributed_arguments(parser)


def main() -> None:
    """Parses, then imports what is heavy."""
    arguments = parser.parse_args()
    start_processes(arguments)
    from interop.starts import READERS
    from jaxkit.inference import evaluate_run, write_evaluation

    result = evaluate_run(arguments.workdir, arguments.step, readers=READERS)
    print(json.dumps(result, indent=2))
    write_evaluation(arguments.workdir, result)


if __name__ == "__main__":
    with reported():
        main()
