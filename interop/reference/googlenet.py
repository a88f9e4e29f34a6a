"""GoogLeNet in torch: torchvision's, and that of teacher-free distillation for CIFAR."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, dropout, max_pool2d, relu

Stages = dict[str, tuple[int, ...]]

# Szegedy et al. (2015), table 1: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool proj.
WIDTHS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
TINY = {
    "3a": (2, 3, 4, 2, 3, 2),
    **dict.fromkeys(("4a", "4b", "4c", "4d"), (2, 2, 3, 2, 2, 3)),
    "5a": (4, 2, 4, 3, 4, 2),
}


def transform_imagenet(x: Tensor) -> Tensor:
    """Maps images [b 3 h w] of ImageNet's mean and deviation to ``(pixel - 0.5) / 0.5``: torchvision's transform."""
    mean, deviation = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
    return x * (deviation / 0.5)[:, None, None] + ((mean - 0.5) / 0.5)[:, None, None]


def outputs(widths: tuple[int, ...]) -> int:
    """Counts the channels that an Inception module puts side by side."""
    one, _, three, _, five, pooled = widths
    return one + three + five + pooled


class ConvNorm(nn.Module):
    """Torchvision's unit: a convolution without bias, a norm, ReLU. Inception v3 has the same."""

    def __init__(self, inputs: int, channels: int, kernel, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h2 w2]."""
        return relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Torchvision's module: four branches side by side."""

    def __init__(self, inputs: int, widths: tuple[int, ...], compat: str):
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = widths
        size = {"reference": 3, "paper": 5}[compat]
        self.branch1 = ConvNorm(inputs, one, 1)
        self.branch2 = nn.Sequential(ConvNorm(inputs, reduce3, 1), ConvNorm(reduce3, three, 3, padding=1))
        self.branch3 = nn.Sequential(ConvNorm(inputs, reduce5, 1), ConvNorm(reduce5, five, size, padding=size // 2))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvNorm(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h w]."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class AuxiliaryHead(nn.Module):
    """Logits from a map within the network."""

    def __init__(self, inputs: int, widths: tuple[int, int], num_classes: int, dropout_rate: float):
        super().__init__()
        channels, hidden = widths
        self.conv = ConvNorm(inputs, channels, 1)
        self.fc1 = nn.Linear(16 * channels, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.dropout_rate = dropout_rate

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to logits."""
        x = self.conv(adaptive_avg_pool2d(x, (4, 4)))
        x = dropout(relu(self.fc1(x.flatten(1))), self.dropout_rate, self.training)
        return self.fc2(x)


class GoogLeNet(nn.Module):
    """Three convolutions and the modules ``inception3a`` ...; in training also the logits of ``aux1`` and ``aux2``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        stem: tuple[int, int, int] = (64, 64, 192),
        widths: Stages = WIDTHS,
        auxiliary: tuple[int, int] | None = None,
        dropout_rate: float = 0.2,
        compat: str = "reference",
        transform_input: bool = False,
    ):
        super().__init__()
        self.transform_input = transform_input
        self.conv1 = ConvNorm(image_shape[-1], stem[0], 7, 2, 3)
        self.conv2 = ConvNorm(stem[0], stem[1], 1)
        self.conv3 = ConvNorm(stem[1], stem[2], 3, padding=1)
        inputs, self.names, self.auxiliary = stem[2], list(widths), {}
        for name, values in widths.items():
            self.add_module(f"inception{name}", Inception(inputs, values, compat))
            inputs = outputs(values)
        if auxiliary:
            self.auxiliary = {"4a": "aux1", "4d": "aux2"}
            for name, head in self.auxiliary.items():
                rate = 0.7 if dropout_rate else 0.0
                self.add_module(head, AuxiliaryHead(outputs(widths[name]), auxiliary, num_classes, rate))
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps images [b c h w] to logits."""
        x = transform_imagenet(x) if self.transform_input else x
        x = max_pool2d(self.conv1(x), 3, 2, ceil_mode=True)
        x = max_pool2d(self.conv3(self.conv2(x)), 3, 2, ceil_mode=True)
        auxiliary = []
        for name in self.names:
            if name in ("4a", "5a"):
                x = max_pool2d(x, 3 if name == "4a" else 2, 2, ceil_mode=True)
            x = self.get_submodule(f"inception{name}")(x)
            if self.training and name in self.auxiliary:
                auxiliary.append(self.get_submodule(self.auxiliary[name])(x))
        x = self.fc(self.dropout(x.mean((2, 3))))
        return (x, *auxiliary) if auxiliary else x


def chain(inputs: int, *layers: tuple[int, int, float]) -> nn.Sequential:
    """Makes convolutions with bias, each with norm and ReLU, from channels, kernel size and the norm's epsilon."""
    modules = nn.Sequential()
    for channels, size, eps in layers:
        modules.append(nn.Conv2d(inputs, channels, size, padding=size // 2))
        modules.append(nn.BatchNorm2d(channels, eps))
        modules.append(nn.ReLU())
        inputs = channels
    return modules


class TfkdInception(nn.Module):
    """Teacher-free distillation's module: two 3x3 for the 5x5, with its own epsilon between."""

    def __init__(self, inputs: int, widths: tuple[int, ...], compat: str):
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = widths
        eps = 1e-5
        odd = {"reference": float(five), "paper": eps}[compat]
        self.b1 = chain(inputs, (one, 1, eps))
        self.b2 = chain(inputs, (reduce3, 1, eps), (three, 3, eps))
        self.b3 = chain(inputs, (reduce5, 1, eps), (five, 3, odd), (five, 3, eps))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), *chain(inputs, (pooled, 1, eps)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h w]."""
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], 1)


class TfkdGoogLeNet(nn.Module):
    """A 3x3 convolution ``prelayer`` and the modules ``a3`` ...; a ``linear`` head."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        stem: int = 192,
        widths: Stages = WIDTHS,
        dropout_rate: float = 0.4,
        compat: str = "reference",
    ):
        super().__init__()
        self.prelayer = chain(image_shape[-1], (stem, 3, 1e-5))
        inputs, self.names = stem, [f"{name[1]}{name[0]}" for name in widths]
        for name, values in zip(self.names, widths.values(), strict=True):
            self.add_module(name, TfkdInception(inputs, values, compat))
            inputs = outputs(values)
        self.dropout = nn.Dropout(dropout_rate)
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = self.prelayer(x)
        for name in self.names:
            if name in ("a4", "a5"):
                x = max_pool2d(x, 3, 2, 1)
            x = self.get_submodule(name)(x)
        return self.linear(self.dropout(x.mean((2, 3))))


googlenet = GoogLeNet
googlenet_aux = partial(GoogLeNet, auxiliary=(128, 1024))
googlenet_tiny = partial(GoogLeNet, stem=(4, 4, 6), widths=TINY, auxiliary=(3, 8))
googlenet_tfkd = TfkdGoogLeNet
googlenet_tiny_tfkd = partial(TfkdGoogLeNet, stem=6, widths=TINY)
