"""MaskGIT's tokenizer in torch, with open-muse's key names."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu


class Block(nn.Module):
    """Norm, SiLU, 3x3, twice; a 1x1 shortcut of the result where the channels change, else the input."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inputs, 1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(32, outputs, 1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.nin_shortcut = nn.Conv2d(outputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b i h w] to [b o h w]."""
        y = self.conv1(silu(self.norm1(x)))
        y = self.conv2(silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


class Level(nn.Module):
    """The blocks of a level; the decoder's enlarge and convolve behind them, but for the last."""

    def __init__(self, inputs: int, outputs: int, blocks: int, upsamples: bool = False):
        super().__init__()
        self.block = nn.ModuleList(Block(outputs if i else inputs, outputs) for i in range(blocks))
        self.upsample_conv = nn.Conv2d(outputs, outputs, 3, 1, 1) if upsamples else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b i h w] to [b o h w], or to twice the sides."""
        for block in self.block:
            x = block(x)
        return x if self.upsample_conv is None else self.upsample_conv(interpolate(x, scale_factor=2.0))


class Encoder(nn.Module):
    """``conv_in``, the levels of ``down`` with means between them, ``mid``, ``norm_out``, ``conv_out``."""

    def __init__(self, num_channels: int, hidden: int, widths: list[int], blocks: int, z_channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(num_channels, hidden, 3, 1, 1, bias=False)
        inputs = [hidden, *widths[:-1]]
        self.down = nn.ModuleList(Level(i, o, blocks) for i, o in zip(inputs, widths, strict=True))
        self.mid = nn.ModuleList(Block(widths[-1], widths[-1]) for _ in range(blocks))
        self.norm_out = nn.GroupNorm(32, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [b c h w] to latents."""
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(avg_pool2d(x, 2) if i else x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(silu(self.norm_out(x)))


class Decoder(nn.Module):
    """``conv_in``, ``mid``, the levels of ``up`` from the last to the first, ``norm_out``, ``conv_out``."""

    def __init__(self, num_channels: int, widths: list[int], blocks: int, z_channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, 1, 1)
        self.mid = nn.ModuleList(Block(widths[-1], widths[-1]) for _ in range(blocks))
        inputs = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level(i, o, blocks, upsamples=n > 0) for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = nn.GroupNorm(32, widths[0], 1e-6)
        self.conv_out = nn.Conv2d(widths[0], num_channels, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents to images [b c h w]."""
        x = self.conv_in(z)
        for block in (*self.mid, *reversed(self.up)):
            x = block(x)
        return self.conv_out(silu(self.norm_out(x)))


class MaskGitVQGAN(nn.Module):
    """``encoder``, ``decoder`` and the codebook ``quantize.embedding``."""

    def __init__(
        self,
        num_channels: int = 3,
        hidden_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 256,
        num_embeddings: int = 1024,
    ):
        super().__init__()
        widths = [hidden_channels * times for times in channel_mult]
        self.encoder = Encoder(num_channels, hidden_channels, widths, num_res_blocks, z_channels)
        self.decoder = Decoder(num_channels, widths, num_res_blocks, z_channels)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(num_embeddings, z_channels)})

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images [b c h w] to codes [b d h2 w2] and tokens [b h2 w2]."""
        z = self.encoder(x).permute(0, 2, 3, 1)
        codebook = self.quantize["embedding"].weight
        tokens = torch.cdist(z.flatten(0, 2), codebook).argmin(1).view(z.shape[:3])
        return codebook[tokens].permute(0, 3, 1, 2), tokens

    def decode(self, z_q: Tensor) -> Tensor:
        """Maps codes to images."""
        return self.decoder(z_q)
