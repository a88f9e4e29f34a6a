"""ResNeXt for CIFAR: residual networks whose 3x3 convolutions work on groups of channels.

Source: Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017, section 5.3. In the
name, 8x64d: in the first stage 8 groups of 64 channels each.
"""

from functools import partial

from jaxkit.models.resnet import ResNet, cifar_stem
from jaxkit.nn.blocks import Bottleneck

resnext29_8x64d = partial(
    ResNet,
    stage_sizes=(3, 3, 3),
    block=partial(Bottleneck, groups=8, widening=8),
    stem=cifar_stem,
    channels=(64, 128, 256),
)
resnext_tiny = partial(
    ResNet,
    stage_sizes=(2, 1),
    block=partial(Bottleneck, groups=2, widening=2),
    stem=cifar_stem,
    stem_channels=4,
    channels=(4, 8),
)
