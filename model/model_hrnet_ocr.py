"""HRNetV2 with object-contextual representations (OCR): each pixel also sees a summary of every class in the image.

Yuan, Chen, Wang 2020, arXiv:1909.11065. Three steps:
    1. An auxiliary head, HRNetV2's own, draws a map for each class: the soft object regions.
    2. The region of class k is described by the mean of the pixels' features, weighted with the softmax of map k over
       all pixels (as the authors' code has it). That softmax is within a class, so classes may overlap.
    3. Each pixel takes the mean of the regions' descriptions, weighted by its likeness to each (object attention),
       beside its own features.
512 channels describe a pixel, 256 a key, as in the paper; its dropout of 5 % before the last layer is --dropout 0.05.

The paper trains the auxiliary head as well, with weight 0.4: --deep_supervision does, with weight 1/2 beside 1. Without
it, only step 2 trains that head, and nothing ties a map to its class; its last bias, which step 2 can't see, is then
left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from config import Config, ConfigProblem
from model.hrnet_trunk import ENCODERS, STRIDE, blocks_of, build_encoder, full_size, joined, width_of
from model.model_hrnet import head
from model.model_simple_unet import PRIOR
from model.network import Built, Published
from model.norms import allow_single_values

PAPER = "Yuan, Chen, Wang 2020, arXiv:1909.11065"

OPTIONS = ("pretrained", "deep_supervision", "dropout")

VARIANTS = {width: ENCODERS[width] for width in ("w18", "w32", "w48")}

PUBLISHED = {
    "w48": Published(
        70_000_000, "arXiv:1908.07919, Table 3: 70.3 M, cut off after the third digit", in_channels=3, classes=19,
        options={"deep_supervision": True}, digits=2,
    ),
}

PIXEL_CHANNELS = 512
KEY_CHANNELS = 256


def weights(variant: str) -> tuple[str, ...]:
    """What --pretrained loads, as timm names it."""
    return (VARIANTS[variant],)


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built.

    Raises:
        ConfigProblem: pretrained weights that can't be downloaded; instance normalisation of a single class.
    """
    n_classes, chosen = len(cfg.data.classes), cfg.model
    if n_classes == 1 and chosen.norm == "instance":
        raise ConfigProblem(
            "norm 'instance' with 1 class has no meaning for HRNet-OCR, which normalises over the regions of the "
            "classes: give --norm group, or leave it out."
        )
    net = HRNetOCR(build_encoder(VARIANTS[variant], cfg), n_classes, chosen.dropout, chosen.deep_supervision)
    return Built(net, STRIDE, [*blocks_of(net.encoder), net.auxiliary, net.pixels, net.attention, net.mix])


class HRNetOCR(nn.Module):
    """(N, C, H, W) -> (N, K, H, W), H and W multiples of 32; in training mode with deep supervision [logits, logits of
    the auxiliary head], both full-size."""

    def __init__(self, encoder: nn.Module, n_classes: int, dropout: float, deep_supervision: bool) -> None:
        super().__init__()
        width = width_of(encoder)
        self.deep_supervision = deep_supervision
        self.encoder = encoder
        self.auxiliary = head(width, n_classes, bias=deep_supervision)
        self.pixels = nn.Sequential(
            nn.Conv2d(width, PIXEL_CHANNELS, 3, padding=1), nn.BatchNorm2d(PIXEL_CHANNELS), nn.ReLU(inplace=True)
        )
        self.attention = ObjectAttention(PIXEL_CHANNELS, KEY_CHANNELS)
        self.mix = nn.Sequential(*_layer(2 * PIXEL_CHANNELS, PIXEL_CHANNELS), nn.Dropout2d(dropout))
        self.classifier = nn.Conv2d(PIXEL_CHANNELS, n_classes, 1)
        nn.init.constant_(self.classifier.bias, PRIOR)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        features = joined(self.encoder(x))
        maps = self.auxiliary(features)
        pixels = self.pixels(features)
        context = self.attention(pixels, regions(pixels, maps))
        logits = full_size(self.classifier(self.mix(torch.cat([context, pixels], 1))))
        return [logits, full_size(maps)] if self.training and self.deep_supervision else logits


class ObjectAttention(nn.Module):
    """Pixels (N, C, h, w) and descriptions of regions (N, C, K, 1) -> what each pixel takes from them (N, C, h, w)."""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.query = nn.Sequential(*_layer(channels, key_channels), *_layer(key_channels, key_channels))
        self.key = nn.Sequential(*_layer(channels, key_channels), *_layer(key_channels, key_channels))
        self.value = nn.Sequential(*_layer(channels, key_channels))
        self.out = nn.Sequential(*_layer(key_channels, channels))
        allow_single_values(self)  # one class of one image

    def forward(self, pixels: Tensor, described: Tensor) -> Tensor:
        query = self.query(pixels).flatten(2)
        key, value = self.key(described).flatten(2), self.value(described).flatten(2)
        likeness = torch.softmax(key.transpose(1, 2) @ query * key.shape[1] ** -0.5, 1)  # (N, K, h * w)
        taken: Tensor = self.out((value @ likeness).unflatten(2, pixels.shape[-2:]))
        return taken


def regions(pixels: Tensor, maps: Tensor) -> Tensor:
    """Mean features of each soft object region: (N, C, h, w) and (N, K, h, w) -> (N, C, K, 1)."""
    share = torch.softmax(maps.flatten(2), 2)
    scale = share.shape[2] ** 0.5  # float16 has no digits left for shares of 1 / (h * w)
    described: Tensor = pixels.flatten(2) @ (share * scale).transpose(1, 2) / scale
    return described.unsqueeze(3)


def _layer(inside: int, outside: int) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
