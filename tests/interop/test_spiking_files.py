"""Spiking networks in files: descriptions that rebuild them, and tensors with inferno's names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spiking_networks import (
    draw_inputs,
    draw_params,
    make_biclique,
    make_connection,
    make_neuron,
    make_recurrent,
    make_serial,
    run_ours,
)

from interop import spiking
from interop.files import FileError
from jaxkit.errors import ConfigError
from jaxkit.spiking import synapses
from jaxkit.spiking.connections import LinearDense
from jaxkit.spiking.layers import Biclique, LayerCarry, Serial
from jaxkit.spiking.surrogate import Surrogate, fast_sigmoid


@pytest.mark.parametrize(
    "make", [make_serial, make_biclique, make_recurrent, lambda: make_serial("Conv2D", "DeltaCurrent", "ALIF")]
)
def test_a_description_rebuilds_an_equal_network(make):
    network = make()
    description = json.loads(json.dumps(spiking.describe(network)))
    assert spiking.rebuild(description) == network
    assert spiking.describe(spiking.rebuild(description)) == description


def test_options_of_ours_are_described_too():
    synapse = synapses.DeltaPlusCurrent(spike_charge=2.0, interp_mode="linear", current_overbound=None)
    connection = LinearDense(
        3, 2, 1.0, synapse=synapse, delay=4.0, delay_steps=(0, 2), out_of_range="project", dtype=jnp.bfloat16
    )
    neuron = make_neuron("LIF", 2, surrogate=fast_sigmoid(7.0), detach_reset=False)
    network = Serial(connection, neuron)
    rebuilt = spiking.rebuild(spiking.describe(network))
    assert rebuilt.neuron == neuron
    assert rebuilt.connection.delay_steps == (0, 2)
    assert jnp.dtype(rebuilt.connection.dtype) == jnp.bfloat16


@pytest.mark.parametrize("name", ["kind", "surrogate"])
def test_a_part_may_have_any_name(name):
    network = Biclique({name: make_connection("LinearDense")}, {name: make_neuron("LIF")})
    assert spiking.rebuild(json.loads(json.dumps(spiking.describe(network)))) == network


def test_functions_of_ones_own_cannot_be_described():
    layer = Serial(make_connection("LinearDense"), make_neuron("LIF"), transform=jnp.tanh)
    with pytest.raises(ConfigError, match=r"network\.transform is"):
        spiking.describe(layer)
    own = Surrogate(lambda x, sharpness: x, 1.0)
    neuron = make_neuron("LIF", surrogate=own)
    with pytest.raises(ConfigError, match=r"network\.surrogate is a surrogate gradient of your own"):
        spiking.describe(neuron)


def test_everything_wrong_with_a_description_is_in_one_message():
    description = spiking.describe(make_serial())
    part = description["network"]
    part["connection"]["step_tiem"] = part["connection"].pop("step_time")
    part["connection"]["synapse"]["kind"] = "DeltaCurent"
    part["neuron"]["time_constant"] = "long"
    with pytest.raises(ConfigError) as raised:
        spiking.rebuild(description)
    message = str(raised.value)
    for expected in (
        "network.connection.step_tiem is unknown, did you mean 'step_time'?",
        "network.connection.step_time is missing",
        "'DeltaCurent' is unknown, did you mean 'DeltaCurrent'?",
        "network.neuron.time_constant is 'long'",
    ):
        assert expected in message
    with pytest.raises(ConfigError, match="time_constant must be above 0"):
        spiking.rebuild(json.loads(json.dumps(spiking.describe(make_neuron("LIF"))).replace("10.0", "-10.0")))
    description["network"] = spiking.describe(make_connection("LinearDense"))["network"] | {"in_shape": [0]}
    with pytest.raises(ConfigError, match="a tuple of them, 1 or more"):
        spiking.rebuild(description)
    with pytest.raises(ConfigError, match="of version 2"):
        spiking.rebuild(spiking.describe(make_serial()) | {"version": 2})


def test_a_saved_network_goes_on_from_its_file_bit_for_bit(tmp_path):
    network = make_recurrent("AdEx", "grouped")
    rng = np.random.default_rng(5)
    params = draw_params(network, rng)
    carry, _ = run_ours(network, params, network.initialize_carry(2), draw_inputs(network, rng, 5, 2))
    path = spiking.save(tmp_path / "net.safetensors", network, params, carry)
    loaded = spiking.load(path)
    assert loaded.network == network
    inputs = draw_inputs(network, rng, 5, 2)
    _, expected = run_ours(network, params, carry, inputs)
    jax.tree.map(np.testing.assert_array_equal, run_ours(network, loaded.params, loaded.carry, inputs)[1], expected)
    assert isinstance(loaded.carry, LayerCarry)


def test_files_are_replaced_by_force_alone_and_damaged_ones_refused(tmp_path):
    network = make_neuron("LIF")
    path = tmp_path / "net.safetensors"
    spiking.save(path, network, {}, network.initialize_carry(1))
    with pytest.raises(ConfigError, match="exists already"):
        spiking.save(path, network, {}, network.initialize_carry(1))
    spiking.save(path, network, {}, network.initialize_carry(4), force=True)
    assert spiking.load(path).carry.voltage.shape == (4, 3)
    with pytest.raises(ConfigError, match="written as .safetensors"):
        spiking.save(tmp_path / "net.pt", network, {}, network.initialize_carry(1))
    path.write_bytes(path.read_bytes().replace(b"jaxkit.spiking", b"jaxkit.spikes!"))
    with pytest.raises(FileError, match="no description"):
        spiking.load(path)
