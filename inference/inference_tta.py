"""Style `inference.inference_tta` (windows in several views; `_whole`, `_mixed`: those styles), and its command.

    python inference/inference_tta.py --exp_name X [--input hand.png] [--tta_mode flip_rotate]

Views are `tta_mode`'s; without one, the image and its mirror image. `tta_mode` works with every other style as well.
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

VARIANTS = ("", "whole", "mixed")


def build(cfg: Config, network: nn.Module) -> Predictor:
    """The predictor that the variant names, in all views of `tta_mode` (flip where that is none)."""
    from engine.names import resolve
    from inference.build import mixed, sliding, whole

    make = {"": sliding, "whole": whole, "mixed": mixed}[resolve("inference", cfg.inference.inference_file).variant]
    return make(cfg, network, "flip" if cfg.inference.tta_mode == "none" else cfg.inference.tta_mode)


if __name__ == "__main__":
    from inference.command import main

    sys.exit(main(sys.argv[1:], style="inference.inference_tta"))
