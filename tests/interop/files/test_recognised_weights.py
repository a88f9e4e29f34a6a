import numpy as np
import pytest

from interop.files import open_weights, write_weights
from interop.layout import spec


@pytest.mark.parametrize("padding", range(0, 512, 8))
def test_a_safetensors_file_is_recognised_whatever_the_length_of_its_header(tmp_path, padding):
    # The length comes first in the file, and some lengths begin as a pickle does.
    arrays, path = {"w": np.arange(3.0)}, tmp_path / "w.safetensors"
    metadata = {"note": "x" * padding}
    specs = {name: spec(array) for name, array in arrays.items()}
    write_weights(path, specs, arrays.items(), format="torch", metadata=metadata, max_shard_size=None, force=False)
    with open_weights(path) as weights:
        np.testing.assert_array_equal(weights.read("w"), arrays["w"])
