"""The training loop, the only one."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from config import Config
from dataset.batches import Batch, Loader
from dataset.readers import Record
from dataset.selection import select
from dataset.switches import switches_of
from engine import settings
from engine.devices import pick_device
from engine.files import FileProblem, atomic_path
from engine.names import resolve
from engine.optim import build_optimizer, learning_rate
from engine.progress import progress
from engine.record import Metrics
from engine.stop import StopFlag, Stopped
from inference.pipeline import build_predictor, validate
from inference.predictor import half_type
from model.checkpoint import FORMAT, load_state, save_weights
from model.losses import build_loss
from model.network import build


@dataclass
class Position:
    """Where a run is."""

    epoch: int = 0
    step: int = 0
    """Steps of this epoch that are done."""
    loss_sum: float = 0.0
    """Sum of their losses."""
    best: float = -1.0
    """Best validation Dice so far; -1 before the first validation."""


class Trainer:
    """A run: network, loss, optimizer, data and position. Writes into cfg.folder.

    Args:
        records: labelled records to split; None reads those of data_root.

    Raises:
        ConfigProblem, FileProblem: settings or data that can't work, before anything is written.
    """

    def __init__(self, cfg: Config, records: Sequence[Record] | None = None) -> None:
        self.cfg = cfg
        self.device = pick_device(cfg)
        switches = switches_of(cfg)
        train_records, self.val_records = select(cfg, switches, records)
        executor = resolve("dataset", cfg.data.dataset_file).load()
        self.loader: Loader = executor.build(train_records, cfg, switches, self.device)
        torch.manual_seed(cfg.run.seed)
        self.network = build(cfg).to(self.device)
        self.loss = build_loss(cfg)
        self.optimizer = build_optimizer(self.network.parameters(), cfg.train)
        self.half = half_type() if self.device == "cuda" and cfg.train.amp else None
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.half is torch.float16)
        self.predictor = build_predictor(cfg, self.network)
        self.at = Position()
        parameters = sum(p.numel() for p in self.network.parameters())
        self.summary = (
            f"{cfg.model.model_file}: {parameters:,} parameters, {self.device}; {len(train_records)} training and "
            f"{len(self.val_records)} validation images, {len(self.loader)} steps of {cfg.train.batch_size} an epoch"
        )

    def fit(self) -> float:
        """Train to the last epoch; returns the best validation Dice.

        Raises:
            Stopped: SIGTERM or Ctrl-C came; the state is saved and `resume` continues from it.
        """
        at, metrics = self.at, Metrics(self.cfg.folder / "metrics.csv", self.at.epoch)
        with StopFlag() as stop:
            while at.epoch < self.cfg.train.epoch:
                first, start = at.step, time.monotonic()
                self.run_epoch(stop)
                seconds = time.monotonic() - start
                row = {
                    "epoch": at.epoch,
                    "step": (at.epoch + 1) * len(self.loader),
                    "lr": self.lr(),
                    "train_loss": at.loss_sum / at.step,
                    "seconds": seconds,
                    "samples_per_second": (at.step - first) * self.cfg.train.batch_size / seconds,
                }
                at.epoch, at.step, at.loss_sum = at.epoch + 1, 0, 0.0
                due = at.epoch % self.cfg.train.val_interval == 0 or at.epoch == self.cfg.train.epoch
                dice = self.validate() if due else None
                metrics.add(**row, val_dice=dice)
                self.save()
                shown = "" if dice is None else f"  val Dice {dice:.4f} (best {at.best:.4f})"
                print(
                    f"epoch {at.epoch}/{self.cfg.train.epoch}  loss {row['train_loss']:.4f}{shown}  "
                    f"lr {row['lr']:.2e}  {row['samples_per_second']:.1f} samples/s",
                    flush=True,
                )
                if stop.signum and at.epoch < self.cfg.train.epoch:
                    raise Stopped(stop.signum)
        return at.best

    def run_epoch(self, stop: StopFlag) -> None:
        """The steps of this epoch that are not done yet."""
        at, accumulate = self.at, self.cfg.train.accumulate
        self.network.train()
        batches = self.loader.epoch(at.epoch, at.step)
        what = f"epoch {at.epoch + 1}/{self.cfg.train.epoch}"
        for batch in progress(batches, what, len(self.loader) - at.step, "steps"):
            at.loss_sum += self.step(batch)
            at.step += 1
            # The last step of an epoch always updates, so that no gradient crosses an epoch or a checkpoint.
            if at.step % accumulate == 0 or at.step == len(self.loader):
                self.update()
                if stop.signum and at.step < len(self.loader):
                    self.save()
                    raise Stopped(stop.signum)

    def step(self, batch: Batch) -> float:
        """Forward and backward of one batch; returns its loss."""
        images = batch.images.to(self.device, non_blocking=True)
        bits = batch.bits.to(self.device, non_blocking=True)
        with torch.autocast(self.device, self.half) if self.half else nullcontext():
            logits = self.network(images.float() / 255)
        loss = self.loss(logits, bits)
        self.scaler.scale(loss / self.cfg.train.accumulate).backward()
        value = loss.item()
        if not math.isfinite(value):
            raise FileProblem(
                f"The loss is {value} at epoch {self.at.epoch + 1}, step {self.at.step + 1} (images "
                f"{', '.join(batch.keys)}): lower --lr, or look at these images and their labels."
            )
        return value

    def update(self) -> None:
        """Change the weights by the gradients gathered so far."""
        self.scaler.unscale_(self.optimizer)
        if self.cfg.train.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.cfg.train.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def lr(self) -> float:
        """Learning rate of the step just taken."""
        done = self.at.epoch * len(self.loader) + self.at.step
        return learning_rate(self.cfg.train, done - 1, len(self.loader))

    def validate(self) -> float:
        """Dice of the validation images through the submission path; keeps the weights where it is the best so far."""
        self.network.eval()
        table = validate(self.predictor, self.val_records, self.cfg, self.device)
        dice = table.mean()
        if dice > self.at.best:
            self.at.best = dice
            weights = self.network.state_dict()
            save_weights(self.cfg.folder / "best.safetensors", weights, self.cfg, dice, self.at.epoch)
            table.to_csv(self.cfg.folder / "per_class.csv")
        return dice

    def save(self) -> None:
        """Write last.pt, all that a resumed run needs."""
        state = {
            "format": FORMAT,
            "config": settings.to_record(self.cfg),
            "position": asdict(self.at),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": torch.get_rng_state(),
        }
        with atomic_path(self.cfg.folder / "last.pt") as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Continue from last.pt.

        Raises:
            FileProblem: missing or damaged, or of another network.
        """
        state = load_state(path)
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise FileProblem(
                f"{path} does not fit {self.cfg.model.model_file} with {len(self.cfg.data.classes)} classes "
                f"({str(error).splitlines()[0][:120]}): resume with the settings it was written with."
            ) from None
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["generator"])
        self.at = Position(**state["position"])
