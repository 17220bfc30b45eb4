"""Which labelled records train, and which validate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config import Config
from dataset.readers import Record, leave_out, read_competition
from dataset.splits import check_disjoint, fold_split, hold_out, load_folds, read_strata, save_folds
from dataset.switches import Switches


def select(
    cfg: Config, switches: Switches, records: Sequence[Record] | None = None
) -> tuple[list[Record], list[Record]]:
    """Training and validation records as the settings ask: a hold-out, a fold file, or the folds of `split_seed`.

    Excluded images are left out of both sides after the split, so that this moves no subject to another fold.

    Args:
        records: all labelled ones; None reads those of data_root.
    """
    data, root = cfg.data, Path(cfg.data.data_root)
    found = read_competition(root, "train") if records is None else list(records)
    if data.holdout and (root / data.holdout / "DCM").is_dir():
        train, val = found, read_competition(root, data.holdout)
        check_disjoint(train, val)
    elif data.holdout:
        train, val = hold_out(found, Path(data.holdout))
    elif data.fold_file and Path(data.fold_file).exists():
        train, val = load_folds(Path(data.fold_file), found, data.fold)
    else:
        train, val = fold_split(found, data.n_folds, data.fold, data.split_seed, _strata(cfg, found))
    kept = set(leave_out([*train, *val], data.exclude, known_bad=switches.exclude))
    return [record for record in train if record in kept], [record for record in val if record in kept]


def write_fold_file(cfg: Config) -> Path | None:
    """Write the fold file that the settings ask for, where it does not exist yet; returns its path where it did."""
    data = cfg.data
    path = Path(data.fold_file)
    if not data.fold_file or data.holdout or path.exists():
        return None
    found = read_competition(Path(data.data_root), "train")
    save_folds(path, found, data.n_folds, data.split_seed, _strata(cfg, found))
    return path


def _strata(cfg: Config, records: Sequence[Record]) -> dict[str, str] | None:
    if not cfg.data.stratify:
        return None
    subjects = sorted({record.subject for record in records})
    return read_strata(Path(cfg.data.data_root) / "meta_data.xlsx", subjects, cfg.data.stratify)
