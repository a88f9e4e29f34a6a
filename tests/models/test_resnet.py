import pytest
from networks import shapes, tensors

from jaxkit.models import build


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18_cifar", 122),
        ("resnet34_cifar", 218),
        ("resnet50_cifar", 320),
        ("resnet101_cifar", 626),
        ("resnet152_cifar", 932),
        ("resnext50_32x4d", 320),
        ("wide_resnet101_2", 626),
    ],
)
def test_networks_have_as_many_tensors_as_published(name, expected):
    assert tensors(name, 100) == expected


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("resnet50", (3, 3, 64, 64)),
        ("resnext50_32x4d", (3, 3, 4, 32 * 4)),
        ("resnext101_32x8d", (3, 3, 8, 32 * 8)),
        ("resnext101_64x4d", (3, 3, 4, 64 * 4)),
        ("wide_resnet50_2", (3, 3, 128, 128)),
    ],
)
def test_the_name_tells_the_groups_and_the_width_of_the_first_stage(name, kernel):
    params = shapes(build(name, num_classes=3), 64)["params"]
    assert params["stage1_block0"]["conv2"]["kernel"].shape == kernel
