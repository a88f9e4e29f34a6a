"""The two ways to run one step on many devices: jit over a mesh, and pmap. Both compute what one device would.

Under ``jit`` the step sees the whole batch and XLA splits the work. Under ``pmap`` each device sees its part and the
step averages over the axis ``data`` where it must; :class:`Executor` hands it the functions for that, identities under
``jit``. State and frozen variables are replicated arrays of the same kind under both, so a checkpoint of one resumes
under the other.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, UInt32

from jaxkit.errors import ConfigError

AXIS = "data"


class Executor(NamedTuple):
    """How a step is compiled and where its arguments live."""

    axis_name: str | None
    """The mapped axis inside a step; None where a step sees the whole batch."""
    devices: int
    """Over all processes."""
    compile: Callable[..., Callable]
    """``compile(step, state, frozen, batch, donate=...)``: the executable of ``step`` for arguments like these."""
    put_batch: Callable[[PyTree], PyTree]
    """This process's part of a batch, from host to devices, without waiting."""
    replicate: Callable[[PyTree], PyTree]
    """Host values, the same in every process, onto all devices; always into new buffers."""

    def mean(self, tree: PyTree) -> PyTree:
        """Averages floating-point leaves over the mapped axis; takes the largest of others (counters, flags)."""
        if self.axis_name is None:
            return tree

        def over(leaf):
            reduce = jax.lax.pmean if jnp.issubdtype(leaf.dtype, jnp.inexact) else jax.lax.pmax
            return reduce(leaf, self.axis_name)

        return jax.tree.map(over, tree)

    def total(self, tree: PyTree) -> PyTree:
        """Sums leaves over the mapped axis."""
        return tree if self.axis_name is None else jax.lax.psum(tree, self.axis_name)

    def layer_key(self, key: UInt32[Array, "2"]) -> UInt32[Array, "2"]:
        """The key for noise drawn by layers (dropout): one per device where a step sees a part of the batch."""
        return key if self.axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))

    def example_keys(self, key: UInt32[Array, "2"], examples: int) -> UInt32[Array, "b 2"]:
        """One key per example of the batch a step sees, the same for an example wherever it is computed."""
        if self.axis_name is None:
            return jax.random.split(key, examples)
        keys = jax.random.split(key, examples * self.devices)
        return jax.lax.dynamic_slice_in_dim(keys, jax.lax.axis_index(self.axis_name) * examples, examples)


def executor(kind: Literal["jit", "pmap"]) -> Executor:
    """Makes the executor over all devices of all processes."""
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))

    def replicate(tree):
        return jax.tree.map(lambda leaf: _copy_to(leaf, replicated), tree)

    def put_whole(batch):
        return jax.tree.map(partial(jax.make_array_from_process_local_data, split), batch)

    def put_parts(batch):
        local = jax.local_device_count()
        return put_whole(jax.tree.map(lambda leaf: leaf.reshape(local, -1, *leaf.shape[1:]), batch))

    def compile_jit(step, state, frozen, batch, donate=True):
        jitted = jax.jit(step, donate_argnums=(0,) if donate else (), out_shardings=replicated)
        return _one_at_a_time(jitted.lower(state, frozen, batch).compile())

    def compile_pmap(step, state, frozen, batch, donate=True):
        mapped = jax.pmap(step, AXIS, in_axes=(None, None, 0), out_axes=None, donate_argnums=(0,) if donate else ())
        return _one_at_a_time(mapped.lower(state, frozen, batch).compile())

    if kind == "jit":
        return Executor(None, len(jax.devices()), compile_jit, put_whole, replicate)
    return Executor(AXIS, len(jax.devices()), compile_pmap, put_parts, replicate)


def _one_at_a_time(compiled: Callable) -> Callable:
    """The executable; between virtual devices of a CPU it returns when it is done.

    Their collectives wait for each other in threads of one pool: with several calls in it they may do so for ever.
    """
    if jax.default_backend() != "cpu" or jax.device_count() == 1:
        return compiled
    return lambda *arguments: jax.block_until_ready(compiled(*arguments))


def _copy_to(leaf: Any, sharding: NamedSharding) -> jax.Array:
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))


def check_divides(batch_size: int, pieces: int) -> None:
    """Raises ConfigError unless every device gets the same number of examples in each of ``pieces``."""
    devices = jax.device_count()
    if batch_size % (devices * pieces):
        near = max(1, round(batch_size / (devices * pieces))) * devices * pieces
        raise ConfigError(
            f"data.batch_size = {batch_size} cannot be split over {devices} devices"
            + (f" in {pieces} pieces" if pieces > 1 else "")
            + f"; the nearest size that can is {near}"
        )


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process. All processes must call it at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


_compiled: list[str] = []


@functools.cache
def _listen() -> None:
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _seconds, **_: _compiled.append(event) if event.endswith("backend_compile_duration") else None
    )


def compilations() -> int:
    """How many programs XLA has compiled in this process since this was first asked."""
    _listen()
    return len(_compiled)


def from_first_process(number: int | None) -> int | None:
    """The number that process 0 holds, in every process."""
    if jax.process_count() == 1:
        return number
    found = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if number is None else number)))
    return None if found < 0 else found
