"""The training loop, the only one: for all loaders, networks and numbers of processes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config import BEST, Config
from dataset.batches import Batch, Loader
from dataset.order import Shard
from dataset.readers import Record
from dataset.selection import select
from dataset.switches import switches_of
from engine import settings
from engine.averaging import Average, refresh_statistics
from engine.devices import half_kinds, half_type, pick_device, set_determinism
from engine.distributed import join, synchronise_norms
from engine.files import FileProblem
from engine.journal import Journal
from engine.names import resolve
from engine.optim import build_optimizer, freeze, restore, set_lr
from engine.pace import Pace
from engine.profile import profile_steps
from engine.progress import progress
from engine.run_state import write_state
from engine.schedule import Plateau, learning_rate
from engine.stop import StopFlag, Stopped
from inference.metrics import DiceTable
from inference.validation import Validation
from model.checkpoint import save_weights
from model.init_weights import init_from
from model.kept import Kept
from model.losses import build_loss
from model.network import build


@dataclass
class Position:
    """Where a run is: plain values, for the training state."""

    epoch: int = 0
    """Epochs that are done, validation included."""
    step: int = 0
    """Steps of the next epoch that are done."""
    loss_sum: float = 0.0
    """Sum of their finite losses, of this rank's samples."""
    losses: int = 0
    """Steps in that sum."""
    bad: int = 0
    """Steps in a row whose loss or gradient was not finite."""
    waited: int = 0
    """Validations since the best one."""


class Trainer:
    """A run: network, loss, optimizer, data and position. Rank 0 writes into cfg.folder.

    Args:
        records: labelled records to split; None reads those of data_root.

    Raises:
        ConfigProblem, FileProblem: settings or data that can't work, before anything is written.
    """

    def __init__(self, cfg: Config, records: Sequence[Record] | None = None) -> None:
        self.cfg = cfg
        self.device = pick_device(cfg)
        set_determinism(cfg.run.deterministic)
        self.world = join(self.device)
        self.train_records, val_records = select(cfg, switches_of(cfg), records)
        self.validation = Validation(val_records, cfg, self.device, self.world)
        self.loader = self._load()
        torch.manual_seed(cfg.run.seed)
        self.network = build(cfg).to(self.device)
        if self.world.ranks > 1:
            self.network = synchronise_norms(self.network, self.device)
        self.optimizer = build_optimizer(self.network, cfg.train)
        self.half = half_type(self.device) if self.device in half_kinds(cfg.train) else None
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.half is torch.float16)
        self.ema = Average(self.network, cfg.train.ema_decay) if cfg.train.ema_decay else None
        self.swa = Average(self.network, None) if cfg.train.swa_epochs else None
        self.plateau, self.kept, self.at = Plateau(), Kept(), Position()
        self.loss = build_loss(cfg, 0, self.world)
        self.model, self.frozen = self._wrapped(), False
        self.gathered = False
        """Whether gradients of a step wait for an update."""
        self.stop = StopFlag(cfg.run.max_hours)
        self.journal: Journal | None = None
        self.run_id: str | None = None
        torch.manual_seed(cfg.run.seed + self.world.rank)  # each rank drops other features
        parameters = sum(p.numel() for p in self.network.parameters())
        pseudo = sum(record.pseudo is not None for record in self.train_records)
        processes = f" x {self.world.ranks}" if self.world.ranks > 1 else ""
        apart = f" ({pseudo} pseudo-labelled)" if pseudo else ""
        self.summary = (
            f"{cfg.model.model_file}: {parameters:,} parameters, {self.device}{processes}; {len(self.train_records)} "
            f"training{apart} and {len(val_records)} validation images, {len(self.loader)} steps of "
            f"{cfg.train.batch_size * self.world.ranks} an epoch"
        )

    def _load(self) -> Loader:
        executor = resolve("dataset", self.cfg.data.dataset_file).load()
        shard = Shard(self.world.rank, self.world.ranks)
        loader: Loader = executor.build(self.train_records, self.cfg, switches_of(self.cfg), self.device, shard)
        return loader

    def fit(self) -> float:
        """Train to the last epoch; returns the best validation Dice, NaN where nothing validates.

        Raises:
            Stopped: SIGTERM, Ctrl-C or the time limit came; the state is saved and `restore` continues from it.
            FileProblem: losses are not finite, or memory ran out.
        """
        at, train = self.at, self.cfg.train
        if self.world.first:
            self.journal = Journal(self.cfg, at.epoch, at.epoch * len(self.loader) + at.step + 1, self.run_id)
        if not at.epoch and not at.step:
            self.save()  # whenever the run is killed, there is something to resume
        with self.stop:
            while at.epoch < train.epoch and not (train.patience and at.waited >= train.patience):
                row = self.run_epoch()
                due = (at.epoch + 1) % train.val_interval == 0 or at.epoch + 1 == train.epoch
                if due and len(self.validation):
                    self.save()  # a long validation that is killed must not cost the epoch
                if self.swa and at.epoch >= train.epoch - train.swa_epochs:
                    self.swa.update(self.network)
                dice = self.validate().mean() if due and len(self.validation) else None
                at.epoch, at.step, at.loss_sum, at.losses = at.epoch + 1, 0, 0.0, 0
                if self.journal and dice is None:
                    self.kept.keep(self.cfg.folder, self.evaluated().state_dict(), self.cfg, at.epoch)
                if self.journal:
                    self.journal.epoch(at.epoch, {**row, "val_dice": dice}, self.kept.best)
                self.save()
                (reason,) = self.world.highest(self.stop.reason)
                if reason and at.epoch < train.epoch:
                    raise Stopped(reason)
        self.finish()
        return self.kept.best if len(self.validation) else math.nan

    def run_epoch(self) -> dict[str, float | None]:
        """The steps of this epoch that are not done yet; returns a row of metrics.csv without the validation."""
        at, train = self.at, self.cfg.train
        self.network.train()
        if (frozen := at.epoch < train.freeze_encoder) or self.frozen:
            freeze(self.network, frozen)
        if frozen != self.frozen:  # DistributedDataParallel looks once at what learns
            self.model, self.frozen = self._wrapped(), frozen
        self.loss = build_loss(self.cfg, at.epoch, self.world)
        pace = Pace(self.device)
        while True:
            try:
                self.run_steps(pace)
                break
            except torch.OutOfMemoryError as error:
                self.halve_batch(error)
        return {
            "epoch": at.epoch,
            "step": (at.epoch + 1) * len(self.loader),
            "lr": self.lr(),
            "train_loss": self.world.mean(at.loss_sum / at.losses if at.losses else math.nan),
            **pace.row(self.cfg.train.batch_size * self.world.ranks),
        }

    def run_steps(self, pace: Pace) -> None:
        """Step by step to the end of the epoch; saves every so many minutes, and where the run is asked to stop."""
        at, train = self.at, self.cfg.train
        steps, saved = len(self.loader), time.monotonic()
        self.updated = replace(at)
        batches = self.loader.epoch(at.epoch, at.step)
        what = f"epoch {at.epoch + 1}/{train.epoch}"
        for batch in pace.count(progress(batches, what, steps - at.step, "steps")):
            first = at.step - at.step % train.accumulate
            reason = self.step(batch, min(train.accumulate, steps - first))
            at.step += 1
            # The last step of an epoch always updates, so that no gradient crosses an epoch or a checkpoint.
            if at.step % train.accumulate and at.step < steps:
                continue
            self.update()
            self.updated = replace(at)
            late = time.monotonic() - saved > 60 * train.save_minutes
            if at.step < steps and any(self.world.highest(reason, late)):
                self.save()
                saved = time.monotonic()
                if reason:
                    raise Stopped(reason)

    def step(self, batch: Batch, accumulated: int = 1) -> int:
        """Forward and backward of one batch of several whose gradients are added up.

        Returns:
            Why any rank is asked to stop; 0 where none is.
        """
        images = batch.images.to(self.device, non_blocking=True)
        bits = batch.bits.to(self.device, non_blocking=True)
        weights = batch.weights.to(self.device, non_blocking=True)
        with torch.autocast(self.device, self.half) if self.half else nullcontext():
            logits = self.model(images.float() / 255)
        loss: Tensor = self.loss(logits, bits, weights)
        value = loss.item()
        # All ranks leave a step out, or none: gradients are means over the ranks, and NaN of one would reach them all.
        bad, reason = self.world.highest(not math.isfinite(value), self.stop.reason)
        if bad:
            self.note_bad(f"a loss of {value}", batch.keys)
            return reason
        self.scaler.scale(loss / accumulated).backward()
        self.gathered = True
        self.at.loss_sum += value
        self.at.losses += 1
        return reason

    def update(self) -> None:
        """Change the weights by the gradients gathered so far."""
        if not self.gathered:
            return  # every step since the last update was left out
        self.gathered = False
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.cfg.train.grad_clip or math.inf).item()
        finite = math.isfinite(norm)
        if finite or self.scaler.is_enabled():  # the scaler leaves such steps out itself, and then lowers its scale
            set_lr(self.optimizer, self.lr())
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if finite:
            if self.ema:
                self.ema.update(self.network)
            self.at.bad = 0
        else:
            self.note_bad(f"a gradient of norm {norm}", [])
        self.optimizer.zero_grad(set_to_none=True)

    def note_bad(self, what: str, keys: list[str]) -> None:
        """Count a step that is left out.

        Raises:
            FileProblem: it was one too many in a row.
        """
        self.at.bad += 1
        images = sorted({key for part in self.world.gather(keys) for key in part})
        where = f"epoch {self.at.epoch + 1}, step {self.at.step + 1}" + (f" ({', '.join(images)})" if images else "")
        if self.at.bad >= self.cfg.train.bad_steps:
            raise FileProblem(
                f"No finite step in {self.at.bad} in a row, the last with {what} at {where}: lower --lr, or look at "
                f"these images and their labels."
            )
        if self.world.first:
            print(f"left out: {what} at {where}", flush=True)

    def halve_batch(self, error: torch.OutOfMemoryError) -> None:
        """After memory ran out: go back to the last update with half the batch and twice the accumulation.

        The samples stay the same, as they don't depend on the batch's size.

        Raises:
            FileProblem: not asked for, or not possible.
        """
        train, side = self.cfg.train, self.loader.side
        if not train.auto_batch or train.batch_size == 1 or self.world.ranks > 1:
            raise FileProblem(
                f"Memory ran out in a step of {train.batch_size} x {self.cfg.model.in_channels} x {side} x {side} with "
                f"{len(self.cfg.data.classes)} classes ({str(error).splitlines()[0][:160]}): lower --batch_size or "
                f"--window_size, give --grad_checkpoint, or --auto_batch (one process)."
            ) from None
        for name, value in asdict(self.updated).items():
            setattr(self.at, name, value)
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        parts = next(n for n in range(2, train.batch_size + 1) if train.batch_size % n == 0)  # 2, of an odd batch 3, …
        self.cfg = settings.replace(
            self.cfg, {"batch_size": train.batch_size // parts, "accumulate": train.accumulate * parts}
        )
        self.loader.close()
        self.loader = self._load()
        self.at.step, self.at.losses = parts * self.at.step, parts * self.at.losses
        self.at.loss_sum *= parts
        print(
            f"memory ran out: going on with batch_size {self.cfg.train.batch_size} and accumulate "
            f"{self.cfg.train.accumulate}",
            flush=True,
        )

    def validate(self) -> DiceTable:
        """Score the validation images through the submission path; keeps the weights where they earn it."""
        network = self.evaluated()
        table = self.validation.score(network)
        dice, better = table.mean(), table.mean() > self.kept.best
        if self.cfg.train.scheduler == "ReduceLROnPlateau":
            self.plateau.see(dice, self.cfg.train.plateau_patience)
        self.at.waited = 0 if better else self.at.waited + 1
        if self.journal:
            by_class = dict(zip(self.cfg.data.classes, map(float, table.per_class()[0]), strict=True))
            self.kept.update(self.cfg.folder, network.state_dict(), self.cfg, self.at.epoch + 1, dice, by_class)
            if better:
                self.validation.write(table)
            pictures = self.validation.pictures(network) if better else ()
            self.journal.validation((self.at.epoch + 1) * len(self.loader), by_class, pictures)
        self.kept.best = max(self.kept.best, dice)
        return table

    def evaluated(self) -> nn.Module:
        """The network that is validated and saved: the moving average where there is one."""
        return self.ema.network if self.ema else self.network

    def evaluate(self, network: nn.Module) -> DiceTable:
        """Score a network on the validation images; writes the same tables as training does."""
        table = self.validation.score(network.to(self.device))
        if self.world.first:
            self.validation.write(table)
        return table

    def profile(self, steps: int) -> str:
        """Time steps on the run's own batches; the weights change, but nothing is saved."""
        self.network.train()

        def step(batch: Batch) -> None:
            self.step(batch)
            self.update()

        batches = (batch for epoch in count() for batch in self.loader.epoch(epoch))
        samples = self.cfg.train.batch_size * self.world.ranks
        return profile_steps(step, batches, steps, samples, self.device, self.cfg.folder / "profile.json")

    def finish(self) -> None:
        """After the last epoch: the mean weights of SWA; without validation the last weights are the best."""
        network, dice, name = self.evaluated(), math.nan, BEST
        if self.swa and self.swa.updates:  # patience can end a run before
            network = self.swa.network
            batches = self.loader.epoch(self.at.epoch)
            refresh_statistics(network, (batch.images.to(self.device).float() / 255 for batch in batches))
            if len(self.validation):
                dice, name = self.validation.score(network).mean(), "swa.safetensors"
                print(f"mean weights of the last {self.cfg.train.swa_epochs} epochs: val Dice {dice:.4f}", flush=True)
        elif len(self.validation):
            return
        if self.world.first:
            save_weights(self.cfg.folder / name, network.state_dict(), self.cfg, dice, self.at.epoch)
            if dice > self.kept.best:
                save_weights(self.cfg.folder / BEST, network.state_dict(), self.cfg, dice, self.at.epoch)
        self.kept.best = max(self.kept.best, dice)

    def _wrapped(self) -> nn.Module:
        """What the step calls: the network, compiled and shared by all ranks where there are several."""
        module: nn.Module = self.network
        if self.cfg.train.compile:
            module = torch.compile(module)  # type: ignore[assignment]
        # Every backward pass is averaged over the ranks, also those whose gradients only add up: where a step is left
        # out for its loss, the ones before it are shared already.
        return DistributedDataParallel(module) if self.world.ranks > 1 else module

    def lr(self) -> float:
        """Learning rate of the step just taken."""
        done = self.at.epoch * len(self.loader) + self.at.step
        return learning_rate(self.cfg.train, max(0, done - 1), len(self.loader), self.plateau.drops)

    def close(self, exit_code: int) -> None:
        """End loaders and trackers; the trainer can't be used afterwards. The processes stay together."""
        self.loader.close()
        if self.journal:
            self.journal.tracker.close(exit_code)

    def save(self) -> None:
        """Write last.pt, all that a resumed run needs."""
        generators = self.world.gather(torch.get_rng_state())
        if self.device == "cuda":
            generators += self.world.gather(torch.cuda.get_rng_state())
        if not self.world.first:
            return
        state = {
            "config": settings.to_record(self.cfg),
            "position": asdict(self.at),
            "kept": asdict(self.kept),
            "plateau": asdict(self.plateau),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "swa": self.swa.state_dict() if self.swa else None,
            "generators": generators,
            "ranks": self.world.ranks,
            "tracker": self.journal.tracker.run_id if self.journal else None,
        }
        if self.journal:
            self.journal.tracker.flush()
        write_state(self.cfg.folder, state)

    def start_from(self, path: Path) -> str:
        """Take what fits of another network's weights; says what did.

        Raises:
            FileProblem: missing or damaged, or little of it fits.
        """
        return init_from(self.network, path, self.cfg.data.classes).text()

    def restore(self, state: dict[str, Any], force: bool = False) -> None:
        """Continue from a training state; `force` begins the optimizer anew where it is another.

        Raises:
            FileProblem: it is of another network, or of a run with other averages.
        """
        try:
            self.network.load_state_dict(state["network"])
            if force and state["config"]["train"]["optimizer"] != self.cfg.train.optimizer:
                print(f"optimizer {self.cfg.train.optimizer} begins anew", flush=True)
            else:
                restore(self.optimizer, state["optimizer"])
            for mine, saved in ((self.ema, state["ema"]), (self.swa, state["swa"])):
                if mine and saved:
                    mine.load_state_dict(saved)
            self.at, self.kept, self.plateau = (
                Position(**state["position"]), Kept(**state["kept"]), Plateau(**state["plateau"])
            )
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise FileProblem(
                f"The state in {self.cfg.folder} does not fit {self.cfg.model.model_file} with "
                f"{len(self.cfg.data.classes)} classes ({str(error).splitlines()[0][:120]}): resume with the settings "
                f"it was written with."
            ) from None
        before = state["config"]["train"]["batch_size"] * state["ranks"]
        samples = self.at.step * before
        self.at.step, rest = divmod(samples, self.cfg.train.batch_size * self.world.ranks)
        if rest:
            raise FileProblem(
                f"{samples} samples of the epoch are done, which is no whole number of steps of "
                f"{self.cfg.train.batch_size * self.world.ranks}: resume with the {before} samples a step of before."
            )
        self.scaler.load_state_dict(state["scaler"])
        self.run_id = state["tracker"]
        ranks = self.world.ranks
        if len(state["generators"]) == ranks * (2 if self.device == "cuda" else 1):
            torch.set_rng_state(state["generators"][self.world.rank])
            if self.device == "cuda":
                torch.cuda.set_rng_state(state["generators"][ranks + self.world.rank])
        else:
            print("resuming on other devices or with other processes: what dropout drops will differ", flush=True)
