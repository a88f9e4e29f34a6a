"""ResNeXt for CIFAR in torch, under the key names of prlz77's network, which TfKD trains."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import relu


class Bottleneck(nn.Module):
    """1x1, a grouped 3x3 (which strides), 1x1; a shortcut convolution where the number of channels changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, width: int, groups: int):
        super().__init__()
        self.conv_reduce = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(width)
        self.conv_conv = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv_expand = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.add_module("shortcut_conv", nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h2 w2]."""
        y = relu(self.bn_reduce(self.conv_reduce(x)))
        y = relu(self.bn(self.conv_conv(y)))
        return relu(self.shortcut(x) + self.bn_expand(self.conv_expand(y)))


class ResNeXt(nn.Module):
    """A 3x3 stem, stages whose blocks carry the stage's number twice, the average of the last map, ``classifier``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        sizes: tuple[int, ...] = (3, 3, 3),
        stem: int = 64,
        outputs: tuple[int, ...] = (256, 512, 1024),
        groups: int = 8,
    ):
        super().__init__()
        self.conv_1_3x3 = nn.Conv2d(image_shape[-1], stem, 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(stem)
        inputs = stem
        for stage, (size, channels) in enumerate(zip(sizes, outputs, strict=True), start=1):
            blocks = nn.Sequential()
            for i in range(size):
                stride = 2 if stage > 1 and i == 0 else 1
                block = Bottleneck(inputs, channels, stride, groups * channels // 4, groups)
                blocks.add_module(f"stage_{stage}_bottleneck_{i}", block)
                inputs = channels
            self.add_module(f"stage_{stage}", blocks)
        self.classifier = nn.Linear(inputs, num_classes)
        self.stages = [f"stage_{stage}" for stage in range(1, len(sizes) + 1)]

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = relu(self.bn_1(self.conv_1_3x3(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.classifier(x.mean((2, 3)))


resnext29_8x64d = ResNeXt
resnext_tiny = partial(ResNeXt, sizes=(2, 1), stem=4, outputs=(16, 32), groups=2)
