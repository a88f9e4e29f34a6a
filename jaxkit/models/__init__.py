"""The models by name: ``MODELS[name]`` is the file that defines it, imported when it is built."""

from importlib import import_module

_FAMILIES = {
    "cifar_resnet": (
        "resnet8 resnet14 resnet20 resnet26 resnet32 resnet44 resnet56 resnet110 resnet8x4 resnet32x4 cifar_resnet_tiny"
    ),
    "resnet": (
        "resnet18 resnet34 resnet50 resnet101 resnet152 resnet_tiny "
        "resnet18_cifar resnet34_cifar resnet50_cifar resnet101_cifar resnet152_cifar resnet_tiny_cifar"
    ),
    "cnn": "cnn cnn_tiny",
    "lenet": "lenet lenet_tiny",
}
MODELS = {name: family for family, names in _FAMILIES.items() for name in names.split()}
WITH_DROPOUT = ("cnn", "cnn_tiny")


def build(name: str, **fields):
    """Builds the linen module called ``name``; ``fields`` are its attributes, such as ``num_classes``."""
    return getattr(import_module(f"jaxkit.models.{MODELS[name]}"), name)(**fields)
