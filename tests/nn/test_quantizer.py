from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkit.nn.quantizer import (
    Averages,
    VectorQuantizer,
    averaged,
    nearest_code,
    revived,
    settled,
    soft_code,
    straight_through,
)

pytestmark = pytest.mark.level(1)


def draw(*shape, seed=0, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def distances(z, codebook):
    z, codebook = np.asarray(z, np.float64), np.asarray(codebook, np.float64)
    return np.square(z[..., None, :] - codebook).sum(-1)


def test_the_nearest_code_is_that_at_the_smallest_distance():
    z, codebook = draw(3, 4, 5, 6), draw(50, 6, seed=1)
    tokens = nearest_code(z, codebook)
    assert tokens.dtype == jnp.int32
    assert np.array_equal(tokens, distances(z, codebook).argmin(-1))


def test_the_nearest_code_is_found_far_from_the_origin_too():
    # distances of 1e-3, under squared norms of 1e4: summed up in float32 these would drown them
    codebook = 50 + draw(20, 4, scale=0.1)
    z = codebook[7] + draw(30, 4, seed=1, scale=1e-3)
    assert np.array_equal(nearest_code(z, codebook), [7] * 30)


def test_soft_codes_are_the_softmax_of_negative_squared_distances():
    z, codebook = draw(2, 3, 4, 5), draw(16, 5, seed=1)
    soft, tokens = soft_code(z, codebook, temperature=0.7)
    expected = np.exp(-distances(z, codebook) / 0.7)
    # a softmax in float32
    np.testing.assert_allclose(soft, expected / expected.sum(-1, keepdims=True), rtol=2e-5)
    np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-6)
    assert np.array_equal(soft.argmax(-1), tokens)
    assert np.array_equal(tokens, nearest_code(z, codebook))


def test_a_key_draws_tokens_as_often_as_the_soft_code_says():
    n, codebook = 20_000, draw(5, 3, seed=1)
    z = jnp.broadcast_to(draw(3), (n, 3))
    soft, tokens = soft_code(z, codebook, temperature=2.0, key=jax.random.key(0))
    share, found = np.asarray(soft[0]), np.bincount(tokens, minlength=5) / n
    # four standard deviations of a binomial
    assert (abs(found - share) <= 4 * np.sqrt(share * (1 - share) / n)).all()
    assert (np.bincount(tokens, minlength=5) > 0).all()


def test_the_gradient_passes_straight_through_to_the_latents():
    z, z_q = draw(4, 3), draw(4, 3, seed=1)
    np.testing.assert_allclose(straight_through(z, z_q), z_q, rtol=1e-6, atol=1e-6)
    of_z, of_z_q = jax.grad(lambda *zs: (3 * straight_through(*zs)).sum(), argnums=(0, 1))(z, z_q)
    assert (of_z == 3).all()
    assert not of_z_q.any()


def start(k=6, d=3):
    embedding = draw(k, d, seed=5)
    return Averages(embedding, jnp.ones(k), embedding)


def test_moving_averages_follow_the_papers_equations():
    state, decay = start(), 0.8
    sizes, sums = np.ones(6), np.asarray(state.embedding, np.float64)
    for step in range(5):
        z = draw(2, 4, 3, seed=step)
        tokens = nearest_code(z, state.embedding)
        state = averaged(state, z, tokens, decay=decay)
        for code in range(6):
            mine = np.asarray(z)[np.asarray(tokens) == code]
            sizes[code] = decay * sizes[code] + (1 - decay) * len(mine)
            sums[code] = decay * sums[code] + (1 - decay) * mine.sum(0)
        # float32
        np.testing.assert_allclose(state.sizes, sizes, rtol=1e-5)
        np.testing.assert_allclose(state.embedding, sums / sizes[:, None], rtol=1e-4, atol=1e-6)


def test_a_code_that_is_never_used_stays_where_it_is():
    state = start()
    z, tokens = draw(8, 3), jnp.zeros(8, jnp.int32)
    after = jax.lax.fori_loop(0, 2000, lambda _, now: averaged(now, z, tokens, decay=0.9), state)
    np.testing.assert_allclose(after.embedding[1:], state.embedding[1:], rtol=1e-4)
    np.testing.assert_allclose(after.embedding[0], z.mean(0), rtol=1e-4)


def test_only_dead_codes_are_revived_as_vectors_of_the_batch():
    z = draw(4, 6, 3)
    state = start()._replace(sizes=jnp.array([0.39, 0.41, 5, 0, 1, 2.0]))
    # 24 vectors over 6 codes: a fair share is 4
    after = revived(state, z, jax.random.key(0), below=0.1)
    dead = [0, 3]
    alive = [1, 2, 4, 5]
    for old, new in zip(state, after, strict=True):
        assert np.array_equal(old[np.array(alive)], new[np.array(alive)])
    assert all((z.reshape(-1, 3) == after.embedding[code]).all(-1).any() for code in dead)
    assert (after.sizes[np.array(dead)] == 4).all()
    np.testing.assert_allclose(after.sums[np.array(dead)], 4 * after.embedding[np.array(dead)])


@pytest.mark.parametrize("executor", ["jit", "pmap"])
def test_eight_devices_average_the_codes_of_the_whole_batch(executor):
    devices = jax.devices()
    assert len(devices) == 8
    state, z = start(), draw(16, 5, 3)
    tokens = nearest_code(z, state.embedding)
    expected = averaged(state, z, tokens, decay=0.7)
    if executor == "jit":
        split = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
        z, tokens = jax.device_put(z, split), jax.device_put(tokens, split)
        found = jax.jit(partial(averaged, decay=0.7))(state, z, tokens)
    else:
        run = jax.pmap(partial(averaged, decay=0.7, axis_name="data"), "data", in_axes=(None, 0, 0), out_axes=None)
        found = run(state, z.reshape(8, 2, 5, 3), tokens.reshape(8, 2, 5))
    for ours, theirs in zip(found, expected, strict=True):
        # sums in another order
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False], ids=["one key", "a key each"])
def test_eight_devices_revive_the_same_codes_from_all_their_parts(shared):
    z = draw(8, 10, 3)
    state = Averages(jnp.zeros((40, 3)), jnp.zeros(40), jnp.zeros((40, 3)))
    keys = jax.random.split(jax.random.key(0), 8)
    keys = jnp.broadcast_to(keys[0], (8,)) if shared else keys
    run = jax.pmap(partial(revived, below=0.5, axis_name="data"), "data", in_axes=(None, 0, 0))
    found = run(state, z, keys)
    assert all(np.array_equal(leaf[0], part) for leaf in found for part in leaf)
    assert (found.sizes[0] == 80 / 40).all()
    origin = [np.argwhere((z == code).all(-1)) for code in found.embedding[0]]
    assert all(len(places) == 1 for places in origin)
    assert len({int(places[0, 0]) for places in origin}) > 4


@pytest.fixture(scope="module")
def quantizer():
    module = VectorQuantizer(6, 3, decay=0.9, revive_below=0.2)
    z = draw(2, 4, 3)
    return module, module.init(jax.random.key(0), z), z


def test_a_codebook_of_moving_averages_is_a_variable_that_updates_move(quantizer):
    module, variables, z = quantizer
    assert set(variables) == {"codebook"}
    tokens = module.apply(variables, z)
    rngs = {"codebook": jax.random.key(1)}
    _, moved = module.apply(variables, z, tokens, method="update", mutable="codebook", rngs=rngs)
    old, new = (Averages(**tree["codebook"]) for tree in (variables, moved))
    expected = averaged(old, z, tokens, decay=0.9)
    live = np.asarray(expected.sizes) >= 0.2 * 8 / 6
    assert live.any()
    assert np.array_equal(new.embedding[live], expected.embedding[live])


def test_a_settled_codebook_is_a_parameter_with_the_same_codes(quantizer):
    _, variables, z = quantizer
    tree = {"params": {"encoder": {"bias": z}}, "codebook": {"quantize": variables["codebook"]}, "batch_stats": {}}
    params = settled(tree)["params"]
    assert settled(tree).keys() == {"params", "batch_stats"}
    assert np.array_equal(params["quantize"]["embedding"], variables["codebook"]["embedding"])
    assert params["quantize"].keys() == {"embedding"}
    assert params["encoder"] == tree["params"]["encoder"]
    plain = VectorQuantizer(6, 3)
    assert np.array_equal(
        plain.apply({"params": params["quantize"]}, z), nearest_code(z, params["quantize"]["embedding"])
    )
    assert settled({"params": params}) == {"params": params}


def test_a_token_beyond_the_codebook_looks_up_nan(quantizer):
    module, variables, _ = quantizer
    codes = module.apply(variables, jnp.array([5, 6]), method="lookup")
    assert np.isfinite(codes[0]).all()
    assert np.isnan(codes[1]).all()
