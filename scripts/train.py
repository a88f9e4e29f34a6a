"""Trains what a config says; run with --help."""

import argparse
import sys
from functools import partial
from pathlib import Path

from jaxkit.cli import distributed_arguments, reported, start_processes, step_or
from jaxkit.config import load
from jaxkit.errors import ConfigError
from jaxkit.tasks import TASKS

parser = argparse.ArgumentParser(
    description="Trains a task. The config is YAML; section.key=value arguments change it.",
    epilog=f"tasks: {', '.join(TASKS)}. Common keys: task.model.name, task.student.name, task.teacher.config, "
    "task.model.pretrained, data.name, data.batch_size, optimizer.name, optimizer.learning_rate, train.steps, "
    "train.parallel (jit, pmap), train.precision (no, bf16, fp16). Exit codes: 0 trained, 1 failed, 2 wrong config or "
    "arguments, 3 weights of another model, 4 damaged or unsafe weight file, 130 Ctrl-C, 143 SIGTERM.",
)
parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, such as configs/distill_digits.yaml")
parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values in place of the file's")
parser.add_argument("--workdir", type=Path, metavar="DIR", help="where the run writes; default: runs/<config's name>")
origin = parser.add_mutually_exclusive_group()
steps = {"type": step_or("latest", "never"), "default": "latest", "metavar": "latest|STEP|never"}
origin.add_argument("--resume", **steps, help="the checkpoint to go on from; default: the newest of the workdir")
origin.add_argument("--from-torch", type=Path, metavar="RUN.pt", help="begin a run where one of torch stopped")
origin.add_argument("--start-from", type=Path, metavar="DIR", help="begin a run where another, or a checkpoint, is")
kinds = ("optimizer", "schedule")
parser.add_argument("--fresh", action="append", choices=kinds, default=[], help="what --start-from does not carry on")
parser.add_argument("--force", action="store_true", help="overwrite an earlier run in the workdir")
parser.add_argument("--print-config", action="store_true", help="print the whole config, defaults included, and exit")
distributed_arguments(parser)


def main() -> None:
    """Parses, validates, and only then imports what is heavy."""
    arguments = parser.parse_intermixed_args()
    config = load(arguments.config, tuple(arguments.overrides))
    if arguments.print_config:
        sys.stdout.write(config.yaml())
        return
    if arguments.fresh and arguments.start_from is None:
        raise ConfigError("--fresh says what --start-from is not to carry on; give that too")
    start_processes(arguments)
    from interop.starts import READERS, torch_run
    from jaxkit.experiment import run
    from jaxkit.starts import another_run
    from jaxkit.workdir import summary

    folder = arguments.workdir or Path("runs") / Path(arguments.config).stem
    begin = arguments.from_torch and partial(torch_run, arguments.from_torch)
    if arguments.start_from:
        begin = partial(another_run, arguments.start_from, tuple(dict.fromkeys(arguments.fresh)))
    results = run(config, folder, arguments.resume, arguments.force, readers=READERS, begin=begin)
    print(f"{summary(results)}\n{folder}: results.json, curves.png, checkpoints")


if __name__ == "__main__":
    with reported():
        main()
