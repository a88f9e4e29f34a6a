"""ShuffleNet for CIFAR in torch under RepDistiller's key names."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, channel_shuffle, relu


class ShuffleUnit(nn.Module):
    """A grouped bottleneck; a stride of 2 puts the average of the input behind it."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, groups_in: int):
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, groups=groups_in, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.stride, self.groups_in = stride, groups_in

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h2 w2]."""
        y = channel_shuffle(relu(self.bn1(self.conv1(x))), self.groups_in)
        y = self.bn3(self.conv3(relu(self.bn2(self.conv2(y)))))
        return relu(torch.cat([y, avg_pool2d(x, 3, 2, 1)], 1) if self.stride == 2 else y + x)


class ShuffleNet(nn.Module):
    """A 1x1 stem, stages ``layer1`` ..., the average of the last map, and ``linear``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        widths: tuple[int, ...] = (240, 480, 960),
        sizes: tuple[int, ...] = (4, 8, 4),
        stem: int = 24,
        groups: int = 3,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(image_shape[-1], stem, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layers, inputs = [], stem
        for stage, (width, size) in enumerate(zip(widths, sizes, strict=True), start=1):
            first = ShuffleUnit(inputs, width - inputs, 2, groups, 1 if stage == 1 else groups)
            others = [ShuffleUnit(width, width, 1, groups, groups) for _ in range(size - 1)]
            self.layers.append(f"layer{stage}")
            self.add_module(f"layer{stage}", nn.Sequential(first, *others))
            inputs = width
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = relu(self.bn1(self.conv1(x)))
        for layer in self.layers:
            x = self.get_submodule(layer)(x)
        return self.linear(x.mean((2, 3)))


shufflenet_v1 = ShuffleNet
shufflenet_v1_tiny = partial(ShuffleNet, widths=(24, 48), sizes=(2, 2), stem=12)
