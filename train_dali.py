"""The training loop on batches from DALI."""

from __future__ import annotations

from collections.abc import Sequence

from config import Config
from dataset.dataset_dali import require_dali
from dataset.readers import Record
from train import Trainer


class DaliTrainer(Trainer):
    """See Trainer: the same loop. Says that DALI is missing before it reads any data."""

    def __init__(self, cfg: Config, records: Sequence[Record] | None = None) -> None:
        require_dali()
        super().__init__(cfg, records)
