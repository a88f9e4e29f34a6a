import re
import subprocess
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from interop.engine import WeightsError, flatten, to_flax, to_torch, unflatten
from interop.layers import Dropped, batch_norm, conv, dense, flatten_dense
from jaxkit.errors import ConfigError

TABLE = (
    ("conv1", "stem", conv),
    ("layer{stage}.{block}.conv{n}", "stage{stage}_block{block}/conv{n}", conv),
    ("layer{stage}.{block}.bn{n}", "stage{stage}_block{block}/norm{n}", batch_norm),
    ("fc1", "hidden", flatten_dense),
    ("fc2", "head", dense),
)

# Height, width and channels differ, so that no wrong order of axes has the right shape.
LIKE = {
    "params/stem/kernel": (5, 3, 2, 4),
    "params/stage1_block10/conv2/kernel": (3, 1, 4, 6),
    "params/stage1_block10/norm2/scale": (6,),
    "params/stage1_block10/norm2/bias": (6,),
    "batch_stats/stage1_block10/norm2/mean": (6,),
    "batch_stats/stage1_block10/norm2/var": (6,),
    "params/hidden/kernel": (2, 3, 6, 7),
    "params/hidden/bias": (7,),
    "params/head/kernel": (7, 9),
    "params/head/bias": (9,),
}
SHAPES = {
    "conv1.weight": (4, 2, 5, 3),
    "layer1.10.conv2.weight": (6, 4, 3, 1),
    "layer1.10.bn2.weight": (6,),
    "layer1.10.bn2.bias": (6,),
    "layer1.10.bn2.running_mean": (6,),
    "layer1.10.bn2.running_var": (6,),
    "layer1.10.bn2.num_batches_tracked": (),
    "fc1.weight": (7, 36),
    "fc1.bias": (7,),
    "fc2.weight": (9, 7),
    "fc2.bias": (9,),
}


@pytest.fixture
def like():
    return unflatten({path: SimpleNamespace(shape=shape) for path, shape in LIKE.items()})


@pytest.fixture
def state_dict():
    rng = np.random.default_rng(0)
    state = {key: rng.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}
    return state | {"layer1.10.bn2.num_batches_tracked": np.array(7)}


def test_every_layout_puts_each_number_where_flax_reads_it(state_dict, like):
    flax, torch = flatten(to_flax(state_dict, TABLE, like)), state_dict
    assert {path: leaf.shape for path, leaf in flax.items()} == LIKE
    assert flax["params/stem/kernel"][4, 1, 0, 3] == torch["conv1.weight"][3, 0, 4, 1]
    assert flax["params/head/kernel"][6, 8] == torch["fc2.weight"][8, 6]
    assert flax["params/hidden/kernel"][1, 2, 5, 4] == torch["fc1.weight"][4, (5 * 2 + 1) * 3 + 2]
    np.testing.assert_array_equal(flax["batch_stats/stage1_block10/norm2/var"], torch["layer1.10.bn2.running_var"])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_way_back_returns_every_bit_and_type(state_dict, like, dtype):
    rng = np.random.default_rng(1)
    for key, shape in SHAPES.items():
        # Any bits, so not-a-numbers with a payload and subnormals are among them.
        bits = rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
        state_dict[key] = bits.view(dtype).reshape(shape)
    state_dict["layer1.10.bn2.num_batches_tracked"] = np.array(0)
    back = to_torch(to_flax(state_dict, TABLE, like), TABLE)
    assert set(back) == set(state_dict)
    for key, array in back.items():
        assert array.dtype == state_dict[key].dtype
        assert array.shape == state_dict[key].shape
        assert array.tobytes() == state_dict[key].tobytes()


def test_results_are_contiguous_copies_that_may_be_written(state_dict, like):
    for array in state_dict.values():
        array.flags.writeable = False
    variables = to_flax(state_dict, TABLE, like)
    for array in [*flatten(variables).values(), *to_torch(variables, TABLE).values()]:
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not any(np.shares_memory(array, given) for given in state_dict.values())


def test_the_count_of_batches_may_be_absent_and_comes_back_as_zero(state_dict, like):
    counted = to_flax(state_dict, TABLE, like)
    del state_dict["layer1.10.bn2.num_batches_tracked"]
    uncounted = to_flax(state_dict, TABLE, like)
    for path, leaf in flatten(counted).items():
        np.testing.assert_array_equal(leaf, flatten(uncounted)[path])
    count = to_torch(uncounted, TABLE)["layer1.10.bn2.num_batches_tracked"]
    assert (count, count.dtype, count.shape) == (0, np.int64, ())


def test_one_message_lists_every_missing_unexpected_and_misshapen_key_with_the_nearest_name(state_dict, like):
    state_dict["layer1.10.conv2.wieght"] = state_dict.pop("layer1.10.conv2.weight")
    state_dict["layer1.11.conv2.weight"] = np.zeros((6, 4, 3, 1), np.float32)
    state_dict["fc2.weight"] = np.zeros((10, 7), np.float32)
    state_dict["fc1.weight"] = np.zeros((7, 35), np.float32)
    del state_dict["fc2.bias"]
    with pytest.raises(WeightsError) as caught:
        to_flax(state_dict, TABLE, like)
    error = caught.value
    assert set(error.problems.missing) == {"layer1.10.conv2.weight", "fc2.bias"}
    assert set(error.problems.unexpected) == {"layer1.10.conv2.wieght", "layer1.11.conv2.weight"}
    assert len(error.problems.misshapen) == 2
    for line in (
        r"missing     layer1.10.conv2.weight \(given: layer1.10.conv2.wieght\)",
        r"missing     fc2.bias",
        r"unexpected  layer1.10.conv2.wieght \(missing: layer1.10.conv2.weight\)",
        r"unexpected  layer1.11.conv2.weight \(missing: layer1.10.conv2.weight\)",
        r"misshapen   fc2.weight \[10, 7\] for params/head/kernel \[7, 9\] by 'o i -> i o'",
        r"misshapen   fc1.weight \[7, 35\] for params/hidden/kernel \[2, 3, 6, 7\] by 'o \(c h w\) -> h w c o'",
    ):
        assert re.search(rf"^  {line}", str(error), re.MULTILINE), line


def test_a_leaf_of_the_model_that_no_row_leads_to_is_missing_by_its_own_path(state_dict, like):
    like["params"]["adapter"] = {"kernel": SimpleNamespace(shape=(2, 2))}
    with pytest.raises(WeightsError) as caught:
        to_flax(state_dict, TABLE, like)
    assert caught.value.problems.missing == ["params/adapter/kernel"]


def test_a_key_that_two_rows_claim_is_ambiguous(state_dict, like):
    table = (*TABLE, ("fc{n}", "dense{n}", dense))
    with pytest.raises(WeightsError) as caught:
        to_flax(state_dict, table, like)
    assert caught.value.problems.ambiguous[0] == (
        "fc1.weight has several rows: it becomes params/hidden/kernel and params/dense1/kernel"
    )


def test_two_keys_that_become_one_leaf_are_ambiguous(state_dict, like):
    state_dict["classifier.bias"] = np.zeros(9, np.float32)
    with pytest.raises(WeightsError) as caught:
        to_flax(state_dict, (*TABLE, ("classifier", "head", dense)), like)
    assert caught.value.problems.ambiguous == ["classifier.bias and fc2.bias both become params/head/bias"]


def test_a_leaf_that_torch_has_no_place_for_is_refused_on_the_way_back(state_dict, like):
    variables = to_flax(state_dict, TABLE, like)
    variables["params"]["adapter"] = {"kernel": np.zeros((2, 2), np.float32)}
    variables["params"]["head"]["kernel"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError) as caught:
        to_torch(variables, TABLE)
    assert caught.value.problems.unexpected == ["params/adapter/kernel"]
    assert caught.value.problems.misshapen == ["params/head/kernel [3] for fc2.weight by 'i o -> o i'"]


def test_engine_and_tables_import_neither_torch_nor_jax():
    program = "import sys, interop.engine, interop.tables; print(sorted({'torch', 'jax', 'flax'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_what_torch_alone_has_is_put_back_with_no_other_leaf_in_its_module():
    table = (
        ("embed.position", "", {"ids": Dropped("counts up", np.arange(3))}),
        ("block{i}", "", {"mask": Dropped("made when it is called", np.ones(2, bool))}),
        ("block{i}.dense", "block{i}", dense),
        ("norm", "norm", batch_norm),
    )
    leaves = {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}
    state = to_torch({"params": {"block0": leaves, "block1": leaves}}, table)
    assert [key for key in state if not key.startswith("block")] == ["embed.position.ids"]
    assert {"block0.mask", "block1.mask"} < set(state)
    np.testing.assert_array_equal(state["embed.position.ids"], np.arange(3))


def test_a_row_with_a_number_in_one_column_alone_is_refused():
    with pytest.raises(ConfigError, match=r"row 'blocks.{i}', 'block': write {i} into both columns"):
        to_torch({"params": {}}, (("blocks.{i}", "block", dense),))
