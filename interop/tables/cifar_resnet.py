"""The narrow CIFAR residual networks, under torchvision's names."""

from interop.tables.resnet import RESNET
from jaxkit.models import MODELS

TABLES = {name: RESNET for name, family in MODELS.items() if family == "cifar_resnet"}
