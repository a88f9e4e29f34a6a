"""The plain convolutional student of teacher-free distillation in torch."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import dropout, max_pool2d, relu


class CNN(nn.Module):
    """Three times convolution, norm, maximum; a hidden layer; ``fc2``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        widths: tuple[int, int, int] = (32, 64, 128),
        hidden: int = 128,
        dropout_rate: float = 0.5,
    ):
        super().__init__()
        height, width, channels = image_shape
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(widths[1])
        self.conv3 = nn.Conv2d(widths[1], widths[2], 3, 1, 1)
        self.bn3 = nn.BatchNorm2d(widths[2])
        self.fc1 = nn.Linear(widths[2] * (height // 8) * (width // 8), hidden)
        self.fcbn1 = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.dropout_rate = dropout_rate

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = relu(max_pool2d(self.bn1(self.conv1(x)), 2))
        x = relu(max_pool2d(self.bn2(self.conv2(x)), 2))
        x = relu(max_pool2d(self.bn3(self.conv3(x)), 2))
        x = relu(self.fcbn1(self.fc1(x.flatten(1))))
        return self.fc2(dropout(x, self.dropout_rate, self.training))


cnn = CNN
cnn_tiny = partial(CNN, widths=(4, 6, 8), hidden=8)
