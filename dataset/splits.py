"""Training and validation records that keep both hands of a subject together: folds, fold files, hold-outs."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config import ConfigProblem, suggest
from dataset.readers import Record, composed
from engine.files import FileProblem, write_text

Split = tuple[list[Record], list[Record]]
"""Training and validation records."""

UNKNOWN = "unknown"
"""Stratum of subjects that the table does not tell of."""

QUANTILES = 4
"""Bins of equal counts that a column of numbers is cut into."""

ALIASES = {"sex": "성별", "age": "나이", "height": "키(신장)", "weight": "체중(몸무게)"}
"""English name -> name in the competition's meta_data.xlsx."""

KNOWN_BENT = frozenset(f"ID{number}" for number in (*range(274, 320), 321))
"""The competition's training subjects with bent wrists, as its teams found; its table has no column for them."""

ALWAYS_TRAINS = -1
"""Fold of subjects that never validate."""

DIRT = re.compile(r"_x0008_|[\x00-\x1f]")
"""What cells of the competition's table carry beside their text: the backspace, as itself and as Excel escapes it."""


def fold_split(
    records: Sequence[Record], n_folds: int, fold: int, seed: int, strata: Mapping[str, str] | None = None
) -> Split:
    """Training and validation records of fold `fold`: subjects are shuffled by `seed` and dealt out in turn.

    Args:
        strata: subject -> stratum, see `read_strata`. Each stratum is dealt out after the other, so that the numbers of
            its subjects in the folds differ by one at most, as those of all subjects do.

    Raises:
        ConfigProblem: fewer subjects than folds.
    """
    return _split(records, _deal(records, n_folds, seed, strata), fold)


def save_folds(
    path: Path, records: Sequence[Record], n_folds: int, seed: int, strata: Mapping[str, str] | None = None
) -> None:
    """Write the folds of `fold_split` as CSV: header `subject,fold`, sorted by subject.

    Raises:
        ConfigProblem: fewer subjects than folds.
    """
    fold_of = _deal(records, n_folds, seed, strata)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("subject", "fold"), *sorted(fold_of.items())])
    write_text(path, text.getvalue())


def load_folds(path: Path, records: Sequence[Record], fold: int) -> Split:
    """Training and validation records of fold `fold` as the CSV of `save_folds` has them, which may be edited.

    Columns beside `subject` and `fold` are ignored. Subjects of fold -1 always train.

    Raises:
        FileProblem: the file can't be read or lacks a column.
        ConfigProblem: a subject twice, missing or not of the data, a fold that is no number or has no subjects.
    """
    fold_of = _read_folds(path)
    subjects = {record.subject for record in records}
    if strange := sorted(fold_of.keys() - subjects):
        near = suggest(strange[0], subjects)
        raise ConfigProblem(f"{path}: no training subject is called {strange[0]!r}{near}: correct or remove its line.")
    if missing := sorted(subjects - fold_of.keys()):
        raise ConfigProblem(
            f"{path}: subject {missing[0]} ({len(missing)} in all) of the data is missing: add a line for it; fold "
            f"{ALWAYS_TRAINS} always trains."
        )
    found = set(fold_of.values()) - {ALWAYS_TRAINS}
    for number in range(max(found, default=0) + 1):
        if number not in found:
            raise ConfigProblem(f"{path}: fold {number} has no subjects: number the folds from 0 without gaps.")
    if fold not in found:
        raise ConfigProblem(f"fold is {fold}, but {path} has {len(found)} folds, counted from 0: change --fold or it.")
    train, val = _split(records, fold_of, fold)
    if not train:
        raise ConfigProblem(f"{path}: all subjects are in fold {fold}, so none trains: give some another fold.")
    return train, val


def hold_out(records: Sequence[Record], path: Path) -> Split:
    """Training and validation records, where a text file lists those that validate.

    Each line names a subject, a subject/stem or an image's file name. Blank lines and what follows a `#` don't count.

    Raises:
        FileProblem: the file can't be read.
        ConfigProblem: an entry matches nothing or several images, one side is empty, or a subject is on both sides.
    """
    held_out: set[Record] = set()
    for entry in listed_in(path):
        held_out.update(_named(entry, records, path))
    train = [record for record in records if record not in held_out]
    val = [record for record in records if record in held_out]
    if not val or not train:
        what = "every image" if val else "no image"
        raise ConfigProblem(f"{path} lists {what}: name the subjects that validate, and leave others to train.")
    check_disjoint(train, val)
    return train, val


def cut(records: Sequence[Record], shares: Mapping[str, float], seed: int) -> dict[str, list[Record]]:
    """Splits of about these shares of the images.

    Subjects are shuffled by `seed`, and each goes to the split that lacks most images.

    Args:
        shares: split -> share; together 1.

    Raises:
        ConfigProblem: a split gets no subject.
    """
    count = Counter(record.subject for record in records)
    subjects = sorted(count)
    lacking = {split: share * len(records) for split, share in shares.items()}
    split_of: dict[str, str] = {}
    for i in np.random.default_rng(seed).permutation(len(subjects)):
        split = max(lacking, key=lambda name: lacking[name])
        split_of[subjects[i]] = split
        lacking[split] -= count[subjects[i]]
    found = {split: [record for record in records if split_of[record.subject] == split] for split in shares}
    for split, share in shares.items():
        if share and not found[split]:
            raise ConfigProblem(
                f"{split} gets none of the {len(subjects)} subjects for its share of {share:g}: raise it or add images."
            )
    return found


def listed_in(path: Path) -> list[str]:
    """The entries of a text file, one a line, in composed Unicode; blank lines and what follows a `#` don't count.

    Raises:
        FileProblem: the file can't be read.
    """
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in _text(path).splitlines()]
    return [composed(line) for line in lines if line]


def check_disjoint(train: Sequence[Record], val: Sequence[Record]) -> None:
    """Raise ConfigProblem where a subject is on both sides: its validation Dice would be a memory, not a test."""
    shared = {record.subject for record in train} & {record.subject for record in val}
    if shared:
        raise ConfigProblem(
            f"subjects {', '.join(sorted(shared)[:5])} ({len(shared)} in all) are in training and validation: split by "
            f"subject, and where a file lists the images, list both hands."
        )


def read_strata(meta: Path, subjects: Collection[str], columns: Sequence[str]) -> dict[str, str]:
    """Subject -> stratum: the values of the columns, joined.

    Columns are `sex`, `age`, `height`, `weight` (English for the competition's names), `bent`, or any other by its name
    in the table. Numbers of more than four values are cut into four bins of equal counts over `subjects`. Where the
    table has no column `bent`, `KNOWN_BENT` tells the competition's bent wrists; for other data, add the column.
    Subjects that the table lacks share the stratum "unknown", so do empty cells.

    Args:
        meta: .xlsx, or .csv in UTF-8, with one row for each subject and the subjects in a column `ID`.

    Raises:
        FileProblem: the table can't be read, has a subject twice, or none of `subjects`.
        ConfigProblem: no such column; names those that exist.
    """
    rows = read_table(meta)
    known = [subject for subject in subjects if subject in rows]
    if not known:
        raise FileProblem(f"{meta}: its column ID has none of the {len(subjects)} subjects: correct it or the folders.")
    values = {column: _column(meta, rows, column, known) for column in columns}
    told = {subject: ", ".join(f"{c} {values[c][subject]}" for c in columns) for subject in known}
    return {subject: told.get(subject, UNKNOWN) for subject in subjects}


def _deal(records: Sequence[Record], n_folds: int, seed: int, strata: Mapping[str, str] | None) -> dict[str, int]:
    """Subject -> fold."""
    subjects = sorted({record.subject for record in records})
    if len(subjects) < n_folds:
        raise ConfigProblem(f"n_folds is {n_folds}, but there are {len(subjects)} subjects: lower --n_folds.")
    shuffled = [subjects[i] for i in np.random.default_rng(seed).permutation(len(subjects))]
    # The sort is stable: one stratum after the other, each in the shuffled order.
    shuffled.sort(key=lambda subject: (strata or {}).get(subject, UNKNOWN))
    return {subject: place % n_folds for place, subject in enumerate(shuffled)}


def _split(records: Sequence[Record], fold_of: Mapping[str, int], fold: int) -> Split:
    train = [record for record in records if fold_of[record.subject] != fold]
    val = [record for record in records if fold_of[record.subject] == fold]
    check_disjoint(train, val)
    return train, val


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors put a byte order mark first
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from None
    except UnicodeDecodeError:
        raise FileProblem(f"{path} is no UTF-8 text: save it as UTF-8.") from None


def _read_folds(path: Path) -> dict[str, int]:
    reader = csv.DictReader(io.StringIO(_text(path)), skipinitialspace=True)
    if lacking := [name for name in ("subject", "fold") if name not in (reader.fieldnames or ())]:
        raise FileProblem(f"{path} has no column {lacking[0]!r}: its first line must be subject,fold, with commas.")
    fold_of: dict[str, int] = {}
    for row in reader:
        subject, fold = (row["subject"] or "").strip(), (row["fold"] or "").strip()
        where = f"{path}, line {reader.line_num}: subject {subject!r}"
        if subject in fold_of:
            raise ConfigProblem(f"{where} is there twice: remove one of the lines.")
        if not re.fullmatch(r"\d{1,9}|-1", fold, re.ASCII):
            raise ConfigProblem(f"{where} has fold {fold!r}: it must be a number from 0, or -1 to train always.")
        fold_of[subject] = int(fold)
    return fold_of


def _named(entry: str, records: Sequence[Record], path: Path) -> list[Record]:
    """The records that a line of a hold-out file means."""
    found = [record for record in records if entry in map(composed, (record.subject, record.key))]
    if found:
        return found
    found = [record for record in records if entry == composed(record.name)]
    if len(found) > 1:
        keys = " and ".join(record.key for record in found)
        raise ConfigProblem(f"{path}: {entry!r} may mean {keys}: write the one that you mean like this.")
    if not found:
        known = {name for record in records for name in (record.subject, record.key, record.name)}
        raise ConfigProblem(
            f"{path}: {entry!r} is no subject, subject/stem or image name of the data{suggest(entry, known)}: correct "
            f"or remove it."
        )
    return found


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Subject -> column -> cleaned text, "" where there is none."""
    import pandas  # here: half a second that only stratified folds need

    read = pandas.read_csv if path.suffix.casefold() == ".csv" else pandas.read_excel
    try:
        table = read(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise FileProblem(f"{path} does not exist: add it, or leave out --stratify.") from None
    except Exception as error:  # pandas and openpyxl raise many kinds for broken files, all mean the same to the user
        raise FileProblem(f"{path} is no readable table ({error}): save it again as .xlsx or as UTF-8 .csv.") from error
    if "ID" not in table.columns:
        raise FileProblem(f"{path} has no column 'ID', only {', '.join(table.columns)}: name that of the subjects so.")
    rows = [{str(name): _clean(cell) for name, cell in row.items()} for row in table.to_dict("records")]
    counts = Counter(row["ID"] for row in rows if row["ID"])
    if twice := [subject for subject, count in counts.items() if count > 1]:
        raise FileProblem(f"{path} has {twice[0]} in {counts[twice[0]]} rows: leave one row for each subject.")
    return {row["ID"]: row for row in rows if row["ID"]}


def _clean(cell: Any) -> str:
    return DIRT.sub("", str(cell)).strip()


def _column(meta: Path, rows: Mapping[str, Mapping[str, str]], column: str, subjects: Sequence[str]) -> dict[str, str]:
    """Subject -> value, of a column given by its own name or an alias."""
    names = {name.casefold(): name for name in next(iter(rows.values()))}
    own = next((names[n] for n in (column.casefold(), ALIASES.get(column.casefold(), "")) if n in names), None)
    if own is not None:
        return _binned({subject: rows[subject][own] for subject in subjects})
    if column.casefold() == "bent":
        return {subject: "yes" if subject in KNOWN_BENT else "no" for subject in subjects}
    aliases = [alias for alias, name in ALIASES.items() if name.casefold() in names]
    exist = [name for name in dict.fromkeys([*aliases, "bent", *names.values()]) if name != "ID"]
    raise ConfigProblem(
        f"stratify is {column!r}, but {meta} has no such column{suggest(column, exist)}: choose from "
        f"{', '.join(exist)}."
    )


def _binned(cells: Mapping[str, str]) -> dict[str, str]:
    """Numbers become their quantile's bin; in a column that is mostly numbers, other text is unknown."""
    numbers = {subject: number for subject, cell in cells.items() if (number := number_of(cell)) is not None}
    filled = sum(1 for cell in cells.values() if cell)
    if 2 * len(numbers) <= filled or len(set(numbers.values())) <= QUANTILES:
        return {subject: cell.casefold() or UNKNOWN for subject, cell in cells.items()}
    edges = np.quantile(list(numbers.values()), np.arange(1, QUANTILES) / QUANTILES)
    bins = {subject: 1 + int(np.searchsorted(edges, number)) for subject, number in numbers.items()}
    return {subject: f"{bins[subject]}/{QUANTILES}" if subject in bins else UNKNOWN for subject in cells}


def number_of(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
