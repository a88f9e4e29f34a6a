"""A small network trained by torch, and by jaxkit's own step, on the same batches, each of which can stop anywhere."""

import copy
from functools import cache, partial

import jax
import jax.numpy as jnp
import torch
from twins import CLASSES, QUICK, draw, torch_loss
from twins import twins as make_twins

from interop.optimizer_state import TorchState
from interop.resume import Checkpoint
from jaxkit import models, parallel
from jaxkit.optimizer import make_optimizer
from jaxkit.schedules import make_schedule
from jaxkit.schema.classify import Classify
from jaxkit.schema.optimizer import OPTIMIZERS, SCHEDULES
from jaxkit.step import TrainState, train_step
from jaxkit.tasks import classify
from jaxkit.tasks.task import Context

STEPS, STOP, RATE = 8, 4, 1e-3
# Adam divides by sqrt(v) + eps: where a gradient is mere rounding, 1e-4 keeps the quotient from being as large as any.
RULES = {
    "sgd": ("sgd", {}, torch.optim.SGD, {}),
    "momentum": ("sgd", {"momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": ("sgd", {"momentum": 0.9, "nesterov": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"b2": 0.95, "eps": 1e-4}, torch.optim.Adam, {"betas": (0.9, 0.95), "eps": 1e-4}),
    "adamw": ("adamw", {"eps": 1e-4}, torch.optim.AdamW, {"eps": 1e-4}),
}
DECAY = 0.1


def section(rule, **fields):
    """jaxkit's side of a rule: a rate that rises over two updates and falls to zero at the last."""
    name, settings, *_ = RULES[rule]
    schedule = SCHEDULES["linear"](name="linear", warmup_steps=2)
    shared = {"name": name, "learning_rate": RATE, "schedule": schedule, "weight_decay": DECAY}
    return OPTIMIZERS[name](**shared | settings | fields)


def image_shape(name):
    return (models.IMAGE_SIDES[name],) * 2 + (3,)


def batches(name):
    return [draw(image_shape(name), 8, seed) for seed in range(STEPS)]


class Torch:
    """The network in torch, under the same schedule; ``groups`` makes the optimizer's arguments of the network."""

    def __init__(self, name, rule, seed=0, average=None, groups=lambda net: net.parameters()):
        self.name, (_, _, make, settings) = name, RULES[rule]
        self.net = make_twins(name, image_shape(name), seed=seed)[0]
        self.optimizer = make(groups(self.net), lr=RATE, weight_decay=DECAY, **settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: step / 2 if step < 2 else (STEPS - step) / (STEPS - 2)
        )
        self.average = average and torch.optim.swa_utils.AveragedModel(self.net, **average)
        self.step = 0

    def train(self, steps):
        self.net.train()
        for images, labels in batches(self.name)[self.step : self.step + steps]:
            self.optimizer.zero_grad()
            torch_loss(self.net, images, labels).backward()
            self.optimizer.step()
            self.schedule.step()
            if self.average:
                self.average.update_parameters(self.net)
        self.step += steps
        return self

    def checkpoint(self):
        average = self.average and self.average.state_dict()
        state = TorchState(self.optimizer.state_dict(), self.step, average)
        return copy.deepcopy(Checkpoint(self.net.state_dict(), state))


class Jaxkit:
    """The network in jaxkit: its task, optimizer and step; ``start`` is the state at step 0."""

    def __init__(self, name, config):
        self.name, self.config = name, config
        task = Classify.model_validate({"name": "classify", "model": {"name": name}})
        task = classify.make(task, Context(CLASSES, load_weights=None))
        self.rate, optimizer = make_schedule(config, STEPS, 1.0), make_optimizer(config, STEPS, 1.0)
        key = jax.random.PRNGKey(0)
        variables = task.init(key, {"image": draw(image_shape(name), 1)[0]})
        opt_state = jax.jit(optimizer.init)(variables.params)
        self.start = TrainState(jnp.int32(0), variables.params, variables.state, opt_state, key, jnp.bool(True))
        options = {"task": task, "optimizer": optimizer, "rate": self.rate, "pieces": 1}
        options |= {"augment": lambda keys, batch: batch, "executor": parallel.executor("jit")}
        self.step = jax.jit(partial(train_step, **options), compiler_options=QUICK)

    def train(self, state, steps):
        start = int(state.step)
        for images, labels in batches(self.name)[start : start + steps]:
            state, _ = self.step(state, {}, {"image": images, "label": jnp.asarray(labels)})
        return state


@cache
def jaxkit(name, rule):
    """What most tests train with, compiled once."""
    return Jaxkit(name, section(rule))
