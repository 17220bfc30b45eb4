"""Style `inference.inference_ensemble` (a weighted vote of several networks), and the command that runs this style.

    python inference/inference_ensemble.py --exp_name E \\
        --ensemble_models '[{"path": "checkpoints/A"}, {"path": "b.onnx", "weight": 2}]'
    python inference/inference_ensemble.py --exp_name E --ensemble_models @members.json --vote hard --tta_mode flip

Weighted soft voting, the default, is the counterpart for masks of weighted boxes fusion for boxes.

A single network that has this style (a fold in training, validation) predicts with windows.
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
    """Windows of `window_size` at every `stride`: what one of the networks does."""
    from inference.build import sliding

    return sliding(cfg, network)


if __name__ == "__main__":
    from inference.command import main

    sys.exit(main(sys.argv[1:], style="inference.inference_ensemble"))
