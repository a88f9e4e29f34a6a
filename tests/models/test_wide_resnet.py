import numpy as np
import pytest
from networks import apply, drawn, shapes, tensors, train

from jaxkit.models import build


@pytest.mark.parametrize(("name", "expected"), [("wrn_28_10", 155), ("wrn_40_4", 227), ("wrn_16_2", 83)])
def test_wide_resnet_has_as_many_tensors_as_published(name, expected):
    assert tensors(name, 100) == expected


def test_only_blocks_that_change_the_channels_have_a_shortcut_convolution():
    def projected(name):
        params = shapes(build(name, num_classes=3), 32)["params"]
        return [block for block, layers in params.items() if "conv_proj" in layers]

    assert projected("wrn_16_2") == ["stage1_block0", "stage2_block0", "stage3_block0"]
    assert projected("wrn_16_1") == ["stage2_block0", "stage3_block0"]


def test_dropout_hides_a_blocks_second_convolution_and_leaves_its_shortcut():
    model = build("wrn_tiny", num_classes=3, dropout_rate=1.0)
    variables, images = drawn(model, 8)
    # The blocks of the first stage have identities for shortcuts.
    _, features = train(model, variables, images)
    np.testing.assert_array_equal(features["stage1"], features["stem"])
    _, features = apply(model, variables, images)
    assert not np.array_equal(features["stage1"], features["stem"])


def test_maps_among_the_features_have_seen_no_relu():
    model = build("wrn_tiny", num_classes=3)
    _, features = apply(model, *drawn(model, 8))
    assert all((features[name] < 0).any() for name in ("stem", "stage1", "stage2", "stage3"))


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_images_of_other_sizes_have_the_same_weights(size):
    model = build("wrn_tiny", num_classes=3)
    assert shapes(model, *size) == shapes(model, 8)
