import jax
import pytest


@pytest.mark.timeout(3)
def test_loops_for_ever_on_the_device():
    jax.block_until_ready(jax.lax.while_loop(lambda x: x < 7, lambda x: (x * x + 1) % 5, 0))
