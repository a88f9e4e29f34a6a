"""LeNet-5 in torch under SWEEN's key names."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class LeNet(nn.Module):
    """Two 5x5 convolutions with maxima and three linear layers."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        widths: tuple[int, int] = (6, 16),
        hidden: tuple[int, int] = (120, 84),
    ):
        super().__init__()
        height, width, channels = image_shape
        self.conv_1 = nn.Conv2d(channels, widths[0], 5)
        self.conv_2 = nn.Conv2d(widths[0], widths[1], 5)
        self.fc_1 = nn.Linear(widths[1] * ((height - 12) // 4) * ((width - 12) // 4), hidden[0])
        self.fc_2 = nn.Linear(hidden[0], hidden[1])
        self.fc_3 = nn.Linear(hidden[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = max_pool2d(relu(self.conv_1(x)), 2)
        x = max_pool2d(relu(self.conv_2(x)), 2)
        x = relu(self.fc_1(x.flatten(1)))
        return self.fc_3(relu(self.fc_2(x)))


lenet = LeNet
lenet_tiny = partial(LeNet, widths=(2, 3), hidden=(6, 5))
