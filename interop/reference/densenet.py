"""Densely connected networks in torch: torchvision's, SWEEN's with a small stem, and teacher-free distillation's."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class DenseLayer(nn.Sequential):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3; the new channels come last."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b c+growth h w]."""
        return torch.cat([x, super().forward(x)], 1)


class DenseNet(nn.Module):
    """``features``, the average of the last map, and a linear ``classifier``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        sizes: tuple[int, ...],
        growth: int = 32,
        small_stem: bool = False,
    ):
        super().__init__()
        inputs = 2 * growth
        self.features = features = nn.Sequential()
        if small_stem:
            features.add_module("conv0", nn.Conv2d(image_shape[-1], inputs, 3, 1, 1, bias=False))
        else:
            features.add_module("conv0", nn.Conv2d(image_shape[-1], inputs, 7, 2, 3, bias=False))
            features.add_module("norm0", nn.BatchNorm2d(inputs))
            features.add_module("relu0", nn.ReLU())
            features.add_module("pool0", nn.MaxPool2d(3, 2, 1))

        for stage, size in enumerate(sizes, start=1):
            block = nn.Sequential()
            for i in range(size):
                block.add_module(f"denselayer{i + 1}", DenseLayer(inputs + i * growth, growth))
            features.add_module(f"denseblock{stage}", block)
            inputs += size * growth
            if stage < len(sizes):
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(inputs))
                transition.add_module("relu", nn.ReLU())
                transition.add_module("conv", nn.Conv2d(inputs, inputs // 2, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(2))
                features.add_module(f"transition{stage}", transition)
                inputs //= 2
        features.add_module("norm5", nn.BatchNorm2d(inputs))
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        return self.classifier(relu(self.features(x)).mean((2, 3)))


class Bottleneck(nn.Module):
    """What teacher-free distillation calls a dense layer, in one list."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bottle_neck = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b c+growth h w]."""
        return torch.cat([x, self.bottle_neck(x)], 1)


class Transition(nn.Module):
    """Norm, in the paper ReLU, 1x1 convolution, mean over 2x2."""

    def __init__(self, inputs: int, compat: str):
        super().__init__()
        self.down_sample = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.Conv2d(inputs, inputs // 2, 1, bias=False), nn.AvgPool2d(2)
        )
        self.activation = {"reference": nn.Identity(), "paper": nn.ReLU()}[compat]

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b c/2 h/2 w/2]."""
        norm, convolution, pool = self.down_sample
        return pool(convolution(self.activation(norm(x))))


class TfkdDenseNet(nn.Module):
    """``conv1``, ``features`` that end with a norm, the average of the last map, and ``linear``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        sizes: tuple[int, ...],
        growth: int = 32,
        compat: str = "reference",
    ):
        super().__init__()
        inputs, last = 2 * growth, len(sizes) - 1
        self.conv1 = nn.Conv2d(image_shape[-1], inputs, 3, 1, 1, bias=False)
        self.features = nn.Sequential()
        for stage, size in enumerate(sizes):
            block = nn.Sequential()
            for i in range(size):
                block.add_module(f"bottle_neck_layer_{i}", Bottleneck(inputs + i * growth, growth))
            inputs += size * growth
            self.features.add_module(f"dense_block{stage}" if stage == last else f"dense_block_layer_{stage}", block)
            if stage < last:
                self.features.add_module(f"transition_layer_{stage}", Transition(inputs, compat))
                inputs //= 2
        self.features.add_module("bn", nn.BatchNorm2d(inputs))
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        return self.linear(relu(self.features(self.conv1(x))).mean((2, 3)))


densenet121 = partial(DenseNet, sizes=(6, 12, 24, 16))
densenet161 = partial(DenseNet, sizes=(6, 12, 36, 24), growth=48)
densenet169 = partial(DenseNet, sizes=(6, 12, 32, 32))
densenet201 = partial(DenseNet, sizes=(6, 12, 48, 32))
densenet_tiny = partial(DenseNet, sizes=(2, 1, 2), growth=4)

densenet121_tfkd = partial(TfkdDenseNet, sizes=(6, 12, 24, 16))
densenet161_tfkd = partial(TfkdDenseNet, sizes=(6, 12, 36, 24), growth=48)
densenet169_tfkd = partial(TfkdDenseNet, sizes=(6, 12, 32, 32))
densenet201_tfkd = partial(TfkdDenseNet, sizes=(6, 12, 48, 32))
densenet_tiny_tfkd = partial(TfkdDenseNet, sizes=(2, 1, 1, 2), growth=4)

densenet_bc_100_12 = partial(DenseNet, sizes=(16, 16, 16), growth=12, small_stem=True)
densenet_bc_190_40 = partial(DenseNet, sizes=(31, 31, 31), growth=40, small_stem=True)
densenet_bc_tiny = partial(DenseNet, sizes=(2, 1, 2), growth=4, small_stem=True)
