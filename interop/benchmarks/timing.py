"""How long programs take: the fastest of some runs, as what else a machine does only ever adds."""

import time
from collections.abc import Callable

import jax
import torch


def milliseconds(program: Callable, *arguments, repeats: int = 5) -> float:
    """The fastest of some runs of a compiled program."""
    return fastest(lambda: jax.block_until_ready(program(*arguments)), repeats)


def torch_milliseconds(run: Callable) -> float:
    """The fastest of some runs in torch, with one thread or with all: small operations are often faster with one."""
    threads = torch.get_num_threads()
    found = []
    for count in (1, threads):
        torch.set_num_threads(count)
        found.append(fastest(run, repeats=3))
    return min(found)


def fastest(run: Callable, repeats: int, at_least: float = 0.5) -> float:
    """Milliseconds of the fastest run, of ``repeats`` or of as many as ``at_least`` seconds hold.

    What else the machine does comes in bursts: short programs are run until there was a quiet moment.
    """
    run()
    seconds = []
    while len(seconds) < repeats or sum(seconds) < at_least:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds)
