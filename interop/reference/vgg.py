"""VGG in torch: torchvision's, SWEEN's and RepDistiller's."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, max_pool2d, relu

WIDTHS = (64, 128, 256, 512, 512)
TINY = (4, 6, 8, 8, 8)


def block(inputs: int, channels: int, size: int, normalized: bool) -> list[nn.Module]:
    """Makes ``size`` convolutions, each with norm and ReLU."""
    layers = []
    for i in range(size):
        layers.append(nn.Conv2d(channels if i else inputs, channels, 3, 1, 1))
        layers += [nn.BatchNorm2d(channels)] if normalized else []
        layers.append(nn.ReLU())
    return layers


def chain(inputs: int, widths: tuple[int, ...], sizes: tuple[int, ...], normalized: bool) -> nn.Sequential:
    """Makes the blocks, each followed by a maximum."""
    layers = []
    for before, channels, size in zip((inputs, *widths), widths, sizes, strict=False):
        layers += [*block(before, channels, size, normalized), nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Torchvision's: ``features``, 7x7 averages, and a ``classifier`` of three linear layers."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        sizes: tuple[int, ...],
        normalized: bool = False,
        widths: tuple[int, ...] = WIDTHS,
        hidden: int = 4096,
        dropout_rate: float = 0.5,
    ):
        super().__init__()
        self.features = chain(image_shape[-1], widths, sizes, normalized)
        self.classifier = nn.Sequential(
            nn.Linear(49 * widths[-1], hidden),
            nn.ReLU(),
            nn.Dropout(dropout_rate),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout_rate),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        return self.classifier(adaptive_avg_pool2d(self.features(x), 7).flatten(1))


class SweenVGG(nn.Module):
    """SWEEN's: ``features`` down to a single value, and a linear ``classifier``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        sizes: tuple[int, ...],
        widths: tuple[int, ...] = WIDTHS,
    ):
        super().__init__()
        self.features = chain(image_shape[-1], widths, sizes, normalized=True)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        return self.classifier(self.features(x).mean((2, 3)))


class RepDistillerVGG(nn.Module):
    """RepDistiller's: ``block0`` ... ``block4``, whose last ReLU is applied outside, and a linear ``classifier``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        sizes: tuple[int, ...],
        widths: tuple[int, ...] = WIDTHS,
    ):
        super().__init__()
        inputs = (image_shape[-1], *widths)
        for i, size in enumerate(sizes):
            layers = block(inputs[i], widths[i], size, normalized=True)
            self.add_module(f"block{i}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        height = x.shape[2]
        x = max_pool2d(relu(self.block0(x)), 2)
        x = max_pool2d(relu(self.block1(x)), 2)
        x = max_pool2d(relu(self.block2(x)), 2)
        x = relu(self.block3(x))
        if height == 64:
            x = max_pool2d(x, 2)
        return self.classifier(relu(self.block4(x)).mean((2, 3)))


A, B, D, E = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)

vgg11 = partial(VGG, sizes=A)
vgg13 = partial(VGG, sizes=B)
vgg16 = partial(VGG, sizes=D)
vgg19 = partial(VGG, sizes=E)
vgg_tiny = partial(VGG, sizes=(1, 2, 1), widths=TINY[:3], hidden=8)

vgg11_bn = partial(vgg11, normalized=True)
vgg13_bn = partial(vgg13, normalized=True)
vgg16_bn = partial(vgg16, normalized=True)
vgg19_bn = partial(vgg19, normalized=True)
vgg_tiny_bn = partial(vgg_tiny, normalized=True)

vgg11_sween = partial(SweenVGG, sizes=A)
vgg13_sween = partial(SweenVGG, sizes=B)
vgg16_sween = partial(SweenVGG, sizes=D)
vgg19_sween = partial(SweenVGG, sizes=E)
vgg_tiny_sween = partial(SweenVGG, sizes=(1, 2, 1, 1, 1), widths=TINY)

vgg8_repdistiller = partial(RepDistillerVGG, sizes=(1, 1, 1, 1, 1))
vgg11_repdistiller = partial(RepDistillerVGG, sizes=A)
vgg13_repdistiller = partial(RepDistillerVGG, sizes=B)
vgg16_repdistiller = partial(RepDistillerVGG, sizes=D)
vgg19_repdistiller = partial(RepDistillerVGG, sizes=E)
vgg_tiny_repdistiller = partial(RepDistillerVGG, sizes=(1, 2, 1, 1, 1), widths=TINY)
