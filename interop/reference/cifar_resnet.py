"""The narrow CIFAR residual networks in torch, under RepDistiller's key names, which are torchvision's."""

from functools import partial

from interop.reference.resnet import ResNet

_narrow = partial(ResNet, stem=16, widths=(16, 32, 64), small_stem=True)
_wide = partial(ResNet, stem=32, widths=(64, 128, 256), small_stem=True)

resnet8 = partial(_narrow, sizes=(1, 1, 1))
resnet14 = partial(_narrow, sizes=(2, 2, 2))
resnet20 = partial(_narrow, sizes=(3, 3, 3))
resnet26 = partial(_narrow, sizes=(4, 4, 4))
resnet32 = partial(_narrow, sizes=(5, 5, 5))
resnet44 = partial(_narrow, sizes=(7, 7, 7))
resnet56 = partial(_narrow, sizes=(9, 9, 9))
resnet110 = partial(_narrow, sizes=(18, 18, 18))
resnet8x4 = partial(_wide, sizes=(1, 1, 1))
resnet32x4 = partial(_wide, sizes=(5, 5, 5))
cifar_resnet_tiny = partial(_narrow, sizes=(1, 1, 1), stem=4, widths=(4, 8, 16))
