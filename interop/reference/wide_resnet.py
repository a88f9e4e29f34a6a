"""Wide residual networks in torch, under the key names of RepDistiller and TfKD."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import dropout, relu


class BasicBlock(nn.Module):
    """Norm, ReLU and convolution, twice; the shortcut convolution sees the activated map."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout_rate: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        self.dropout_rate = dropout_rate

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h2 w2]."""
        y = relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(y)
        y = dropout(relu(self.bn2(self.conv1(y))), self.dropout_rate, self.training)
        return shortcut + self.conv2(y)


class Stage(nn.Module):
    """Blocks in a row, called ``layer``."""

    def __init__(self, size: int, inputs: int, outputs: int, stride: int, dropout_rate: float):
        super().__init__()
        later = [BasicBlock(outputs, outputs, 1, dropout_rate) for _ in range(1, size)]
        self.layer = nn.Sequential(BasicBlock(inputs, outputs, stride, dropout_rate), *later)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b c h w] to [b d h2 w2]."""
        return self.layer(x)


class WideResNet(nn.Module):
    """A 3x3 stem, three stages, norm, ReLU, the average of the last map, and ``fc``."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        depth: int,
        widening: int,
        stem: int = 16,
        dropout_rate: float = 0.0,
    ):
        super().__init__()
        size, width = (depth - 4) // 6, stem * widening
        self.conv1 = nn.Conv2d(image_shape[-1], stem, 3, 1, 1, bias=False)
        self.block1 = Stage(size, stem, width, 1, dropout_rate)
        self.block2 = Stage(size, width, 2 * width, 2, dropout_rate)
        self.block3 = Stage(size, 2 * width, 4 * width, 2, dropout_rate)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to logits."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(relu(self.bn1(x)).mean((2, 3)))


wrn_16_1 = partial(WideResNet, depth=16, widening=1)
wrn_16_2 = partial(WideResNet, depth=16, widening=2)
wrn_40_1 = partial(WideResNet, depth=40, widening=1)
wrn_40_2 = partial(WideResNet, depth=40, widening=2)
wrn_40_4 = partial(WideResNet, depth=40, widening=4)
wrn_28_10 = partial(WideResNet, depth=28, widening=10)
wrn_tiny = partial(WideResNet, depth=16, widening=1, stem=4)
