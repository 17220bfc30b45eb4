"""Which labelled records train, and which validate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config import Config
from dataset.layouts import has_split, read_split
from dataset.pseudo import add_pseudo
from dataset.readers import Record, leave_out
from dataset.splits import check_disjoint, fold_split, hold_out, load_folds, read_strata, save_folds
from dataset.switches import Switches


def select(
    cfg: Config, switches: Switches, records: Sequence[Record] | None = None
) -> tuple[list[Record], list[Record]]:
    """Training and validation records as the settings ask: a hold-out, a fold file, the folds of `split_seed`, or none.

    Excluded images are left out of both sides after the split, so that this moves no subject to another fold. Images
    that `pseudo` labels come last in training. `limit_train`, `limit_val` and `overfit_batches` take the first of each.

    Args:
        records: all labelled ones; None reads those of data_root.
    """
    data = cfg.data
    found = read_split(cfg, "train") if records is None else list(records)
    if data.fold == "none":
        train, val = found, list[Record]()
    elif data.holdout and has_split(cfg, data.holdout):
        train, val = found, read_split(cfg, data.holdout)
        check_disjoint(train, val)
    elif data.holdout:
        train, val = hold_out(found, Path(data.holdout))
    elif data.fold_file and Path(data.fold_file).exists():
        train, val = load_folds(Path(data.fold_file), found, int(data.fold))
    else:
        train, val = fold_split(found, data.n_folds, int(data.fold), data.split_seed, _strata(cfg, found))
    kept = set(leave_out([*train, *val], data.exclude, known_bad=switches.exclude))
    train, val = [record for record in train if record in kept], [record for record in val if record in kept]
    train, val = train[: data.limit_train or None], val[: data.limit_val or None]
    if data.overfit_batches:
        train = val = train[: data.overfit_batches * cfg.train.batch_size]
    return (add_pseudo(cfg, train, val) if data.pseudo else train), val


def write_fold_file(cfg: Config) -> Path | None:
    """Write the fold file that the settings ask for, where it does not exist yet; returns its path where it did."""
    data = cfg.data
    path = Path(data.fold_file)
    if not data.fold_file or data.holdout or path.exists():
        return None
    found = read_split(cfg, "train")
    save_folds(path, found, data.n_folds, data.split_seed, _strata(cfg, found))
    return path


def _strata(cfg: Config, records: Sequence[Record]) -> dict[str, str] | None:
    if not cfg.data.stratify:
        return None
    subjects = sorted({record.subject for record in records})
    return read_strata(Path(cfg.data.data_root) / "meta_data.xlsx", subjects, cfg.data.stratify)
