"""MobileNetV2 in torch under the key names of torchvision, teacher-free distillation and RepDistiller."""

from collections.abc import Callable
from functools import partial
from itertools import chain

from torch import Tensor, nn

Shape = tuple[int, int, int]
# Expansion, channels, blocks and stride (of the first) of every stage; 0: without an expanding convolution.
Rows = tuple[tuple[int, int, int, int], ...]
_REPDISTILLER = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
_TFKD = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 1), (6, 320, 1, 1))
_TORCHVISION = (
    (0, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def unit(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    activation: Callable = nn.ReLU6,
    momentum: float = 0.1,
) -> list[nn.Module]:
    """Makes a convolution, its norm and an activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
    return [conv, nn.BatchNorm2d(outputs, momentum=momentum), activation()]


class InvertedResidual(nn.Module):
    """Expands, convolves depthwise, projects, by layers that are registered as ``name``."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, expansion: int, unit: Callable, name: str, kernel: int = 3
    ):
        super().__init__()
        width = inputs * (expansion or 1)
        units = [unit(inputs, width)] if expansion else []
        units += [unit(width, width, kernel, stride, width), unit(width, outputs)[:2]]
        self.add_module(name, self.sequence(units))
        self.name, self.adds = name, stride == 1 and inputs == outputs

    def sequence(self, units: list[list[nn.Module]]) -> nn.Sequential:
        """Puts all layers into one sequence."""
        return nn.Sequential(*chain(*units))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h2 w2]."""
        y = self.get_submodule(self.name)(x)
        return x + y if self.adds else y


class NestedResidual(InvertedResidual):
    """Torchvision's, in which an activation and what precedes it are a sequence of their own."""

    def sequence(self, units: list[list[nn.Module]]) -> nn.Sequential:
        """Puts the layers of the projection into a sequence, and before them the sequences of the others."""
        return nn.Sequential(*(nn.Sequential(*layers) for layers in units[:-1]), *units[-1])


def make_stages(block: Callable, inputs: int, rows: Rows) -> list[list[nn.Module]]:
    """Makes the blocks of every stage."""
    stages = []
    for expansion, outputs, size, stride in rows:
        stages.append([block(outputs if i else inputs, outputs, 1 if i else stride, expansion) for i in range(size)])
        inputs = outputs
    return stages


class MobileNetV2(nn.Module):
    """Torchvision's: all blocks in one sequence ``features``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: Shape,
        rows: Rows = _TORCHVISION,
        stem: int = 32,
        last: int = 1280,
        dropout_rate: float = 0.2,
    ):
        super().__init__()
        stages = make_stages(partial(NestedResidual, unit=unit, name="conv"), stem, rows)
        self.features = nn.Sequential(
            nn.Sequential(*unit(image_shape[-1], stem, 3, 2)),
            *chain(*stages),
            nn.Sequential(*unit(rows[-1][1], last)),
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout_rate), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        return self.classifier(self.features(x).mean((2, 3)))


class MobileNetV2TfKD(nn.Module):
    """The CIFAR network of teacher-free distillation: biases, a padded 1x1 stem, a 1x1 head."""

    def __init__(
        self,
        num_classes: int,
        image_shape: Shape,
        rows: Rows = _TFKD,
        stem: int = 32,
        last: int = 1280,
        compat: str = "reference",
    ):
        super().__init__()
        biased = partial(unit, bias=True)
        self.pre = nn.Sequential(*biased(image_shape[-1], stem))
        self.pre[0].padding = (1, 1) if compat == "reference" else (0, 0)
        stages = make_stages(partial(InvertedResidual, unit=biased, name="residual"), stem, rows)
        self.stages = [f"stage{stage}" for stage in range(1, len(stages) + 1)]
        for name, blocks in zip(self.stages, stages, strict=True):
            self.add_module(name, nn.Sequential(*blocks) if len(blocks) > 1 else blocks[0])
        self.conv1 = nn.Sequential(*biased(rows[-1][1], last))
        self.conv2 = nn.Conv2d(last, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = self.pre(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.conv2(self.conv1(x).mean((2, 3), keepdim=True)).flatten(1)


class MobileNetV2RepDistiller(nn.Module):
    """RepDistiller's CIFAR network, a sequence for each stage in ``blocks``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: Shape,
        rows: Rows = _REPDISTILLER,
        stem: int = 16,
        last: int = 1280,
        compat: str = "reference",
    ):
        super().__init__()
        bounded = partial(unit, activation=nn.ReLU if compat == "reference" else nn.ReLU6)
        stages = make_stages(partial(InvertedResidual, unit=bounded, name="conv"), stem, rows)
        self.conv1 = nn.Sequential(*bounded(image_shape[-1], stem, 3, 2))
        self.blocks = nn.ModuleList([nn.Sequential(*blocks) for blocks in stages])
        self.conv2 = nn.Sequential(*bounded(rows[-1][1], last))
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = self.conv1(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.conv2(x).mean((2, 3)))


mobilenet_v2 = MobileNetV2
mobilenet_v2_tiny = partial(
    MobileNetV2, rows=((0, 8, 1, 1), (6, 12, 2, 2), (6, 12, 1, 1), (6, 16, 1, 2)), stem=8, last=32
)
mobilenet_v2_tfkd = MobileNetV2TfKD
mobilenet_v2_tiny_tfkd = partial(MobileNetV2TfKD, rows=((1, 8, 1, 1), (6, 12, 2, 2), (6, 16, 1, 1)), stem=8, last=24)
mobile_half = MobileNetV2RepDistiller
mobile_tiny = partial(MobileNetV2RepDistiller, rows=((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 1, 2)), stem=8, last=24)
