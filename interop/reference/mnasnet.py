"""MnasNet in torch under torchvision's key names, those of its second version: ``layers.{i}`` for all of it."""

from functools import partial

from torch import Tensor, nn

from interop.reference.mobilenet_v2 import InvertedResidual, Shape, unit

# Expansion, blocks, stride (of the first) and window of the stages ``layers.8`` to ``layers.13``.
_STAGES = ((3, 3, 2, 3), (3, 3, 2, 5), (6, 3, 2, 5), (6, 2, 1, 3), (6, 4, 2, 5), (6, 1, 1, 3))
_TINY_STAGES = ((3, 2, 2, 3), (3, 1, 1, 5), (6, 1, 2, 5), (6, 1, 1, 3), (6, 1, 2, 5), (6, 1, 1, 3))

slow_unit = partial(unit, activation=nn.ReLU, momentum=1 - 0.9997)


class MNASNet(nn.Module):
    """A stem, a separable convolution, six stages and a 1x1 convolution in one sequence.

    ``widths`` are the channels of the stem, of the separable convolution and of the stages.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: Shape,
        widths: tuple[int, ...],
        stages: tuple[tuple[int, int, int, int], ...] = _STAGES,
        last: int = 1280,
        dropout_rate: float = 0.2,
    ):
        super().__init__()
        stem, inputs, *widths = widths
        self.layers = nn.Sequential(
            *slow_unit(image_shape[-1], stem, 3, 2),
            *slow_unit(stem, stem, 3, groups=stem),
            *slow_unit(stem, inputs)[:2],
        )
        for width, (expansion, size, stride, kernel) in zip(widths, stages, strict=True):
            block = partial(InvertedResidual, expansion=expansion, unit=slow_unit, name="layers", kernel=kernel)
            first = block(inputs, width, stride)
            self.layers.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(size - 1))))
            inputs = width
        self.layers.extend(slow_unit(inputs, last))
        self.classifier = nn.Sequential(nn.Dropout(dropout_rate), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        return self.classifier(self.layers(x).mean((2, 3)))


def scaled(width: float) -> tuple[int, ...]:
    """Scales the channels to multiples of 8, to the nearest that is not below 0.9 of the width asked for."""
    wanted = [width * channels for channels in (32, 16, 24, 40, 80, 96, 192, 320)]
    nearest = [max(8, int(channels + 4) // 8 * 8) for channels in wanted]
    return tuple(got if got >= 0.9 * want else got + 8 for got, want in zip(nearest, wanted, strict=True))


mnasnet0_5 = partial(MNASNet, widths=scaled(0.5))
mnasnet0_75 = partial(MNASNet, widths=scaled(0.75))
mnasnet1_0 = partial(MNASNet, widths=scaled(1.0))
mnasnet1_3 = partial(MNASNet, widths=scaled(1.3))
mnasnet_tiny = partial(MNASNet, widths=(8, 4, 8, 8, 8, 12, 12, 16), stages=_TINY_STAGES, last=24)
