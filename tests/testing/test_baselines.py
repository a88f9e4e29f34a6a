"""Numeric baselines: mutations that they must catch, what they are compared by, and the files they lie in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import torch
from conftest import ROOT
from flax import linen as nn

from interop.parity.records import torch_records
from jaxkit.errors import UserError
from jaxkit.testing import baselines, capture, store
from jaxkit.testing.capture import Records, linen_records


class Block(nn.Module):
    """Two square layers and a norm between them."""

    epsilon: float = 1e-5
    bias: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(16, name="inner")(x)
        x = nn.LayerNorm(epsilon=self.epsilon, name="norm")(x)
        x = nn.Dropout(0.1, deterministic=not train, name="dropout")(x)
        return nn.Dense(16, use_bias=self.bias, dtype=self.dtype, name="outer")(nn.relu(x))


# small inputs: the smaller a variance, the more an epsilon counts
INPUTS = np.random.default_rng(0).normal(0, 0.3, size=(4, 16)).astype(np.float32)
LINEN = {
    "a transposed square kernel": ({}, None, "forward/inner/output"),
    "another epsilon": ({"epsilon": 1e-6}, None, "forward/norm/output"),
    "no bias": ({"bias": False}, None, "gradient/outer/bias"),
    "bfloat16 in place of float32": ({"dtype": jnp.bfloat16}, None, "forward/outer/output"),
    "another beta1": ({}, optax.adamw(1e-3, b1=0.8, eps=1e-4, weight_decay=1e-2), "optimizer/0/mu/inner/kernel"),
    "another beta2": ({}, optax.adamw(1e-3, b2=0.99, eps=1e-4, weight_decay=1e-2), "optimizer/0/nu/inner/kernel"),
    "another rate": ({}, optax.adamw(1.1e-3, eps=1e-4, weight_decay=1e-2), "after/inner/kernel"),
}


def network(epsilon=1e-5, bias=True):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(16, 16), torch.nn.LayerNorm(16, eps=epsilon), torch.nn.ReLU(), torch.nn.Linear(16, 16)]
    if not bias:
        layers[3].bias = None
    return torch.nn.Sequential(*layers)


def adamw(**changes):
    return lambda parameters: torch.optim.AdamW(parameters, **{"lr": 1e-3, "eps": 1e-4, **changes})


def transposed(net):
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight.T.clone())
    return net


TORCH = {
    "a transposed square kernel": (lambda: transposed(network()), {}, "forward/0/output"),
    "another epsilon": (lambda: network(epsilon=1e-6), {}, "forward/1/output"),
    "no bias": (lambda: network(bias=False), {}, "gradient/3/bias"),
    "bfloat16 in place of float32": (lambda: network().bfloat16(), {}, "forward/0/output"),
    "another beta1": (network, {"betas": (0.8, 0.999)}, "optimizer/exp_avg/0/weight"),
    "another beta2": (network, {"betas": (0.9, 0.99)}, "optimizer/exp_avg_sq/0/weight"),
}


@pytest.fixture(scope="module")
def variables():
    return Block().init(jax.random.key(0), jnp.asarray(INPUTS))


@pytest.fixture(scope="module")
def recorded(variables, tmp_path_factory):
    path = tmp_path_factory.mktemp("linen") / "block.json"
    baselines.record(linen_records(Block(), INPUTS, variables=variables), path, "right")
    return path


@pytest.fixture(scope="module")
def torch_recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "net.json"
    baselines.record(torch_records(network(), INPUTS, optimizer=adamw()), path, "right")
    return path


class Odd(nn.Module):
    """An unnamed module for a field, complex numbers, and two streams of random numbers."""

    layers: nn.Module
    conjugate: bool = False

    @nn.compact
    def __call__(self, x, deterministic: bool):
        x = self.layers(x) + jax.random.normal(self.make_rng("noise"), x.shape)
        x = nn.Dropout(0.5, deterministic=deterministic)(x)
        spectrum = jnp.fft.fft(x)
        return jnp.conj(spectrum) if self.conjugate else spectrum


def odd_records(**fields):
    model = Odd(nn.Sequential([nn.Dense(16), nn.relu]), **fields)
    return linen_records(model, INPUTS, rngs=("dropout", "noise"), deterministic=False)


def test_any_stream_any_keyword_an_unnamed_module_and_complex_numbers_are_recorded(tmp_path):
    path = tmp_path / "odd.json"
    baselines.record(odd_records(), path, "right")
    baselines.check(odd_records(), path)
    assert {"rng/dropout", "rng/noise"} <= store.load(path).kept.keys()
    found = {difference.name for difference in baselines.differences(store.load(path), odd_records(conjugate=True))}
    assert "forward/./output" in found


class Frozen(torch.nn.Module):
    """Returns two outputs, the second scaled by a plain attribute; its first layer is not trained."""

    def __init__(self, scale=2.0, trained=False):
        super().__init__()
        torch.manual_seed(0)
        self.scale = scale
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 4)
        self.first.requires_grad_(trained)

    def forward(self, x):
        x = self.first(x)
        return {"logits": self.second(x), "auxiliary": x * self.scale}


@pytest.mark.parametrize(
    ("changes", "settings", "name"),
    [
        ({"scale": -3.0}, {}, "forward/./output/auxiliary"),
        ({"scale": -3.0}, {}, "..scale"),
        ({"trained": True}, {}, "first.weight"),
        ({"trained": True}, {}, "after/first.weight"),
        # at such a rate and such gradients nothing else shows
        ({}, {"eps": 1e-6}, "optimizer.0.eps"),
        ({}, {"amsgrad": True}, "optimizer.0.amsgrad"),
    ],
)
def test_outputs_attributes_frozen_weights_and_settings_of_torch_are_recorded(tmp_path, changes, settings, name):
    usual = {"lr": 1e-5, "eps": 1e-8}
    path = tmp_path / "frozen.json"
    baselines.record(torch_records(Frozen(), INPUTS, optimizer=adamw(**usual)), path, "right")
    baselines.check(torch_records(Frozen(), INPUTS, optimizer=adamw(**usual)), path)
    now = torch_records(Frozen(**changes), INPUTS, optimizer=adamw(**usual | settings))
    assert name in {difference.name for difference in baselines.differences(store.load(path), now)}


def test_frozen_weights_of_torch_stay():
    arrays = torch_records(Frozen(), INPUTS).arrays
    np.testing.assert_array_equal(arrays["after/first.weight"], arrays["before/first.weight"])
    assert not arrays["gradient/first/weight"].any()
    assert np.abs(arrays["after/second.weight"] - arrays["before/second.weight"]).max() > 1e-4


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_moments_of_adam_that_vanish_are_seen_however_small_they_are(tmp_path, size):
    records = torch_records(network(), size * INPUTS, optimizer=adamw())
    baselines.record(records, tmp_path / "a.json", "right")
    names = [name for name in records.arrays if name.startswith("optimizer/exp_avg_sq/")]
    assert max(records.arrays[name].max() for name in names) < 1e-4
    gone = {name: np.zeros_like(array) if name in names else array for name, array in records.arrays.items()}
    found = baselines.differences(store.load(tmp_path / "a.json"), records._replace(arrays=gone))
    assert {difference.name for difference in found} == set(names)


def test_a_setting_of_optax_that_shows_in_no_number_is_seen(recorded, variables):
    optimizer = optax.adamw(1e-3, eps=1e-4, weight_decay=1e-2, nesterov=True)
    records = linen_records(Block(), INPUTS, variables=variables, optimizer=optimizer)
    found = baselines.differences(store.load(recorded), records)
    assert "nesterov=True" in next(one.what for one in found if one.name == "optimizer.transformation")


@pytest.mark.parametrize("number", [np.float32, jnp.float32])
def test_a_number_of_optax_is_told_whatever_its_type(number):
    half, third = (capture.said(optax.scale(number(value))) for value in (0.5, 0.25))
    assert "step_size=0.5" in half
    assert "step_size=0.25" in third


def test_tolerances_of_the_test_go_before_those_of_the_recording(tmp_path):
    baselines.record(records(), tmp_path / "a.json", "right", {"forward": 0.1})
    off = records(ARRAY * np.float32(1.05))
    baselines.check(off, tmp_path / "a.json")
    with pytest.raises(baselines.BaselineDiffers):
        baselines.check(off, tmp_path / "a.json", {"forward": 1e-6})
    with pytest.raises(UserError, match="give tolerances of hidden"):
        baselines.record(records(name="hidden/layer"), tmp_path / "b.json", "right")
    baselines.record(records(name="hidden/layer"), tmp_path / "b.json", "right", {"hidden": 1e-6})
    baselines.check(records(name="hidden/layer"), tmp_path / "b.json")


def test_what_did_not_change_passes(recorded, torch_recorded, variables):
    baselines.check(linen_records(Block(), INPUTS, variables=variables), recorded)
    baselines.check(torch_records(network(), INPUTS, optimizer=adamw()), torch_recorded)


@pytest.mark.parametrize("mutation", LINEN)
def test_a_mutation_of_a_linen_model_is_caught(recorded, variables, mutation):
    fields, optimizer, name = LINEN[mutation]
    if mutation == "a transposed square kernel":
        variables = jax.tree.map(lambda leaf: leaf, variables)
        variables["params"]["inner"]["kernel"] = variables["params"]["inner"]["kernel"].T
    if not fields.get("bias", True):
        kernel = {"kernel": variables["params"]["outer"]["kernel"]}
        variables = {"params": {**variables["params"], "outer": kernel}}
    records = linen_records(Block(**fields), INPUTS, variables=variables, optimizer=optimizer)
    found = {difference.name for difference in baselines.differences(store.load(recorded), records)}
    assert name in found
    with pytest.raises(baselines.BaselineDiffers, match="in order of execution"):
        baselines.check(records, recorded)


@pytest.mark.parametrize("mutation", TORCH)
def test_a_mutation_of_a_torch_module_is_caught(torch_recorded, mutation):
    build, changes, name = TORCH[mutation]
    records = torch_records(build(), INPUTS, optimizer=adamw(**changes))
    found = {difference.name for difference in baselines.differences(store.load(torch_recorded), records)}
    assert name in found


def test_another_epsilon_is_told_by_its_name_first(recorded, variables):
    records = linen_records(Block(epsilon=1e-6), INPUTS, variables=variables)
    with pytest.raises(baselines.BaselineDiffers) as error:
        baselines.check(records, recorded)
    assert str(error.value).splitlines()[1].strip() == "..epsilon: was 1e-05, is 1e-06"


def test_a_step_is_recorded_whole(recorded):
    kept = store.load(recorded).kept
    roles = {name.partition("/")[0] for name in kept}
    assert roles == {"before", "forward", "loss", "gradient", "after", "optimizer", "rng"}
    for layer in ("inner", "norm", "outer"):
        assert {f"forward/{layer}/input/args/0", f"forward/{layer}/output"} <= kept.keys()
    assert {"optimizer/0/mu/norm/scale", "optimizer/0/nu/norm/scale", "optimizer/0/count", "rng/dropout"} <= kept.keys()


def test_recording_leaves_a_torch_module_and_its_random_numbers_alone():
    net = network()
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.random.get_rng_state()
    torch_records(net, INPUTS)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters())


ARRAY = np.random.default_rng(1).normal(size=(40, 50)).astype(np.float32)


def records(array=ARRAY, name="forward/layer/output", **environment):
    return Records({name: np.asarray(array)}, {"layer": {"features": "3"}}, {"numpy": "2", **environment})


def with_value(index, value, array=ARRAY):
    changed = array.copy()
    changed[index] = value
    return changed


def swapped(first, second):
    return with_value(first, ARRAY[second], with_value(second, ARRAY[first]))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (ARRAY.astype(np.float64), "dtype float32 then, float64 now"),
        (ARRAY.astype(ml_dtypes.bfloat16), "dtype float32 then, bfloat16 now"),
        (ARRAY.T, r"shape \(40, 50\) then, \(50, 40\) now"),
        (with_value((3, 4), np.nan), "NaN 0 then, 1 now"),
        (with_value((3, 4), -np.inf), "infinite 0 then, 1 now"),
        (ARRAY * np.float32(1.0001), "max |d|"),
        (with_value((7, 7), 3.0), "the values that are kept agree, mean does not"),
        (np.roll(ARRAY, 1, axis=0), "ULP, relative L2"),
        (ARRAY[::-1], "cosine"),
        (swapped((7, 7), (7, 8)), "the values that are kept agree, projection does not"),
    ],
)
def test_arrays_are_compared_by_kind_then_counts_then_values_then_sums(tmp_path, array, said):
    baselines.record(records(), tmp_path / "a.json", "right")
    with pytest.raises(baselines.BaselineDiffers, match=said.replace("|d|", r"\|d\|")):
        baselines.check(records(array), tmp_path / "a.json")


def test_one_value_of_two_thousand_that_changes_is_seen_and_so_are_two_that_are_swapped(tmp_path):
    baselines.record(records(), tmp_path / "a.json", "right")
    known = store.load(tmp_path / "a.json")
    rng = np.random.default_rng(2)
    for _ in range(100):
        first, second = (tuple(rng.integers(0, ARRAY.shape)) for _ in range(2))
        assert baselines.differences(known, records(with_value(first, ARRAY[first] + 0.1)))
        assert bool(baselines.differences(known, records(swapped(first, second)))) == (first != second)


def test_the_first_difference_has_its_place_and_both_values(tmp_path):
    small = np.arange(12, dtype=np.float32).reshape(3, 4)
    baselines.record(records(small), tmp_path / "a.json", "right")
    with pytest.raises(baselines.BaselineDiffers, match=r"first at \[1, 2\]: 6 then, 6.5 now"):
        baselines.check(records(with_value((1, 2), 6.5, small)), tmp_path / "a.json")


def test_names_that_are_gone_or_new_and_fields_that_changed_fail(tmp_path):
    baselines.record(records(), tmp_path / "a.json", "right")
    known = store.load(tmp_path / "a.json")
    now = Records({"forward/other": ARRAY}, {"layer": {"features": "4"}}, {"numpy": "2"})
    assert [tuple(difference) for difference in baselines.differences(known, now)] == [
        ("layer.features", "was 3, is 4"),
        ("forward/layer/output", "is gone"),
        ("forward/other", "is new"),
    ]


def test_infinities_and_not_a_numbers_in_their_places_are_equal(tmp_path):
    odd = np.asarray([np.nan, np.inf, -np.inf, 1.0], np.float32)
    baselines.record(records(odd), tmp_path / "a.json", "right")
    baselines.check(records(odd), tmp_path / "a.json")
    with pytest.raises(baselines.BaselineDiffers):
        baselines.check(records(odd[::-1]), tmp_path / "a.json")


def test_a_gradient_of_roundings_is_measured_by_its_layer(tmp_path):
    def pair(noise):
        layer = {"gradient/a/kernel": np.ones(4, np.float32), "gradient/a/bias": np.asarray([noise], np.float32)}
        return Records(layer, {}, {})

    baselines.record(pair(1e-9), tmp_path / "a.json", "right")
    baselines.check(pair(-2e-9), tmp_path / "a.json")
    with pytest.raises(baselines.BaselineDiffers, match="gradient/a/bias"):
        baselines.check(pair(1e-3), tmp_path / "a.json")


@pytest.mark.parametrize("array", [ARRAY, with_value((3, 4), 9.0)], ids=["same numbers", "other numbers"])
def test_another_environment_makes_a_baseline_stale_whatever_the_numbers(tmp_path, array):
    baselines.record(records(jax="0.9"), tmp_path / "a.json", "right")
    with pytest.raises(baselines.BaselineStale, match=r"jax 0.9 then, 0.10 now"):
        baselines.check(records(array, jax="0.10"), tmp_path / "a.json")


def test_no_baseline_is_no_pass_and_none_is_recorded_without_a_reason(tmp_path):
    with pytest.raises(baselines.BaselineMissing, match="--baseline record"):
        baselines.check(records(), tmp_path / "none.json")
    with pytest.raises(UserError, match="with a reason"):
        baselines.record(records(), tmp_path / "none.json", " ")
    assert not list(tmp_path.iterdir())


def test_files_that_were_changed_cut_or_lost_are_damaged(tmp_path):
    path = tmp_path / "a.json"
    baselines.record(records(), path, "right")
    (values,) = tmp_path.glob("*.npz")
    whole = values.read_bytes()
    for wrong in (whole[:-1], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]):
        values.write_bytes(wrong)
        with pytest.raises(store.BaselineDamaged, match="is not the file that was recorded"):
            store.load(path)
    values.write_bytes(whole)
    page = path.read_text()
    path.write_text(page.replace('"forward": 5e-06', '"forward": 1000000000.0'))
    with pytest.raises(store.BaselineDamaged, match="changed by hand"):
        store.load(path)
    path.write_text(page)
    values.unlink()
    with pytest.raises(store.BaselineDamaged):
        store.load(path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(store.BaselineDamaged):
        store.load(path)


def test_a_recording_that_is_cut_off_leaves_the_old_baseline_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    baselines.record(records(), path, "old")
    monkeypatch.setattr(store, "write_atomically", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        baselines.record(records(-ARRAY), path, "new")
    baselines.check(records(), path)
    monkeypatch.undo()
    baselines.record(records(-ARRAY), path, "new")
    baselines.check(records(-ARRAY), path)
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_short_types_keep_their_bits(tmp_path):
    short = ARRAY.astype(ml_dtypes.bfloat16)
    baselines.record(records(short), tmp_path / "a.json", "right")
    kept = store.load(tmp_path / "a.json").kept["forward/layer/output"]
    assert kept.values.dtype == short.dtype
    assert np.array_equal(kept.values, short.ravel()[store.positions("forward/layer/output", short.size)])


def test_the_committed_baselines_are_small():
    files = list((Path(__file__).parent / "baselines").iterdir())
    assert sum(path.stat().st_size for path in files) <= 300_000
    assert {path.suffix for path in files} == {".json", ".npz"}


SUITE = """
import os
import numpy as np
import pytest
from jaxkit.testing.capture import Records
from jaxkit.testing.fixtures import numeric_baseline

def records(value=1.0, **environment):
    return Records({"loss": np.full(3, value)}, {}, {"numpy": "2", **environment})

CHECKS = os.environ["NUMERIC_BASELINE"] == "check"

def test_same(numeric_baseline):
    numeric_baseline(records())

def test_changed(numeric_baseline):
    numeric_baseline(records(2.0 if CHECKS else 1.0))

def test_stale(numeric_baseline):
    numeric_baseline(records(jax="2" if CHECKS else "1"))

@pytest.mark.skipif(not CHECKS, reason="is not recorded")
def test_missing(numeric_baseline):
    numeric_baseline(records())

@pytest.mark.parametrize("name", ["a/b", "c"])
def test_parameters(numeric_baseline, name):
    numeric_baseline(records())

class TestClass:
    def test_same(self, numeric_baseline):
        numeric_baseline(records(5.0))
        numeric_baseline(records(6.0))

@pytest.mark.parametrize("name", ["a b", "a-b"])
def test_one_file(numeric_baseline, name):
    numeric_baseline(records())
"""


def test_the_runner_records_with_a_reason_and_then_tells_passed_failed_and_stale_apart(tmp_path):
    (tmp_path / "test_numbers.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, str(ROOT / "scripts" / "run_tests.py"), f"--test_dir={tmp_path}", "--retries=1"]

    def run(*flags):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        out = tmp_path / "out.json"
        finished = subprocess.run(
            [*command, f"--json={out}", *flags], env=environment, capture_output=True, text=True, check=False
        )
        found = {
            one["name"].partition("::")[2].replace("test_", "", 1): one
            for one in json.loads(out.read_text())["results"]
        }
        return finished, found

    finished, found = run("--baseline=record", "--reason=the first numbers")
    assert finished.returncode == 1
    assert found["same"]["info"] == "baseline recorded"
    assert found["one_file[a-b]"]["result"] == "failed"
    assert "give one another name or id" in found["one_file[a-b]"]["info"]
    page = json.loads((tmp_path / "baselines" / "test_numbers.test_same.json").read_text())
    assert page["about"]["reason"] == "the first numbers"

    finished, found = run()
    assert finished.returncode == 1
    assert {name: one["result"] for name, one in found.items()} == {
        "same": "passed",
        "changed": "failed",
        "stale": "stale",
        "missing": "failed",
        "parameters[a/b]": "passed",
        "parameters[c]": "passed",
        "one_file[a b]": "passed",
        "one_file[a-b]": "failed",
        "TestClass::same": "passed",
    }
    assert "the first numbers" in found["changed"]["output"]
    assert "there is no baseline" in found["missing"]["output"]
    assert "jax 1 then, 2 now" in found["stale"]["info"]

    # numbers of another environment are told, and fail nothing
    finished, found = run("--", "-k", "test_numbers.py and not TestClass and (same or stale)")
    assert finished.returncode == 0
    assert {name: one["result"] for name, one in found.items()} == {"same": "passed", "stale": "stale"}
    assert "=== STALE" in finished.stdout
