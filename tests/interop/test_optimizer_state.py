"""The state of an optimizer there and back; what has no counterpart is refused, by name."""

import copy
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import torch
from conftest import ROOT
from stopped import RATE, RULES, STEPS, Torch, section
from twins import shapes

from interop import layers
from interop.optimizer_state import OptimizerStateError, TorchState, parameter_names, to_flax, to_torch
from interop.tables import table
from jaxkit import models
from jaxkit.optimizer import make_optimizer
from jaxkit.schema.optimizer import OPTIMIZERS, Ema

NAME = "cnn_tiny"
TABLE = table(NAME)
PARAMS = shapes(models.build(NAME, num_classes=10), (16, 16, 3))["params"]


def empty(config, precision="no", params=PARAMS):
    return jax.eval_shape(make_optimizer(config, STEPS, 1.0, precision).init, params)


def stepped(rule, steps=3, **settings):
    """A torch network and its optimizer after some updates with gradients out of the air."""
    torch.manual_seed(0)
    run = Torch(NAME, rule, **settings)
    for _ in range(steps):
        for parameter in run.net.parameters():
            parameter.grad = torch.randn_like(parameter)
        run.optimizer.step()
    return run.net, run.optimizer


def converted(net, optimizer, config, step=3, **parts):
    state = TorchState(copy.deepcopy(optimizer.state_dict()), step, **parts)
    return to_flax(state, parameter_names(optimizer, net), TABLE, empty(config, "fp16" if "scaler" in parts else "no"))


def moment(state, name):
    return optax.tree.get(state, name)


def refused(*sentences):
    return pytest.raises(OptimizerStateError, match="(?s)" + ".*\n.*".join(map(re.escape, sentences)))


@pytest.mark.parametrize("rule", RULES)
def test_there_and_back_every_byte_is_the_same_and_torch_loads_it(rule):
    net, optimizer = stepped(rule)
    names, saved = parameter_names(optimizer, net), optimizer.state_dict()
    back = to_torch(converted(net, optimizer, section(rule)), names, TABLE, saved)
    assert back.step == 3
    assert back.optimizer["param_groups"] == saved["param_groups"]
    assert back.optimizer["state"].keys() == saved["state"].keys()
    for number, kept in saved["state"].items():
        assert list(back.optimizer["state"][number]) == list(kept)
        for slot, tensor in kept.items():
            other = back.optimizer["state"][number][slot]
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
            assert other.numpy().tobytes() == tensor.numpy().tobytes()

    twin_net, twin = stepped(rule, steps=0)
    twin_net.load_state_dict(net.state_dict())
    twin.load_state_dict(back.optimizer)
    for parameter, other in zip(net.parameters(), twin_net.parameters(), strict=True):
        parameter.grad = torch.randn_like(parameter)
        other.grad = parameter.grad.clone()
    optimizer.step()
    twin.step()
    for parameter, other in zip(net.parameters(), twin_net.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_moments_are_laid_out_like_their_parameters():
    net, optimizer = stepped("adam")
    state = converted(net, optimizer, section("adam"))
    kept = {name: optimizer.state[parameter] for name, parameter in net.named_parameters()}
    for field, slot in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        kernel = kept["conv2.weight"][slot].numpy()
        np.testing.assert_array_equal(
            moment(state, field)["conv2"]["kernel"], np.moveaxis(kernel, (2, 3, 1), (0, 1, 2))
        )
        np.testing.assert_array_equal(moment(state, field)["head"]["kernel"], kept["fc2.weight"][slot].numpy().T)


def test_the_step_is_in_every_count_of_the_chain():
    net, optimizer = stepped("adamw")
    config = section("adamw", ema=Ema(), clip_norm=1.0, no_decay=["bias$"])
    average = {f"module.{name}": p for name, p in net.named_parameters()} | {"n_averaged": torch.tensor(2)}
    state = converted(net, optimizer, config, step=None, average=average)
    counts = {path[-1].tuple_name: int(count) for path, count in optax.tree.get_all_with_path(state, "count")}
    assert counts == {"ScaleByAdamState": 3, "ScaleByScheduleState": 3, "AverageState": 2}
    assert int(state[-1].count) == 2
    assert {leaf.dtype for leaf in jax.tree.leaves(state[-1].average)} == {np.dtype(np.float32)}
    # a plain average is as old as the run
    state = converted(net, optimizer, config, average=dict(net.named_parameters()))
    assert int(state[-1].count) == 3


def test_the_loss_scale_goes_both_ways_and_skipped_updates_are_the_schedules_alone():
    net, optimizer = stepped("adam")
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0).state_dict() | {"_growth_tracker": 7}
    state = converted(net, optimizer, section("adam"), step=5, scaler=scaler)
    assert (float(state[0].scale), int(state[0].finite_steps)) == (512.0, 7)
    back = to_torch(state, parameter_names(optimizer, net), TABLE, optimizer.state_dict())
    assert back.scaler == scaler
    assert (back.step, int(back.optimizer["state"][0]["step"])) == (5, 3)
    torch.amp.GradScaler("cpu").load_state_dict(back.scaler)
    with refused("growth_interval of the scaler is 100, of jaxkit's 2000"):
        converted(net, optimizer, section("adam"), scaler={**scaler, "growth_interval": 100})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_moments_keep_their_type_whatever_that_of_the_weights(dtype):
    net, optimizer = stepped("adam")
    saved = copy.deepcopy(optimizer.state_dict())
    for kept in saved["state"].values():
        kept |= {slot: kept[slot].to(dtype) for slot in ("exp_avg", "exp_avg_sq")}
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), PARAMS)
    names = parameter_names(optimizer, net)
    state = to_flax(TorchState(saved), names, TABLE, empty(section("adam"), params=params))
    name = {torch.bfloat16: ml_dtypes.bfloat16}.get(dtype, str(dtype).removeprefix("torch."))
    assert {leaf.dtype for leaf in jax.tree.leaves(moment(state, "mu"))} == {np.dtype(name)}
    back = to_torch(state, names, TABLE, saved).optimizer["state"]
    for number, kept in saved["state"].items():
        for slot, tensor in kept.items():
            assert back[number][slot].dtype == tensor.dtype
            assert torch.equal(back[number][slot], tensor)


@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_moments_are_zeros_where_no_parameter_was_stepped(rule):
    net, optimizer = stepped(rule, steps=0)
    state = converted(net, optimizer, section(rule), step=0)
    assert jax.tree.structure(state) == jax.tree.structure(empty(section(rule)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state))
    with refused("step = 3, but no parameter was ever stepped"):
        converted(net, optimizer, section(rule), step=3)


def test_parameters_stepped_unequally_often_are_refused():
    net, optimizer = stepped("adam")
    del optimizer.state[net.conv2.bias]
    with refused(*(f"conv2.bias: {slot} is in its optimizer and not in its state" for slot in ("step", "exp_avg"))):
        converted(net, optimizer, section("adam"))
    net, optimizer = stepped("adam")
    optimizer.state[net.conv2.bias]["step"] += 2
    with refused("some parameters were stepped 3 times and some 5, optax has one count"):
        converted(net, optimizer, section("adam"), step=5)


def test_the_number_of_updates_is_asked_for_where_torch_counts_none_and_is_no_epoch():
    with refused("updates is in the optax state and not in torch's (give step"):
        converted(*stepped("momentum"), section("momentum"), step=None)
    with refused("step = 1 is less than the 3 updates Adam counts: is it an epoch?"):
        converted(*stepped("adam"), section("adam"), step=1)


def test_whatever_only_one_side_keeps_is_named_in_one_message():
    config = section("adam", ema=Ema())
    with refused(
        "exp_avg is in the optax state and not in torch's",
        "average is in the optax state and not in torch's (give average, or leave ema out",
        "momentum_buffer is in torch's state and not in the optax state",
    ):
        converted(*stepped("momentum"), config)
    net, optimizer = stepped("sgd")
    average = dict(net.named_parameters())
    with refused("average is in torch's state and not in the optax state"):
        converted(net, optimizer, section("sgd"), average=average)
    with refused("scale is in torch's state"):
        state = TorchState(optimizer.state_dict(), 3, scaler=torch.amp.GradScaler("cpu").state_dict())
        to_flax(state, parameter_names(optimizer, net), TABLE, empty(section("sgd")))
    del average["fc2.bias"]
    with refused("fc2.bias has no average"):
        converted(net, optimizer, section("sgd", ema=Ema()), average=average)


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_optax_state_goes_to_no_optimizer_that_keeps_other_things(rule):
    net, optimizer = stepped(rule)
    state = converted(net, optimizer, section(rule))
    for other in {"sgd", "momentum", "adam"} - {rule}:
        net, optimizer = stepped(other, steps=0)
        with refused("not in"):
            to_torch(state, parameter_names(optimizer, net), TABLE, optimizer.state_dict())


def test_optimizers_of_another_kind_are_refused_by_name():
    net, optimizer = stepped("adam")
    names = parameter_names(optimizer, net)
    zeros = lambda state: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)  # noqa: E731
    lion = zeros(empty(OPTIMIZERS["lion"](name="lion", learning_rate=RATE)))
    twice = zeros(jax.eval_shape(optax.chain(optax.scale_by_adam(), optax.scale_by_adam()).init, PARAMS))
    pieces = zeros(jax.eval_shape(optax.MultiSteps(optax.adam(RATE), 2).init, PARAMS))
    for state, place in ((lion, "ScaleByLionState.mu"), (pieces, "MultiStepsState.acc_grads")):
        with refused(f"{place} is in the optax state and torch.optim keeps nothing like it"):
            to_torch(state, names, TABLE, optimizer.state_dict())
        with refused(f"{place} is in the optax state and torch.optim keeps nothing like it"):
            to_flax(TorchState(optimizer.state_dict()), names, TABLE, state)
    with refused("two parts of the optax state keep exp_avg, torch has one place for it"):
        to_torch(twice, names, TABLE, optimizer.state_dict())

    for make, message in (
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad keeps max_exp_avg_sq"),
        (torch.optim.RAdam, "these are not the settings of torch's SGD, Adam or AdamW: lr, betas"),
        (torch.optim.RMSprop, "these are not the settings of torch's SGD, Adam or AdamW: lr, momentum, alpha"),
    ):
        other = make(net.parameters())
        other.step()
        with refused(message):
            converted(net, other, section("adam"))


def test_names_are_those_of_the_groups_in_their_order():
    net, optimizer = stepped("adam")
    state, empties = TorchState(optimizer.state_dict()), empty(section("adam"))
    (names,) = parameter_names(optimizer, net)
    for wrong, message in (
        (None, "torch's state has no names: give parameter_names"),
        (names, "names: give a list for each group of parameters, of [18] names"),
        ([names[:-1]], "names: give a list for each group of parameters, of [18] names"),
        ([[*names[:-1], names[0]]], "names: a name is there twice"),
        ([[*names[:-1], "head.bias"]], "unexpected  head.bias"),
        ([names[::-1]], "Are the names in the order in which the optimizer was given the parameters?"),
    ):
        with refused(message):
            to_flax(state, wrong, TABLE, empties)

    held = torch.optim.Adam(net.named_parameters())
    held.load_state_dict(optimizer.state_dict())
    state = TorchState(held.state_dict())
    found, expected = to_flax(state, None, TABLE, empties), to_flax(state, [names], TABLE, empties)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with refused("['fc2.bias', 'fc2.weight'"):
        to_flax(state, [names[::-1]], TABLE, empties)
    with refused("fc2.bias is in the exp_avg of optax and not in names", "fc3.bias is in names"):
        to_torch(found, [[*names[:-1], "fc3.bias"]], TABLE, optimizer.state_dict())


def test_parameters_that_only_one_framework_trains_are_refused():
    like = {"cell0": {f"{way}{gate}": {"kernel": np.zeros((2, 2))} for way in "ih" for gate in "ifgo"}}
    like["cell0"] |= {f"h{gate}": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)} for gate in "ifgo"}
    trace = optax.trace(0.9).init(like)
    net = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(2, 2)})
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9, lr=1.0)
    sums = (("rnn", "cell{layer}", layers.lstm),)
    with refused("rnn.bias_ih_l0 and rnn.bias_hh_l0 are trained apart in torch, and as their sum in Flax"):
        to_torch(trace, parameter_names(optimizer, net), sums, optimizer.state_dict())
    filled = (("fc", "fc", {**layers.dense, "": layers.Filled("params/{}/scale", "torch has none", 1.0)}),)
    trace = optax.trace(0.9).init({"fc": {"kernel": np.zeros((2, 2)), "scale": np.zeros(2)}})
    net = torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 2, bias=False)})
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9, lr=1.0)
    with refused("params/fc/scale is trained in Flax, torch has no such parameter"):
        to_flax(TorchState(optimizer.state_dict(), 0), parameter_names(optimizer, net), filled, trace)


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "optimizer_state.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(block, "docs/optimizer_state.md", "exec"), names)
    assert (names["step"], int(names["state"].step)) == (3, 3)
    assert capsys.readouterr().out == "param_groups[0]: lr is 0.01 in torch, 0.005 in jaxkit\n"
