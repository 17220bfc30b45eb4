"""What lies at data_root before a run: phantoms that are drawn where asked for, and a look at every file."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from config import Config
from dataset.check import Verdict, check_data, table, write_bad_files
from dataset.layouts import find_layout, has_split, pair_split, read_split
from dataset.phantom import RECORD, PhantomSet, phantom_matches, write_phantom_set
from dataset.pseudo import pseudo_records
from dataset.readers import KNOWN_BAD_LABELS, Record
from dataset.selection import select
from dataset.switches import switches_of
from engine.files import FileProblem, locked

PARTS = {"train", "test", "meta_data.xlsx", "phantom.json", "cache", "jpeg"}
"""All that a phantom set holds, and what we make of it."""


def missing_phantoms(cfg: Config) -> PhantomSet | None:
    """What to draw at data_root: None where no phantoms are asked for, or just these lie there already.

    Raises:
        FileProblem: data_root holds something else that --overwrite does not cover.
        ConfigProblem: `phantom_styles` names one that is none.
    """
    if not cfg.phantom.phantom:
        return None
    root, chosen = Path(cfg.data.data_root), cfg.phantom
    wanted = PhantomSet(
        chosen.phantom_train,
        chosen.phantom_test,
        chosen.phantom_size,
        chosen.phantom_seed,
        chosen.phantom_styles,
        chosen.phantom_sides,
    )
    if phantom_matches(root, wanted):
        return None
    # --overwrite covers what we have drawn with other settings, as long as nothing else lies there.
    ours = (root / RECORD).exists() and {path.name for path in root.iterdir()} <= PARTS
    if root.exists() and not (ours and cfg.run.overwrite):
        remedy = "give --overwrite to draw them anew, or another --data_root" if ours else "give another --data_root"
        raise FileProblem(f"{root} exists and does not hold the phantoms asked for: {remedy}.")
    return wanted


def prepare_data(cfg: Config) -> None:
    """Draw the phantom set where the settings ask for one and it does not lie there already; one process at a time."""
    root = Path(cfg.data.data_root)
    if not missing_phantoms(cfg):
        return
    lock = root.with_name(f".{root.name}.lock")
    with locked(lock, f"another run draws {root}: waiting"):
        try:
            if wanted := missing_phantoms(cfg):
                if root.exists():
                    shutil.rmtree(root)
                write_phantom_set(root, wanted, workers=os.cpu_count() or 1)  # before training: all cores are free
                print(f"phantom data: {root}")
        finally:
            lock.unlink(missing_ok=True)  # who waits for it looks again


def undrawn(subjects: int) -> list[Record]:
    """Records of phantoms that are not there yet, to size a run."""
    return [Record(Path(f"{s}/{side}.png"), Path(f"{s}/{side}.json"), str(s)) for s in range(subjects) for side in "LR"]


def look_at_data(cfg: Config) -> Verdict:
    """Check the files of data_root and show what is wrong; the list goes to <output_dir>/bad_files.csv."""
    root, data, switches = Path(cfg.data.data_root), cfg.data, switches_of(cfg)
    if not pair_split(cfg, "train").records:
        read_split(cfg, "train")  # raises: there is nothing to look at
    if data.pseudo:
        pseudo_records(cfg)  # raises: what is wrong there must not be taken for missing files below
    try:
        train, val = select(cfg, switches)
        val = [] if data.overfit_batches else val  # the same images on both sides, as asked for
        folds = {side: {r.subject for r in part} for side, part in (("training", train), ("validation", val))}
    except FileProblem:
        folds = None  # of files that are missing, which the check itself lists
    held_out = [data.holdout] if data.holdout and has_split(cfg, data.holdout) else []
    splits = ("train", *held_out, "test")
    verdict = check_data(
        root,
        data.classes,
        folds,
        Path(data.cache_dir or root / "cache") / "check.json",
        os.cpu_count() or 1,
        pairs={split: pair_split(cfg, split) for split in splits},
        exclude={*data.exclude, *(KNOWN_BAD_LABELS if switches.exclude else ())},
        alike=find_layout(cfg) == "competition"  # other styles crop
        and (cfg.phantom.phantom_styles, cfg.phantom.phantom_sides) == (("competition",), "both"),
    )
    print(table(verdict), flush=True)
    if "val" not in splits and has_split(cfg, "val"):
        print("data: the split val is not used: give --holdout val to validate on it.", flush=True)
    if verdict.faults:
        path = Path(cfg.run.output_dir) / "bad_files.csv"
        write_bad_files(path, verdict)
        print(f"list: {path}", flush=True)
    return verdict


def may_train(cfg: Config) -> bool:
    """Whether the data is fit to train on; `bad_image` skip forgives files that can't be read."""
    forgiven = {"unreadable image", "unreadable label"} if cfg.data.bad_image == "skip" else set()
    errors = {fault.kind for fault in look_at_data(cfg).faults if fault.severity == "error"} - forgiven
    if errors:
        print(
            f"error: the data has errors ({', '.join(sorted(errors))}): correct or --exclude the files, or give "
            f"--no_check_data.",
            file=sys.stderr,
        )
    return not errors
