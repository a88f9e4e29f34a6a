"""Residual networks in torch: torchvision's, and kuangliu's for CIFAR (other stem, other key names)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import relu


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Makes the shortcut: nothing between maps of one shape, else a 1x1 convolution and its norm."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, inputs: int, channels: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.add_module(shortcut, projection(inputs, channels, stride))
        self.shortcut_name, self.outputs = shortcut, channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h2 w2]."""
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return relu(y + self.get_submodule(self.shortcut_name)(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides, in groups, over so many times the channels), 1x1 to four times the channels."""

    def __init__(self, inputs: int, channels: int, stride: int, shortcut: str, groups: int = 1, widening: int = 1):
        super().__init__()
        width, outputs = widening * channels, 4 * channels
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.add_module(shortcut, projection(inputs, outputs, stride))
        self.shortcut_name, self.outputs = shortcut, outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b 4d h2 w2]."""
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return relu(y + self.get_submodule(self.shortcut_name)(x))


class ResNet(nn.Module):
    """A stem, stages ``layer1`` ..., the average of the last map, and a linear head.

    The stem is a 7x7 convolution and a maximum that quarter the image; the small one is a 3x3 convolution.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        sizes: tuple[int, ...],
        block: Callable = BasicBlock,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        stem: int = 64,
        small_stem: bool = False,
        names: tuple[str, str] = ("downsample", "fc"),
    ):
        super().__init__()
        kernel, stride, padding = (3, 1, 1) if small_stem else (7, 2, 3)
        self.conv1 = nn.Conv2d(image_shape[-1], stem, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.pool = nn.Identity() if small_stem else nn.MaxPool2d(3, 2, 1)

        shortcut, head = names
        layers, inputs = [], stem
        for stage, (size, width) in enumerate(zip(sizes, widths, strict=True), start=1):
            layer = nn.Sequential()
            for i in range(size):
                layer.append(block(inputs, width, 2 if stage > 1 and i == 0 else 1, shortcut))
                inputs = layer[-1].outputs
            self.add_module(f"layer{stage}", layer)
            layers.append(f"layer{stage}")
        self.add_module(head, nn.Linear(inputs, num_classes))
        self.layers, self.head = layers, head

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = self.pool(relu(self.bn1(self.conv1(x))))
        for layer in self.layers:
            x = self.get_submodule(layer)(x)
        return self.get_submodule(self.head)(x.mean((2, 3)))


resnet18 = partial(ResNet, sizes=(2, 2, 2, 2))
resnet34 = partial(ResNet, sizes=(3, 4, 6, 3))
resnet50 = partial(ResNet, sizes=(3, 4, 6, 3), block=Bottleneck)
resnet101 = partial(ResNet, sizes=(3, 4, 23, 3), block=Bottleneck)
resnet152 = partial(ResNet, sizes=(3, 8, 36, 3), block=Bottleneck)
resnet_tiny = partial(ResNet, sizes=(2, 1), widths=(8, 16), stem=8)

resnext50_32x4d = partial(resnet50, block=partial(Bottleneck, groups=32, widening=2))
resnext101_32x8d = partial(resnet101, block=partial(Bottleneck, groups=32, widening=4))
resnext101_64x4d = partial(resnet101, block=partial(Bottleneck, groups=64, widening=4))
wide_resnet50_2 = partial(resnet50, block=partial(Bottleneck, widening=2))
wide_resnet101_2 = partial(resnet101, block=partial(Bottleneck, widening=2))

_KUANGLIU = {"small_stem": True, "names": ("shortcut", "linear")}
resnet18_cifar = partial(resnet18, **_KUANGLIU)
resnet34_cifar = partial(resnet34, **_KUANGLIU)
resnet50_cifar = partial(resnet50, **_KUANGLIU)
resnet101_cifar = partial(resnet101, **_KUANGLIU)
resnet152_cifar = partial(resnet152, **_KUANGLIU)
resnet_tiny_cifar = partial(resnet_tiny, block=Bottleneck, **_KUANGLIU)
