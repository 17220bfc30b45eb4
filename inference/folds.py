"""Several folds of one experiment, scored on the images that each has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inference.fold_scores import FILES, fold_scores
from inference.metrics import DiceTable, write_csv

VAL_DICE = "val_dice.csv"


def out_of_fold(folder: Path, folds: Sequence[Path]) -> DiceTable:
    """Dice of every labelled image by the fold that validated on it; writes folds.csv and oof.csv into `folder`.

    Prints what each fold reaches with their mean and deviation, which fold_scores.csv and .png hold too.

    Raises:
        FileProblem: a fold was not validated.
        ValueError: an image is in two folds.
    """
    tables = [DiceTable.from_images_csv(fold / VAL_DICE) for fold in folds]
    scores = fold_scores(folds, tables)
    rows = [(fold.name, len(table), f"{table.mean():.6f}") for fold, table in zip(folds, tables, strict=True)]
    first, *others = tables
    first.merge(others, [name for table in tables for name in table.names()])
    write_csv(folder / "folds.csv", [("fold", "images", "val_dice"), *rows, ("all", len(first), f"{first.mean():.6f}")])
    first.to_csv(folder / "oof.csv")
    first.images_to_csv(folder / VAL_DICE)
    scores.write(folder)
    print(f"{scores.text()}\nfolds: {folder / FILES[0]}, {folder / FILES[1]}")
    return first
