"""ShuffleNet V2 in torch under the key names of torchvision, teacher-free distillation and RepDistiller."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import channel_shuffle, relu

Shape = tuple[int, int, int]
Three = tuple[int, int, int]


def conv_norm(inputs: int, outputs: int, bias: bool) -> list[nn.Module]:
    """Makes a 1x1 convolution and its norm."""
    return [nn.Conv2d(inputs, outputs, 1, bias=bias), nn.BatchNorm2d(outputs)]


def depthwise_norm(channels: int, stride: int, bias: bool) -> list[nn.Module]:
    """Makes a depthwise 3x3 convolution and its norm."""
    return [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=bias), nn.BatchNorm2d(channels)]


class ShuffleUnit(nn.Module):
    """Two branches in torch sequences called ``names``; of a stride of 1 the first is empty."""

    def __init__(self, inputs: int, outputs: int, stride: int, names: tuple[str, str], wide: bool, bias: bool):
        super().__init__()
        half = outputs // 2
        read = inputs if stride == 2 else half
        width = inputs if stride == 2 and wide else half
        short = [*depthwise_norm(inputs, stride, bias), *conv_norm(inputs, half, bias), nn.ReLU()]
        long = [*conv_norm(read, width, bias), nn.ReLU(), *depthwise_norm(width, stride, bias)]
        long += [*conv_norm(width, half, bias), nn.ReLU()]
        branches = dict(zip(names, (short if stride == 2 else [], long), strict=True))
        # An optimizer numbers the parameters in the order of the modules: the published one is the alphabet's.
        for name in sorted(names):
            self.add_module(name, nn.Sequential(*branches[name]))
        self.names, self.stride = names, stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h2 w2]."""
        halves = x.chunk(2, 1) if self.stride == 1 else (x, x)
        branches = [self.get_submodule(name)(half) for name, half in zip(self.names, halves, strict=True)]
        return channel_shuffle(torch.cat(branches, 1), 2)


def add_stages(net: nn.Module, unit: Callable, stem: int, widths: Three, sizes: Three) -> None:
    """Adds ``stage2`` to ``stage4`` to a network, of which the first unit strides."""
    for stage, inputs, width, size in zip((2, 3, 4), (stem, *widths), widths, sizes, strict=False):
        units = [unit(inputs, width, 2), *(unit(width, width, 1) for _ in range(size - 1))]
        net.add_module(f"stage{stage}", nn.Sequential(*units))


class ShuffleNetV2(nn.Module):
    """Torchvision's."""

    def __init__(
        self,
        num_classes: int,
        image_shape: Shape,
        widths: Three = (116, 232, 464),
        sizes: Three = (4, 8, 4),
        stem: int = 24,
        last: int = 1024,
    ):
        super().__init__()
        conv = nn.Conv2d(image_shape[-1], stem, 3, 2, 1, bias=False)
        self.conv1 = nn.Sequential(conv, nn.BatchNorm2d(stem), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        unit = partial(ShuffleUnit, names=("branch1", "branch2"), wide=False, bias=False)
        add_stages(self, unit, stem, widths, sizes)
        self.conv5 = nn.Sequential(*conv_norm(widths[-1], last, bias=False), nn.ReLU())
        self.fc = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = self.maxpool(self.conv1(x))
        return self.fc(self.conv5(self.stage4(self.stage3(self.stage2(x)))).mean((2, 3)))


class ShuffleNetV2TfKD(nn.Module):
    """The CIFAR network of teacher-free distillation: biases, and no ReLU after the stem."""

    def __init__(
        self,
        num_classes: int,
        image_shape: Shape,
        widths: Three = (116, 232, 464),
        sizes: Three = (4, 8, 4),
        stem: int = 24,
        last: int = 1024,
        compat: str = "reference",
    ):
        super().__init__()
        self.pre = nn.Sequential(nn.Conv2d(image_shape[-1], stem, 3, 1, 1), nn.BatchNorm2d(stem))
        if compat == "paper":
            self.pre.append(nn.ReLU())
        unit = partial(ShuffleUnit, names=("shortcut", "residual"), wide=True, bias=True)
        add_stages(self, unit, stem, widths, sizes)
        self.conv5 = nn.Sequential(*conv_norm(widths[-1], last, bias=True), nn.ReLU())
        self.fc = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = self.stage4(self.stage3(self.stage2(self.pre(x))))
        return self.fc(self.conv5(x).mean((2, 3)))


class FirstUnit(nn.Module):
    """RepDistiller's unit that strides: two convolutions of the short branch, then three of the long one."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        half = outputs // 2
        self.conv1, self.bn1 = depthwise_norm(inputs, 2, bias=False)
        self.conv2, self.bn2 = conv_norm(inputs, half, bias=False)
        self.conv3, self.bn3 = conv_norm(inputs, half, bias=False)
        self.conv4, self.bn4 = depthwise_norm(half, 2, bias=False)
        self.conv5, self.bn5 = conv_norm(half, half, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h2 w2]."""
        short = relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        long = self.bn4(self.conv4(relu(self.bn3(self.conv3(x)))))
        return channel_shuffle(torch.cat([short, relu(self.bn5(self.conv5(long)))], 1), 2)


class OtherUnit(nn.Module):
    """RepDistiller's unit that does not stride: the second half of the channels is convolved."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = conv_norm(half, half, bias=False)
        self.conv2, self.bn2 = depthwise_norm(half, 1, bias=False)
        self.conv3, self.bn3 = conv_norm(half, half, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b c h w]."""
        short, long = x.chunk(2, 1)
        long = self.bn2(self.conv2(relu(self.bn1(self.conv1(long)))))
        return channel_shuffle(torch.cat([short, relu(self.bn3(self.conv3(long)))], 1), 2)


class ShuffleNetV2RepDistiller(nn.Module):
    """RepDistiller's CIFAR network: a 1x1 stem, ``layer1`` to ``layer3``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: Shape,
        widths: Three = (116, 232, 464),
        sizes: Three = (4, 8, 4),
        stem: int = 24,
        last: int = 1024,
    ):
        super().__init__()
        self.conv1, self.bn1 = conv_norm(image_shape[-1], stem, bias=False)
        for stage, inputs, width, size in zip((1, 2, 3), (stem, *widths), widths, sizes, strict=False):
            units = [FirstUnit(inputs, width), *(OtherUnit(width) for _ in range(size - 1))]
            self.add_module(f"layer{stage}", nn.Sequential(*units))
        self.conv2, self.bn2 = conv_norm(widths[-1], last, bias=False)
        self.linear = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return self.linear(relu(self.bn2(self.conv2(x))).mean((2, 3)))


shufflenet_v2_x0_5 = partial(ShuffleNetV2, widths=(48, 96, 192))
shufflenet_v2_x1_0 = ShuffleNetV2
shufflenet_v2_x1_5 = partial(ShuffleNetV2, widths=(176, 352, 704))
shufflenet_v2_x2_0 = partial(ShuffleNetV2, widths=(244, 488, 976), last=2048)

shufflenet_v2_x0_5_tfkd = partial(ShuffleNetV2TfKD, widths=(48, 96, 192))
shufflenet_v2_x1_0_tfkd = ShuffleNetV2TfKD
shufflenet_v2_x1_5_tfkd = partial(ShuffleNetV2TfKD, widths=(176, 352, 704))
shufflenet_v2_x2_0_tfkd = partial(ShuffleNetV2TfKD, widths=(244, 488, 976), last=2048)

shufflenet_v2_repdistiller = ShuffleNetV2RepDistiller

_TINY = {"widths": (12, 16, 24), "sizes": (2, 2, 1), "stem": 8, "last": 32}
shufflenet_v2_tiny = partial(ShuffleNetV2, **_TINY)
shufflenet_v2_tiny_tfkd = partial(ShuffleNetV2TfKD, **_TINY)
shufflenet_v2_tiny_repdistiller = partial(ShuffleNetV2RepDistiller, **_TINY)
