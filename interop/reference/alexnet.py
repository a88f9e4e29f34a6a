"""AlexNet in torch: torchvision's, and TfKD's for CIFAR, which SWEEN names differently."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

WIDTHS = (64, 192, 384, 256, 256)
TINY = (4, 6, 8, 6, 6)


def convolutions(inputs: int, widths: tuple[int, ...], padding: int, window: int) -> nn.Sequential:
    """Makes five convolutions with ReLU; a maximum after the first, the second and the last."""
    a, b, c, d, e = widths
    return nn.Sequential(
        *(nn.Conv2d(inputs, a, 11, 4, padding), nn.ReLU(), nn.MaxPool2d(window, 2)),
        *(nn.Conv2d(a, b, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(window, 2)),
        *(nn.Conv2d(b, c, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(c, d, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(d, e, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(window, 2)),
    )


class AlexNet(nn.Module):
    """Torchvision's: ``features``, 6x6 averages, and a ``classifier`` of three linear layers."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        widths: tuple[int, ...] = WIDTHS,
        hidden: int = 4096,
        dropout_rate: float = 0.5,
    ):
        super().__init__()
        self.features = convolutions(image_shape[-1], widths, padding=2, window=3)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout_rate),
            nn.Linear(36 * widths[-1], hidden),
            nn.ReLU(),
            nn.Dropout(dropout_rate),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        return self.classifier(adaptive_avg_pool2d(self.features(x), 6).flatten(1))


class CifarAlexNet(nn.Module):
    """TfKD's: ``features`` down to a single value, and a linear head called ``head``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        head: str = "classifier",
        widths: tuple[int, ...] = WIDTHS,
    ):
        super().__init__()
        self.features = convolutions(image_shape[-1], widths, padding=5, window=2)
        self.add_module(head, nn.Linear(widths[-1], num_classes))
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        return self.get_submodule(self.head)(self.features(x).mean((2, 3)))


alexnet = AlexNet
alexnet_tiny = partial(AlexNet, widths=TINY, hidden=8)

alexnet_tfkd = CifarAlexNet
alexnet_tiny_tfkd = partial(CifarAlexNet, widths=TINY)
alexnet_sween = partial(CifarAlexNet, head="fc")
