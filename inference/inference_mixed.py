"""Style `inference.inference_mixed` (windows blended with the reduced whole image), and its command.

    python inference/inference_mixed.py --exp_name X [--input my_hand.png] [--mixed_size 1024] [--mixed_share 0.3]
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
    """Windows of `window_size`, blended with the whole image reduced to `mixed_size`."""
    from inference.build import mixed

    return mixed(cfg, network)


if __name__ == "__main__":
    from inference.command import main

    sys.exit(main(sys.argv[1:], style="inference.inference_mixed"))
