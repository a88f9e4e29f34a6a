"""The narrow residual networks of He et al. (2016), section 4.2: three stages, 6n + 2 layers.

Shortcuts that change shape are projections, as in the distillation literature (Tian et al., "Contrastive
Representation Distillation", ICLR 2020); He et al. padded with zeros there. ``x4`` has wider stages.
"""

from functools import partial

from jaxkit.models.resnet import ResNet, cifar_stem

CifarResNet = partial(ResNet, stem=cifar_stem, stem_channels=16, channels=(16, 32, 64))
WideCifarResNet = partial(CifarResNet, stem_channels=32, channels=(64, 128, 256))

resnet8 = partial(CifarResNet, stage_sizes=(1, 1, 1))
resnet14 = partial(CifarResNet, stage_sizes=(2, 2, 2))
resnet20 = partial(CifarResNet, stage_sizes=(3, 3, 3))
resnet26 = partial(CifarResNet, stage_sizes=(4, 4, 4))
resnet32 = partial(CifarResNet, stage_sizes=(5, 5, 5))
resnet44 = partial(CifarResNet, stage_sizes=(7, 7, 7))
resnet56 = partial(CifarResNet, stage_sizes=(9, 9, 9))
resnet110 = partial(CifarResNet, stage_sizes=(18, 18, 18))
resnet8x4 = partial(WideCifarResNet, stage_sizes=(1, 1, 1))
resnet32x4 = partial(WideCifarResNet, stage_sizes=(5, 5, 5))
cifar_resnet_tiny = partial(CifarResNet, stage_sizes=(1, 1, 1), stem_channels=4, channels=(4, 8, 16))
