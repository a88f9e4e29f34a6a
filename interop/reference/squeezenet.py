"""SqueezeNet in torch, as torchvision has it."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class Fire(nn.Module):
    """Squeezes the channels, then expands them fourfold by 1x1 and by 3x3 convolutions."""

    def __init__(self, inputs: int, squeezed: int):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, 4 * squeezed, 1)
        self.expand3x3 = nn.Conv2d(squeezed, 4 * squeezed, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h w]."""
        x = relu(self.squeeze(x))
        return torch.cat([relu(self.expand1x1(x)), relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """``features`` of fire modules, and a ``classifier`` that convolves, rectifies and averages."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        stem: tuple[int, int],
        stages: tuple[tuple[int, ...], ...],
        dropout_rate: float = 0.5,
    ):
        super().__init__()
        inputs, size = stem
        layers = [nn.Conv2d(image_shape[-1], inputs, size, 2), nn.ReLU()]
        for stage in stages:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            for squeezed in stage:
                layers.append(Fire(inputs, squeezed))
                inputs = 8 * squeezed
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout_rate), nn.Conv2d(inputs, num_classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        return self.classifier(self.features(x)).flatten(1)


squeezenet1_0 = partial(SqueezeNet, stem=(96, 7), stages=((16, 16, 32), (32, 48, 48, 64), (64,)))
squeezenet1_1 = partial(SqueezeNet, stem=(64, 3), stages=((16, 16), (32, 32), (48, 48, 64, 64)))
squeezenet_tiny = partial(SqueezeNet, stem=(6, 7), stages=((2, 2), (3,), (3,)))
