import numpy as np
import pytest

from jaxkit.sampling.halton import halton_ranks


def radical_inverse(i, base):
    value, scale = 0.0, 1.0
    while i:
        scale /= base
        value, i = value + scale * (i % base), i // base
    return value


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 4), (3, 9), (16, 16), (32, 24)])
def test_the_ranks_are_those_of_a_sequence_written_out(height, width):
    order, i = [], 0
    while len(order) < height * width:
        i += 1
        # 1e-12 above: thirds that add up to a whole fall short of it by their rounding
        cell = (int(radical_inverse(i, 2) * height + 1e-12), int(radical_inverse(i, 3) * width + 1e-12))
        if cell not in order:
            order.append(cell)
    ranks = halton_ranks(height, width)
    assert [tuple(map(int, cell)) for cell in np.argwhere(ranks >= 0)[np.argsort(ranks.ravel())]] == order


def test_every_cell_has_one_rank():
    np.testing.assert_array_equal(np.sort(halton_ranks(13, 7).ravel()), np.arange(91))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_first_cells_are_more_evenly_spread_than_chance_makes_them(share):
    ranks = halton_ranks(16, 16)

    def unevenness(ranks):
        quarters = (ranks < share * 256).reshape(4, 4, 4, 4).sum((1, 3))
        return quarters.var()

    rng = np.random.default_rng(0)
    by_chance = [unevenness(rng.permutation(256).reshape(16, 16)) for _ in range(200)]
    assert unevenness(ranks) < np.quantile(by_chance, 0.01)
