"""What the scripts share: flags for several processes, and errors as one message and an exit code."""

import argparse
import contextlib
import errno
import sys
from collections.abc import Callable, Iterator

from jaxkit.errors import ConfigError, UserError


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns an error the user can mend into its message on stderr and its exit code."""
    try:
        yield
    except UserError as error:
        sys.exit(_exit(str(error), error.exit_code))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(_exit(f"{error.filename or 'a file'} could not be written: {error.strerror}", 1))
    except KeyboardInterrupt:
        sys.exit(_exit("stopped by Ctrl-C before anything was saved since the last checkpoint", 130))


def _exit(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def step_or(*words: str) -> Callable[[str], str]:
    """The argparse type of a step number or one of some words."""

    def parse(text: str) -> str:
        if text not in words and not text.isdigit():
            raise argparse.ArgumentTypeError(f"{text!r} is neither a step nor one of {', '.join(words)}")
        return text

    return parse


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
    if not all(missing) or arguments.distributed:
        import jax

        jax.distributed.initialize(*given)
