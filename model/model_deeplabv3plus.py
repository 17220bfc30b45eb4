"""DeepLabV3+: the pyramid of dilations of DeepLabV3, in separable convolutions, joined with features of stride 4.

Chen et al. 2018, arXiv:1802.02611: encoder dilated to stride 16, dilations 6, 12 and 18. From the library's decoder
(segmentation_models_pytorch): a third separable convolution behind the pyramid, and one instead of two behind the join.
`dropout` acts behind the pyramid. Logits are made at stride 4 and enlarged four times.

HRNet (`hrnet_w48` and its other widths) can't be dilated and needn't be: it has features of stride 4 throughout. There
the pyramid sits on its four maps, enlarged to stride 4 and joined (arXiv:1908.07919), with four times the dilations, as
the paper doubles them where the stride halves; the decoder's fine features are those of HRNet's finest branch.
"""

from __future__ import annotations

from torch import Tensor, nn

from config import Config
from model.hrnet_trunk import STRIDE as HRNET_STRIDE
from model.hrnet_trunk import build_encoder, joined, width_of
from model.network import Built
from model.smp_decoders import build_smp, finished, known_weights, knows_encoder, library

PAPER = "Chen et al. 2018, arXiv:1802.02611"

OPTIONS = ("dropout", "pretrained")

VARIANTS = (
    "", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b4",
    "hrnet_w18", "hrnet_w32", "hrnet_w48", "hrnet_w64",
)

STRIDE = 16

DILATIONS = (6, 12, 18)

CHANNELS = 256

accepts, weights = knows_encoder, known_weights


def build(variant: str, cfg: Config) -> Built:
    """See model.network.Built."""
    name = variant.removeprefix("tu-")
    if name.startswith("hrnet_"):
        net = OnHRNet(build_encoder(name, cfg), len(cfg.data.classes), cfg.model.dropout)
        return finished(net, cfg.model.in_channels, HRNET_STRIDE)
    options = {
        "encoder_output_stride": STRIDE, "decoder_atrous_rates": DILATIONS, "decoder_aspp_dropout": cfg.model.dropout
    }
    return build_smp("DeepLabV3Plus", variant, cfg, options, STRIDE)


class OnHRNet(nn.Module):
    """(N, C, H, W) -> (N, K, H, W), H and W multiples of 32."""

    def __init__(self, encoder: nn.Module, n_classes: int, dropout: float) -> None:
        super().__init__()
        smp, width = library(), width_of(encoder)
        self.encoder = encoder
        fine = encoder.feature_info.channels()[0]  # type: ignore[operator, union-attr]
        self.decoder = smp.decoders.deeplabv3.decoder.DeepLabV3PlusDecoder(
            # The decoder looks at the third and the last: those of stride 4 and those for the pyramid.
            encoder_channels=(0, 0, fine, width),
            encoder_depth=3,
            out_channels=CHANNELS,
            atrous_rates=[4 * dilation for dilation in DILATIONS],
            output_stride=STRIDE,
            aspp_separable=True,
            aspp_dropout=dropout,
        )
        self.decoder.up = nn.Identity()  # both are of stride 4 already
        self.segmentation_head = smp.base.SegmentationHead(CHANNELS, n_classes, kernel_size=1, upsampling=4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.encoder(x)
        logits: Tensor = self.segmentation_head(self.decoder([x, x, maps[0], joined(maps)]))
        return logits
