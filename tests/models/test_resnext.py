import pytest
from networks import outputs, shapes, tensors

from jaxkit.models import build


def test_resnext29_has_as_many_tensors_as_published():
    assert tensors("resnext29_8x64d", 100) == 188


def test_the_first_stage_has_eight_groups_of_64_channels():
    params = shapes(build("resnext29_8x64d", num_classes=3), 32)["params"]
    assert params["stage1_block0"]["conv2"]["kernel"].shape == (3, 3, 64, 8 * 64)


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_a_larger_image_stays_one_example(size):
    model = build("resnext_tiny", num_classes=3)
    assert shapes(model, *size) == shapes(model, 8)
    logits, features = outputs(model, *size)
    assert logits == (2, 3)
    assert features["pre_logits"] == (2, 32)
