import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkit.inversion.norms import decay, median, median_norm, std, table_std

TABLE = np.random.default_rng(0).normal(0.1, 0.5, (40, 6)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(-0.2, 3, (3, 6)).astype(np.float32)


@pytest.mark.parametrize("count", [39, 40])
def test_the_table_s_median_and_deviation_are_torch_s(count):
    table = torch.from_numpy(TABLE[:count])
    assert median_norm(TABLE[:count]) == pytest.approx(table.norm(dim=1).median().item(), rel=1e-6)
    assert table_std(TABLE[:count]) == pytest.approx(table.std().item(), rel=1e-6)


def test_every_row_gets_the_table_s_median_length_and_keeps_its_direction():
    rows = jax.jit(median)(ROWS, 1.25)
    lengths = np.linalg.norm(ROWS, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, ROWS / lengths * 1.25, rtol=1e-6)


@pytest.mark.parametrize("learning_rate", [5e-4, 0.02])
def test_lengths_decay_as_in_cloneofsimo_s_trainer(learning_rate):
    rows, share = torch.from_numpy(ROWS), min(1.0, 100 * learning_rate)
    before = rows.norm(dim=-1, keepdim=True)
    expected = torch.nn.functional.normalize(rows, dim=-1) * (before + share * (0.4 - before))
    np.testing.assert_allclose(jax.jit(decay)(ROWS, share), expected, rtol=1e-6)


def test_the_spread_is_drawn_to_the_table_s_as_in_the_advanced_trainer_of_diffusers():
    rows, table = torch.from_numpy(ROWS), torch.from_numpy(TABLE)
    expected = rows * (table.std() / rows.std()) ** 0.1
    np.testing.assert_allclose(jax.jit(std)(ROWS, table_std(TABLE)), expected, rtol=1e-6)


def test_again_and_again_each_leads_to_its_target():
    rows = {"median": jnp.asarray(ROWS), "decay": jnp.asarray(ROWS), "std": jnp.asarray(ROWS)}
    for _ in range(150):
        rows = {
            "median": median(rows["median"], 0.7),
            "decay": decay(rows["decay"], 0.1),
            "std": std(rows["std"], 0.5),
        }
    np.testing.assert_allclose(np.linalg.norm(rows["median"], axis=1), 0.7, rtol=1e-5)
    # what is left of the way is 0.9 to the power of 150, and rounding
    np.testing.assert_allclose(np.linalg.norm(rows["decay"], axis=1), 0.4, rtol=1e-5)
    np.testing.assert_allclose(np.std(rows["std"], ddof=1), 0.5, rtol=1e-5)
