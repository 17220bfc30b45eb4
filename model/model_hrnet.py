"""HRNetV2: features of four resolutions side by side through the whole network, and a head of two 1 x 1 convolutions.

Wang et al. 2020, arXiv:1908.07919; the head is that of Sun et al. 2019, arXiv:1904.04514: all four resolutions enlarged
to stride 4 and joined, 1 x 1 convolution, normalisation, ReLU, 1 x 1 convolution to logits, enlarged four times. The
authors' later code enlarges with the corners of pixels aligned; here their centres are, as in the first. The variant is
the width C of the finest branch.
"""

from __future__ import annotations

from torch import Tensor, nn

from config import Config
from model.hrnet_trunk import ENCODERS, STRIDE, blocks_of, build_encoder, full_size, joined, width_of
from model.model_simple_unet import PRIOR
from model.network import Built, Published

PAPER = "Wang et al. 2020, arXiv:1908.07919"

OPTIONS = ("pretrained",)

VARIANTS = ENCODERS

PUBLISHED = {
    "w48": Published(
        65_900_000, "arXiv:1908.07919, Table 3; 65.8 M, cut off, in its repository", in_channels=3, classes=19, digits=3
    ),
}


def weights(variant: str) -> tuple[str, ...]:
    """What --pretrained loads, as timm names it."""
    return (ENCODERS[variant],)


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    net = HRNet(build_encoder(VARIANTS[variant], cfg), len(cfg.data.classes))
    return Built(net, STRIDE, [*blocks_of(net.encoder), net.head])


class HRNet(nn.Module):
    """(N, C, H, W) -> (N, K, H, W), H and W multiples of 32."""

    def __init__(self, encoder: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head(width_of(encoder), n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return full_size(self.head(joined(self.encoder(x))))


def head(width: int, n_classes: int, bias: bool = True) -> nn.Sequential:
    """(N, width, h, w) -> (N, n_classes, h, w). `bias`: of the last convolution."""
    last = nn.Conv2d(width, n_classes, 1, bias=bias)
    if last.bias is not None:
        nn.init.constant_(last.bias, PRIOR)
    return nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True), last)
