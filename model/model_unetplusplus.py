"""U-Net++: a U-Net whose skips pass through convolutions that see all coarser features of the encoder on the way.

Zhou et al. 2018, arXiv:1807.10165, and 2019, arXiv:1912.05074, on any encoder with a map at stride 2. As
segmentation_models_pytorch has it, the paper's top row of nodes X^(0,j) lies at that stride 2, and one block more leads
from the last of them to full resolution, where logits are made.

With `deep_supervision` each other node of the top row has a 1 x 1 convolution to logits of its own while training,
enlarged to full size: X^(0,4) comes first, through that last block, then X^(0,3), X^(0,2) and X^(0,1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, ConfigProblem
from model.network import Built
from model.smp_decoders import STRIDE, build_smp, finished, known_weights, knows_encoder

PAPER = "Zhou et al. 2018, arXiv:1807.10165"

OPTIONS = ("deep_supervision", "pretrained")

VARIANTS = ("", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b0", "efficientnet_b4")

accepts, weights = knows_encoder, known_weights


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built.

    Raises:
        ConfigProblem: deep supervision with an encoder that has no map at stride 2, and so no nodes to supervise.
    """
    built = build_smp("UnetPlusPlus", variant, cfg)
    if not cfg.model.deep_supervision:
        return built
    net: Any = built.body
    if not net.encoder.out_channels[1]:
        raise ConfigProblem(
            f"deep_supervision supervises U-Net++'s nodes at stride 2, but {variant} has no features there: leave it "
            f"out, or take another encoder, such as resnet34."
        )
    return finished(Supervised(net, len(cfg.data.classes)), cfg.model.in_channels, STRIDE)


class Supervised(nn.Module):
    """(N, C, H, W) -> (N, K, H, W), H and W multiples of 32; in training mode a list of such."""

    encoder: Any
    decoder: Any
    segmentation_head: Any

    def __init__(self, net: Any, n_classes: int) -> None:
        super().__init__()
        self.encoder = net.encoder
        self.decoder = net.decoder
        self.segmentation_head = net.segmentation_head
        top, width = net.decoder.depth - 1, net.encoder.out_channels[1]
        self.nodes = [f"x_{start}_{top}" for start in range(1, top + 1)]
        self.heads = nn.ModuleList(nn.Conv2d(width, n_classes, 1) for _ in self.nodes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        found = self._decode(self.encoder(x))
        logits: Tensor = self.segmentation_head(found[f"x_0_{self.decoder.depth}"])
        if not self.training:
            return logits
        size = logits.shape[-2:]
        others = (head(found[node]) for node, head in zip(self.nodes, self.heads, strict=True))
        return [logits, *(F.interpolate(other, size, mode="bilinear") for other in others)]

    def _decode(self, features: list[Tensor]) -> dict[str, Tensor]:
        """All nodes, as the decoder names them: x_s_r lies in row r, 0 the coarsest, and began at row s."""
        blocks, depth = self.decoder.blocks, self.decoder.depth
        coarse_first, found = features[:0:-1], dict[str, Tensor]()
        for row in range(depth):
            for start in range(row, -1, -1):
                below = coarse_first[row] if start == row else found[f"x_{start}_{row - 1}"]
                skips = [found[f"x_{s}_{row}"] for s in range(start + 1, row + 1)] + [coarse_first[row + 1]]
                found[f"x_{start}_{row}"] = blocks[f"x_{start}_{row}"](below, torch.cat(skips, 1))
        last = f"x_0_{depth}"
        found[last] = blocks[last](found[f"x_0_{depth - 1}"])
        return found
