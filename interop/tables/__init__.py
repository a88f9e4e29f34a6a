"""Which table converts which model: ``TABLES[name]``, data only."""

from interop.tables.cnn import CNN
from interop.tables.lenet import LENET
from interop.tables.resnet import RESNET, RESNET_CIFAR
from jaxkit.models import MODELS

_FAMILIES = {"cifar_resnet": RESNET, "resnet": RESNET, "cnn": CNN, "lenet": LENET}

# One class of ours, two of the field's: with the small stem, weights are published under kuangliu's names.
TABLES = {name: RESNET_CIFAR if name.endswith("_cifar") else _FAMILIES[family] for name, family in MODELS.items()}
