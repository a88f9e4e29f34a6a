import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxkit.optimizer import loss_scale, scaled

PARAMS = {"w": jnp.ones(4)}


def test_the_loss_scale_follows_torchs_grad_scaler(monkeypatch):
    monkeypatch.setattr("jaxkit.optimizer.STEPS_BEFORE_DOUBLING", 3)
    gradients = np.ones((30, 4), np.float32)
    gradients[[0, 5, 14], 0] = np.inf
    gradients[6, 2] = np.nan

    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    parameter = torch.nn.Parameter(torch.zeros(4))
    sgd = torch.optim.SGD([parameter], lr=0.01)
    optimizer = scaled(optax.sgd(0.01))
    state = optimizer.init(PARAMS)
    scales = []
    for gradient in gradients:
        scaler.scale(torch.zeros(()))  # GradScaler creates its scale on the first call
        assert float(loss_scale(state)) == scaler.get_scale()
        scales.append(scaler.get_scale())
        parameter.grad = torch.tensor(gradient)
        scaler.step(sgd)
        scaler.update()
        _, state = optimizer.update({"w": jnp.asarray(gradient)}, state, PARAMS)
    assert scales[:9] == [2.0**k for k in (16, 15, 15, 15, 16, 16, 15, 14, 14)]


def test_defaults_of_the_loss_scale_are_torchs():
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    optimizer = scaled(optax.identity())
    state = optimizer.init(PARAMS)
    assert float(state.scale) == scaler.get_scale()
    state = state._replace(finite_steps=jnp.int32(scaler.get_growth_interval() - 2))
    _, state = optimizer.update(PARAMS, state, PARAMS)
    assert float(state.scale) == scaler.get_scale()
    _, state = optimizer.update(PARAMS, state, PARAMS)
    assert float(state.scale) == scaler.get_growth_factor() * scaler.get_scale()
    assert int(state.finite_steps) == 0


def test_the_loss_scale_never_grows_beyond_float32():
    optimizer = scaled(optax.identity())
    state = optimizer.init(PARAMS)._replace(scale=jnp.float32(2.0**127), finite_steps=jnp.int32(1999))
    _, state = optimizer.update(PARAMS, state, PARAMS)
    assert float(state.scale) == 2.0**127
