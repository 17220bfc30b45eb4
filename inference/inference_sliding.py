"""Style `inference.inference_sliding` (blended windows), and the command that runs this style.

    python inference/inference_sliding.py --exp_name X [--input my_hand.png] [--stride 256]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # see inference/inference.py

if TYPE_CHECKING:
    from torch import nn

    from config import Config
    from inference.predictor import Predictor

VARIANTS = ("",)


def build(cfg: Config, network: nn.Module) -> Predictor:
    """Windows of `window_size` at every `stride`, blended by a Gaussian or evenly."""
    from inference.build import sliding

    return sliding(cfg, network)


if __name__ == "__main__":
    from inference.command import main

    sys.exit(main(sys.argv[1:], style="inference.inference_sliding"))
