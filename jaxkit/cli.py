"""What the scripts share: flags for several processes, and errors as one message and an exit code."""

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial

from jaxkit.errors import ConfigError, UserError


@contextlib.contextmanager
def reported(
    after: str = "outside the training loop; the same command goes on from the last checkpoint",
) -> Iterator[None]:
    """Turns an error the user can mend, or a signal outside the training loop, into one message and an exit code.

    The loop answers signals itself, and so does what is writing a file. Elsewhere there is nothing to save, and
    Python's own answer to Ctrl-C, an exception at any line, is swallowed by some of the libraries that are imported:
    the process ends at once instead. ``after`` says where that leaves the user.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, partial(_end_at_once, after))
    try:
        yield
    except UserError as error:
        sys.exit(_exit(str(error), error.exit_code))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        what = error.filename or "a file of the run"
        sys.exit(_exit(f"{what} could not be written: {error.strerror}; the checkpoints before it are whole", 1))


def _end_at_once(after: str, number: int, _frame) -> None:
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    print(f"stopped by {name}{'' if after.startswith(';') else ' '}{after}", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _exit(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def step_or(*words: str) -> Callable[[str], str]:
    """The argparse type of a step number or one of some words."""

    def parse(text: str) -> str:
        if text not in words and not (text.isascii() and text.isdigit()):
            raise argparse.ArgumentTypeError(f"{text!r} is neither a step nor one of {', '.join(words)}")
        return text

    return parse


def margins(text: str) -> tuple[int, ...]:
    """The argparse type of pixels on the four sides of an image, such as ``8,8,0,0``; not all are 0."""
    sides = text.split(",")
    if len(sides) != 4 or not all(side.isascii() and side.isdigit() for side in sides) or not any(map(int, sides)):
        raise argparse.ArgumentTypeError(f"{text!r} is no LEFT,RIGHT,TOP,BOTTOM in pixels, such as 8,8,0,0")
    return tuple(map(int, sides))


def distributed_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that join several processes into one run."""
    group = parser.add_argument_group("several processes (one for each machine, or for each GPU)")
    group.add_argument("--coordinator-address", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="0 to N - 1")
    group.add_argument("--distributed", action="store_true", help="read the three from SLURM, Open MPI or Kubernetes")


def start_processes(arguments: argparse.Namespace) -> None:
    """Joins the other processes, if the flags say there are any.

    Raises:
        ConfigError: if only some of the three flags are given.
    """
    given = (arguments.coordinator_address, arguments.num_processes, arguments.process_id)
    missing = [value is None for value in given]
    if any(missing) and not all(missing):
        raise ConfigError("--coordinator-address, --num-processes and --process-id go together")
    if all(missing) and not arguments.distributed:
        return
    address, count, number = given
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise ConfigError(f"--coordinator-address {address}: write HOST:PORT, such as node0:1234")
    if count is not None and not 0 <= number < count:
        raise ConfigError(f"--process-id {number} is none of 0 to {count - 1}")
    import jax

    try:
        jax.distributed.initialize(*given)
    except (ValueError, RuntimeError) as error:
        what = "--distributed finds no cluster here" if all(missing) else "the processes could not be joined"
        raise ConfigError(f"{what}: {error}") from error
