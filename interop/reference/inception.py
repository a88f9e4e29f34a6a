"""Torchvision's Inception v3 in torch; its modules as data."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d

from interop.reference.googlenet import ConvNorm, transform_imagenet

ROW, COLUMN = (1, 7), (7, 1)

# Branches by name: channels and kernel size of the convolutions that follow each other; a third number is a stride.
A = {"1x1": [(64, 1)], "5x5": [(48, 1), (64, 5)], "3x3dbl": [(64, 1), (96, 3), (96, 3)]}
B = {"3x3": [(384, 3, 2)], "3x3dbl": [(64, 1), (96, 3), (96, 3, 2)]}
D = {
    "3x3": [(192, 1), (320, 3, 2)],
    "7x7x3": [(192, 1), (192, ROW), (192, COLUMN), (192, 3, 2)],
}
# Behind the last of these a row and a column stand side by side.
E = {"1x1": [(320, 1)], "3x3": [(384, 1), "split"], "3x3dbl": [(448, 1), (384, 3), "split"]}


def c(inner: int) -> dict[str, list]:
    """Makes the branches of a module with 7x7 convolutions of ``inner`` channels."""
    return {
        "1x1": [(192, 1)],
        "7x7": [(inner, 1), (inner, ROW), (192, COLUMN)],
        "7x7dbl": [(inner, 1), (inner, COLUMN), (inner, ROW), (inner, COLUMN), (192, ROW)],
    }


def unit(inputs: int, channels: int, kernel, stride: int = 1) -> ConvNorm:
    """Makes a convolution that keeps the map's size, or with a stride one without padding."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    return ConvNorm(inputs, channels, kernel, stride, tuple(side // 2 for side in sides) if stride == 1 else 0)


class Mixed(nn.Module):
    """Branches side by side; the last is a mean and 1x1 to ``pooled`` channels, or where that is None a maximum."""

    def __init__(self, inputs: int, branches: dict[str, list], pooled: int | None, width: float):
        super().__init__()
        self.branches, self.outputs = [], 0
        for branch, layers in branches.items():
            names, channels = [], inputs
            for i, layer in enumerate(layers, start=1):
                name = f"branch{branch}" if len(layers) == 1 else f"branch{branch}_{i}"
                if layer == "split":
                    names.append((f"{name}a", f"{name}b"))
                    self.add_module(f"{name}a", unit(channels, round(width * 384), (1, 3)))
                    self.add_module(f"{name}b", unit(channels, round(width * 384), (3, 1)))
                    channels = 2 * round(width * 384)
                else:
                    names.append((name,))
                    self.add_module(name, unit(channels, round(width * layer[0]), *layer[1:]))
                    channels = round(width * layer[0])
            self.branches.append(names)
            self.outputs += channels
        if pooled is None:
            self.branch_pool = None
            self.outputs += inputs
        else:
            self.branch_pool = unit(inputs, round(width * pooled), 1)
            self.outputs += round(width * pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h2 w2]."""
        outputs = []
        for names in self.branches:
            y = x
            for parallel in names:
                y = torch.cat([self.get_submodule(name)(y) for name in parallel], 1)
            outputs.append(y)
        pooled = max_pool2d(x, 3, 2) if self.branch_pool is None else self.branch_pool(avg_pool2d(x, 3, 1, 1))
        return torch.cat([*outputs, pooled], 1)


class AuxiliaryHead(nn.Module):
    """Logits from a map within the network."""

    def __init__(self, inputs: int, num_classes: int, width: float):
        super().__init__()
        self.conv0 = ConvNorm(inputs, round(width * 128), 1)
        self.conv1 = ConvNorm(round(width * 128), round(width * 768), 5)
        self.fc = nn.Linear(round(width * 768), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to logits."""
        x = avg_pool2d(x, 5, 3) if min(x.shape[2:]) >= 17 else adaptive_avg_pool2d(x, 5)
        return self.fc(self.conv1(self.conv0(x)).mean((2, 3)))


class InceptionV3(nn.Module):
    """``Conv2d_1a_3x3`` ..., ``Mixed_5b`` ..., ``fc``; in training also the logits of ``AuxLogits``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        pooled: tuple[int, ...] = (32, 64, 64),
        inner: tuple[int, ...] = (128, 160, 160, 192),
        width: float = 1.0,
        auxiliary: bool = False,
        dropout_rate: float = 0.5,
        transform_input: bool = False,
    ):
        super().__init__()
        self.transform_input = transform_input
        first, second, third, fourth = (round(width * channels) for channels in (32, 64, 80, 192))
        self.Conv2d_1a_3x3 = ConvNorm(image_shape[-1], first, 3, 2)
        self.Conv2d_2a_3x3 = ConvNorm(first, first, 3)
        self.Conv2d_2b_3x3 = ConvNorm(first, second, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = ConvNorm(second, third, 1)
        self.Conv2d_4a_3x3 = ConvNorm(third, fourth, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)

        modules = [(f"5{letter}", A, channels) for letter, channels in zip("bcd", pooled, strict=False)]
        modules += [("6a", B, None)] + [(f"6{x}", c(channels), 192) for x, channels in zip("bcde", inner, strict=False)]
        modules += [("7a", D, None), ("7b", E, 192), ("7c", E, 192)]
        inputs, self.AuxLogits = fourth, None
        for name, branches, channels in modules:
            if name == "7a" and auxiliary:
                self.AuxLogits = AuxiliaryHead(inputs, num_classes, width)
            self.add_module(f"Mixed_{name}", Mixed(inputs, branches, channels, width))
            inputs = self.get_submodule(f"Mixed_{name}").outputs
        self.names = [f"Mixed_{name}" for name, *_ in modules]
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Maps images [b c h w] to logits."""
        x = transform_imagenet(x) if self.transform_input else x
        x = self.maxpool1(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        auxiliary = None
        for name in self.names:
            if name == "Mixed_7a" and self.training and self.AuxLogits is not None:
                auxiliary = self.AuxLogits(x)
            x = self.get_submodule(name)(x)
        logits = self.fc(self.dropout(x.mean((2, 3))))
        return logits if auxiliary is None else (logits, auxiliary)


inception_v3 = InceptionV3
inception_v3_aux = partial(InceptionV3, auxiliary=True)
inception_tiny = partial(InceptionV3, pooled=(32,), inner=(128,), width=1 / 16, auxiliary=True)
