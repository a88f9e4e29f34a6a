"""A run stopped in torch goes on in jaxkit, and one stopped in jaxkit in torch, as if it had never been stopped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import small_config
from runs import learned
from stopped import DECAY, RATE, RULES, STEPS, STOP, Jaxkit, Torch, jaxkit, section
from twins import CLASSES, relative

from interop import reference
from interop.engine import to_flax, unflatten
from interop.optimizer_state import OptimizerStateError, TorchState, parameter_names
from interop.resume import Checkpoint, checkpoint, resume_in_jaxkit, resume_in_torch
from interop.tables import table
from jaxkit import experiment
from jaxkit.config import parse
from jaxkit.schema.optimizer import Ema

pytestmark = pytest.mark.level(1)

# None has a bias before a norm: its gradient is nothing but rounding, which every program rounds apart.
CASES = [(rule, "lenet_tiny") for rule in RULES] + [(rule, "cifar_resnet_tiny") for rule in ("momentum", "adamw")]
# Four updates of some 1e-3 of the largest value, computed to some 1e-5: a few roundings (6e-8) are measured, 3e-7 the
# worst. Whatever is forgotten shows in the fourth digit.
TOLERANCE = 1e-6
# Moments hold gradients: sums of larger terms, and of their roundings. 2.4e-6 is measured.
MOMENTS = 1e-5


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


def error(ours, theirs):
    """The largest error of any array, relative to its largest value."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max((relative(np.float64(a), np.float64(b)) for a, b in pairs if np.any(b)), default=0.0)


def assert_same(ours, theirs):
    assert int(ours.step) == int(theirs.step)
    assert error(ours.params, theirs.params) <= TOLERANCE
    assert error(ours.state, theirs.state) <= TOLERANCE
    assert error(ours.opt_state, theirs.opt_state) <= MOMENTS


def resumed(run, ours, names=None):
    """The state in jaxkit of a torch run; no setting differs."""
    state, lines = resume_in_jaxkit(run.checkpoint(), ours.start, table(run.name), ours.config, ours.rate, names)
    assert lines == []
    return state


@pytest.mark.parametrize(("rule", "name"), CASES)
def test_jaxkit_goes_on_where_torch_stopped(rule, name):
    ours, run = jaxkit(name, rule), Torch(name, rule).train(STOP)
    done = ours.train(resumed(run, ours), STEPS - STOP)
    assert_same(done, resumed(run.train(STEPS - STOP), ours))


@pytest.mark.parametrize(("rule", "name"), CASES)
def test_torch_goes_on_where_jaxkit_stopped(rule, name):
    ours, run = jaxkit(name, rule), Torch(name, rule)
    half = ours.train(resumed(run, ours), STOP)
    other = Torch(name, rule, seed=1)
    load(other, half)
    assert_same(ours.train(half, STEPS - STOP), resumed(other.train(STEPS - STOP), ours))


def load(run, state):
    """Takes a fresh torch run to where a jaxkit run stands."""
    run.step = int(state.step)
    run.optimizer.step()  # without gradients: it moves nothing, but the scheduler demands it
    for _ in range(run.step):
        run.schedule.step()
    names = parameter_names(run.optimizer, run.net)
    found = resume_in_torch(state, table(run.name), run.optimizer.state_dict(), names)
    assert found.state.step == run.step
    run.net.load_state_dict(found.model, strict=True)
    run.optimizer.load_state_dict(found.state.optimizer)
    if run.average:
        run.average.load_state_dict(found.state.average, strict=True)


@pytest.mark.parametrize(
    ("rule", "forgotten"),
    [("adam", "ScaleByAdamState"), ("adamw", "ScaleByAdamState"), ("sgd", "ScaleByScheduleState"), ("adam", "all")],
)
def test_a_run_that_forgot_a_count_ends_elsewhere(rule, forgotten):
    ours, run = jaxkit("lenet_tiny", rule), Torch("lenet_tiny", rule).train(STOP)
    state = resumed(run, ours)

    def counts(part):
        return "count" in getattr(part, "_fields", ())

    def forget(part):
        forgets = counts(part) and forgotten in (type(part).__name__, "all")
        return part._replace(count=np.int32(0)) if forgets else part

    opt_state = jax.tree.map(forget, state.opt_state, is_leaf=counts)
    done = ours.train(state._replace(opt_state=opt_state), STEPS - STOP)
    assert error(done.params, resumed(run.train(STEPS - STOP), ours).params) > 100 * TOLERANCE


def split(net):
    """The biases apart, undecayed: torch's numbers are no longer in the network's order."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    return [{"params": decayed}, {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0}]


def test_groups_of_parameters_go_both_ways():
    ours = Jaxkit("lenet_tiny", section("adamw", no_decay=["bias$"]))
    run = Torch("lenet_tiny", "adamw", groups=split).train(STOP)
    names = parameter_names(run.optimizer, run.net)
    state = resumed(run, ours, names)
    other = Torch("lenet_tiny", "adamw", seed=1, groups=split)
    load(other, state)
    expected = resumed(run.train(STEPS - STOP), ours, names)
    assert_same(ours.train(state, STEPS - STOP), expected)
    # from the same bytes torch computes the same bytes
    jax.tree.map(np.testing.assert_array_equal, resumed(other.train(STEPS - STOP), ours, names), expected)


EMA = {"multi_avg_fn": torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)}


def test_an_average_goes_both_ways_unless_it_averages_running_statistics():
    name = "cifar_resnet_tiny"
    ours = Jaxkit(name, section("momentum", ema=Ema(decay=0.9, warmup=False)))
    run = Torch(name, "momentum", average=EMA).train(STOP)
    half = resumed(run, ours)
    average = half.opt_state[-1]
    assert int(average.count) == STOP
    assert error(average.average, half.params) > 100 * TOLERANCE
    other = Torch(name, "momentum", seed=1, average=EMA)
    load(other, half)
    done, expected = ours.train(half, STEPS - STOP), resumed(run.train(STEPS - STOP), ours)
    assert_same(done, expected)
    assert error(done.opt_state[-1].average, expected.opt_state[-1].average) <= TOLERANCE
    jax.tree.map(np.testing.assert_array_equal, resumed(other.train(STEPS - STOP), ours), expected)

    run = Torch(name, "momentum", average={**EMA, "use_buffers": True}).train(STOP)
    with pytest.raises(OptimizerStateError, match="18 buffers, batch_stats/.* of the average are not the network's"):
        resumed(run, ours)


def test_every_setting_that_differs_is_told():
    run = Torch("lenet_tiny", "momentum").train(STOP)
    run.optimizer.param_groups[0] |= {"dampening": 0.5, "maximize": True, "lr": 3e-4}
    ours = Jaxkit(
        "lenet_tiny", section("nesterov", momentum=0.8, learning_rate=0.1, weight_decay=0.2, no_decay=["bias$"])
    )
    _, lines = resume_in_jaxkit(run.checkpoint(), ours.start, table("lenet_tiny"), ours.config, ours.rate)
    assert lines == [
        "param_groups[0]: lr is 0.0003 in torch, 0.0666667 in jaxkit",
        f"param_groups[0]: initial_lr is {RATE} in torch, 0.1 in jaxkit",
        "param_groups[0]: maximize is True in torch, False in jaxkit",
        "param_groups[0]: momentum is 0.9 in torch, 0.8 in jaxkit",
        "param_groups[0]: nesterov is False in torch, True in jaxkit",
        "param_groups[0]: dampening is 0.5 in torch, 0.0 in jaxkit",
        f"weight_decay of 5 parameters, conv_1.weight first, is {DECAY} in torch, 0.2 in jaxkit",
        f"weight_decay of 5 parameters, conv_1.bias first, is {DECAY} in torch, 0.0 in jaxkit",
    ]


def test_adam_and_adamw_are_told_apart_by_their_decay():
    run = Torch("lenet_tiny", "adam").train(STOP)
    ours = Jaxkit("lenet_tiny", section("adamw", b2=0.95))
    _, lines = resume_in_jaxkit(run.checkpoint(), ours.start, table("lenet_tiny"), ours.config, ours.rate)
    assert lines == ["param_groups[0]: decoupled_weight_decay is False in torch, True in jaxkit"]


def test_no_type_is_changed():
    ours, run = jaxkit("lenet_tiny", "adam"), Torch("lenet_tiny", "adam")
    run.net.double()
    with pytest.raises(
        OptimizerStateError, match="10 arrays, params/.* first, are float64 in torch and float32 in jaxkit"
    ):
        resumed(run, ours)


def test_a_checkpoint_is_known_by_the_usual_names():
    weights, optimizer = {"w": torch.ones(1)}, {"state": {}, "param_groups": []}
    assert checkpoint({"model": weights, "optimizer": optimizer, "step": 7, "loss": 0.1}) == Checkpoint(
        weights, TorchState(optimizer, 7)
    )
    saved = {"state_dict": weights, "optimizer_state_dict": optimizer, "epoch": 3, "scaler": {"scale": 2.0}}
    assert checkpoint(saved, updates_per_epoch=10) == Checkpoint(
        weights, TorchState(optimizer, 30, None, {"scale": 2.0})
    )
    with pytest.raises(OptimizerStateError, match="it stands at epoch 3: give updates_per_epoch"):
        checkpoint(saved)
    with pytest.raises(OptimizerStateError, match="has model and optimizer, this one state_dict, epoch"):
        checkpoint({"state_dict": weights, "epoch": 3})


def test_a_run_of_the_whole_loop_goes_on_from_a_torch_checkpoint(tmp_path, monkeypatch):
    name, begin = "cifar_resnet_tiny", experiment.initial_state
    changes = {"data__augment": "none", "train__steps": 6, "train__matmul_precision": "highest"}
    config = parse(small_config(**changes, optimizer__learning_rate=RATE), "small")
    torch.manual_seed(0)
    net = reference.build(name, CLASSES, (8, 8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)

    def train(feed, first, last):
        net.train()
        stream = feed.batches(first)
        for _, batch in zip(range(first, last), stream, strict=False):
            images = np.asarray(feed.preprocess(jax.tree.map(jnp.asarray, batch))["image"])
            optimizer.zero_grad()
            logits = net(torch.from_numpy(np.moveaxis(images, 3, 1).copy()))
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["label"]).long()).backward()
            optimizer.step()
        stream.close()

    def resume(task, feed, chain, executor, key):
        state, frozen = begin(task, feed, chain, executor, key)
        train(feed, 0, 3)
        source = checkpoint({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 3})
        state, lines = resume_in_jaxkit(source, state, table(name), config.optimizer, lambda step: RATE)
        assert lines == []
        state = executor.replicate(state)
        train(feed, 3, 6)
        return state, frozen

    monkeypatch.setattr(experiment, "initial_state", resume)
    assert experiment.run(config, tmp_path)["last"]["step"] == 6
    found = {path.removeprefix("state/"): leaf for path, leaf in learned(tmp_path, 6).items()}
    expected = to_flax({key: value.numpy() for key, value in net.state_dict().items()}, table(name), unflatten(found))
    assert error(unflatten(found), expected) <= TOLERANCE
