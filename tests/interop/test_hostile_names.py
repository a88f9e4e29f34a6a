"""Names, numbers and metadata that were made to confuse: messages stay short, listings stay text, counts stay exact."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from interop.engine import WeightsError, to_flax, unflatten
from interop.files import write_weights
from interop.layers import dense
from interop.layout import spec
from interop.listing import diff, inspect
from interop.problems import Problems

STACKED = (("l.{layer}", "l[layer]", dense),)
LIKE = unflatten({"params/l/kernel": SimpleNamespace(shape=(2, 3, 4)), "params/l/bias": SimpleNamespace(shape=(2, 4))})


def layers(*numbers: str) -> dict[str, np.ndarray]:
    """Torch's leaves of dense layers under these numbers."""
    shapes = {"weight": (4, 3), "bias": (4,)}
    return {f"l.{n}.{leaf}": np.zeros(shape, np.float32) for n in numbers for leaf, shape in shapes.items()}


def problems(state: dict[str, np.ndarray]) -> Problems:
    with pytest.raises(WeightsError) as caught:
        to_flax(state, STACKED, LIKE)
    return caught.value.problems


def stored(path, arrays, metadata=None):
    """Writes arrays under Flax paths."""
    specs = {name: spec(array) for name, array in arrays.items()}
    write_weights(path, specs, arrays.items(), format="flax", metadata=metadata or {}, max_shard_size=None, force=False)
    return path


def differences(tmp_path, one: np.ndarray, other: np.ndarray) -> list[str]:
    return diff(stored(tmp_path / "a.npz", {"w": one}), stored(tmp_path / "b.npz", {"w": other}))


def test_numbers_of_any_length_are_shown_in_order():
    long = "9" * 5000
    with pytest.raises(WeightsError) as caught:
        Problems(missing=[f"l.{number}.weight" for number in (long, "10", "9", "007")]).raise_any()
    assert str(caught.value).endswith(f"missing     l.{{007...{long}}}.weight (x4)")


@pytest.mark.parametrize("number", ["3000000", "9" * 5000])
def test_a_layer_far_beyond_its_stack_is_unexpected_and_those_before_it_are_not_missing(number):
    found = problems(layers("0", "1", number))
    assert found.unexpected == [f"l.{number}.weight", f"l.{number}.bias"]
    assert found.missing == []


def test_layers_that_are_missing_below_the_last_are_all_named():
    assert problems(layers("0", "3")).missing == ["l.1.weight", "l.2.weight", "l.1.bias", "l.2.bias"]


def test_a_number_written_in_two_ways_is_ambiguous():
    found = problems(layers("0", "1", "01"))
    assert found.ambiguous == [
        "l.1.weight and l.01.weight are both number 1 of a stack",
        "l.1.bias and l.01.bias are both number 1 of a stack",
    ]


def test_metadata_cannot_command_the_terminal(tmp_path):
    path = stored(tmp_path / "w.safetensors", {"w": np.ones(2, np.float32)}, {"\x1b[2J": "\x1b]0;title\x07"})
    lines = list(inspect(path))
    assert all(line.isprintable() for line in lines)
    assert any(r"'\x1b[2J': '\x1b]0;title\x07'" in line for line in lines)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (np.array([2**53, 5]), np.array([2**53 + 1, 5]), "largest difference 1 in 1 of 2"),
        (np.array(-(2**63)), np.array(2**63 - 1), "largest difference 1.84e+19 in 1 of 1"),
        (np.array([0], np.uint8), np.array([255], np.uint8), "largest difference 255 in 1 of 1"),
        (np.array([True, False]), np.array([True, True]), "largest difference 1 in 1 of 2"),
        (np.array([1 + 1j, 2]), np.array([1 + 3j, 2]), "largest difference 2 in 1 of 2"),
        (np.array([0.0, 1.0]), np.array([-0.0, 1.0]), "largest difference 0 in 1 of 2"),
        (np.array([np.inf, 1.0]), np.array([np.inf, np.nan]), "largest difference nan in 1 of 2"),
        (np.array([np.inf]), np.array([-np.inf]), "largest difference inf in 1 of 1"),
        (
            np.array([1, 2, 3], ml_dtypes.float8_e4m3fn),
            np.array([1, 2, 4], ml_dtypes.float8_e4m3fn),
            "largest difference 1 in 1 of 3",
        ),
        (np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float64), "float32 and float64, the same numbers"),
        (np.array([1, 2], np.int32), np.array([1, 2]), "int32 and int64, the same numbers"),
        (np.array([2**53], np.uint64), np.array([2**53 + 1]), "uint64 and int64, largest difference 1 in 1 of 1"),
        (np.array([1.0]), np.array([1 + 2j]), "float64 and complex128, largest difference 2 in 1 of 1"),
        (np.zeros((2, 3)), np.zeros((3, 2)), "[2, 3] and [3, 2]"),
    ],
)
def test_differences_are_those_of_the_numbers_and_counted_by_bytes(tmp_path, one, other, said):
    assert differences(tmp_path, one, other) == [f"w: {said}"]


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.array([np.nan, np.inf]), np.array(1j), np.array(3)])
def test_the_same_bytes_have_no_difference(tmp_path, array):
    assert differences(tmp_path, array, array.copy()) == []
