"""Style `inference.inference` (the whole image at once), and the command that runs any style.

    python inference/inference.py --exp_name X [--input my_hand.png] [--save_overlay]

runs the style that the experiment's `inference_file` names. Network and settings come from the checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by path, Python puts inference/ first, where `import inference` would find this file.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

if TYPE_CHECKING:
    from torch import nn

    from config import Config
    from inference.predictor import Predictor

VARIANTS = ("",)


def build(cfg: Config, network: nn.Module) -> Predictor:
    """The whole image, fitted to a square of `image_size`, or at its own size, through the network at once."""
    from inference.build import whole

    return whole(cfg, network)


if __name__ == "__main__":
    from inference.command import main

    sys.exit(main(sys.argv[1:]))
