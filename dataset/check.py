"""The look at every file before a run: what is damaged, missing, double, mirrored or on both sides of a split."""

from __future__ import annotations

import csv
import io
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from dataset.findings import Fault, Finding, below, look_at, recall, remember, stamp_of
from dataset.readers import Pairs, Record, pair_competition
from engine.files import write_text
from engine.progress import progress

__all__ = ["Fault", "Summary", "Verdict", "check_data", "table", "write_bad_files"]

COMMON = 0.9
"""What this share of the images has (a size, a class), the others are expected to have too."""

SHOWN = 3
"""Faults of each kind that `table` shows."""


@dataclass(frozen=True)
class Summary:
    """What was looked at."""

    images: int
    labels: int
    subjects: int
    sizes: Mapping[tuple[int, int], int]
    """Height and width -> readable images."""
    seconds: float
    cached: int
    """Images whose finding was remembered."""


@dataclass(frozen=True)
class Verdict:
    """What `check_data` found."""

    faults: tuple[Fault, ...]
    """Errors first, then by kind and path."""
    summary: Summary

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return all(fault.severity != "error" for fault in self.faults)


@dataclass(frozen=True)
class Look:
    """An image, its place in the tree and its finding."""

    split: str
    record: Record
    path: str
    """Of the image, below the data set."""
    label: str
    """Of the label; empty where there is none."""
    finding: Finding


def check_data(
    root: Path,
    classes: Sequence[str],
    folds: Mapping[str, Collection[str]] | None,
    cache: Path | None,
    workers: int,
    *,
    splits: Sequence[str] = ("train", "test"),
    pairs: Mapping[str, Pairs] | None = None,
    exclude: Collection[str] = (),
    alike: bool = True,
) -> Verdict:
    """Look at every image and label of a data set, and at how they go together.

    A class that a label lacks is an error where at least 90 % of the labels show it, as all of the competition's do,
    or none; between these it is one warning for the class. An odd image size is a warning on the same terms.

    Args:
        root: holds all files; of a competition tree the test split may be absent, or have no labels.
        folds: fold's name -> its subjects; None where there are no folds to check.
        cache: JSON file that remembers findings by path, bytes and time of change; None remembers nothing. A damaged
            file is ignored and written anew; one that can't be written is told of on stderr.
        workers: threads (OpenCV decodes without the GIL).
        splits: of a competition tree; all but test must have images and labels.
        pairs: split -> its images and labels, instead of those of a competition tree.
        exclude: images not to look at, as subject/stem.
        alike: whether every label is to show every class, and every subject to have two images, one of each hand, as
            the competition's; else a label that shows nothing is a warning.

    Raises:
        FileProblem: the disk is full. What is wrong with the data is never raised.
    """
    start = time.monotonic()
    pairs = pairs or {split: pair_competition(root, split) for split in splits}
    chosen = [(split, record) for split in pairs for record in pairs[split].records if record.key not in exclude]
    known = recall(cache, classes) if cache else {}
    found, todo = dict[str, Finding](), dict[str, tuple[Record, list[int]]]()
    for _, record in chosen:
        path, stamp = below(root, record.image), stamp_of(record)
        if path in known and known[path].stamp == stamp:
            found[path] = known[path]
        else:
            todo[path] = record, stamp
    cached = len(found)
    try:
        found.update(_findings(root, classes, todo, workers))
    finally:  # after Ctrl-C too: the next call goes on from there
        if cache and (todo or len(known) != len(found)):
            remember(cache, classes, found)
    looks = [_look(root, split, record, found) for split, record in chosen]
    faults = [
        *(fault for split in pairs for fault in _partners(root, split, pairs[split])),
        *(fault for look in looks for fault in look.finding.faults),
        *_sizes(looks),
        *_classes(looks, classes, alike),
        *_names(looks),
        *_doubles(looks),
        *_subjects(pairs, alike),
        *_folds(folds or {}),
        *_sides(looks, alike),
    ]
    sizes = Counter((look.finding.height, look.finding.width) for look in looks if look.finding.pixels)
    labels = sum(look.record.label is not None for look in looks)
    subjects = len({look.record.subject for look in looks})
    summary = Summary(len(looks), labels, subjects, sizes, time.monotonic() - start, cached)
    return Verdict(tuple(sorted(faults, key=lambda f: (f.severity, f.kind, f.path, f.detail))), summary)


def write_bad_files(path: Path, verdict: Verdict) -> None:
    """Write the faults as CSV: header `severity,kind,path,detail`; the header alone where nothing is wrong."""
    text = io.StringIO()
    rows = [(fault.severity, fault.kind, fault.path, fault.detail) for fault in verdict.faults]
    csv.writer(text, lineterminator="\n").writerows([("severity", "kind", "path", "detail"), *rows])
    write_text(path, text.getvalue())


def table(verdict: Verdict, shown: int = SHOWN) -> str:
    """What the screen shows: what was looked at, how often each kind of fault occurs, `shown` of each, the verdict."""
    seen = verdict.summary
    sizes = sorted(seen.sizes.items(), key=lambda item: -item[1])
    common = ", ".join(f"{count} of {width} x {height}" for (height, width), count in sizes[:SHOWN])
    more = f", {len(sizes) - SHOWN} more sizes" if len(sizes) > SHOWN else ""
    lines = [
        f"data: {seen.images} images ({common or 'none readable'}{more}), {seen.labels} labels, "
        f"{seen.subjects} subjects; {seen.seconds:.1f} s, {seen.cached} images unchanged since the last look"
    ]
    kinds = Counter((fault.severity, fault.kind) for fault in verdict.faults)
    for (severity, kind), count in kinds.items():
        lines.append(f"{severity:8} {kind}: {count}")
        some = [fault for fault in verdict.faults if (fault.severity, fault.kind) == (severity, kind)]
        lines += [f"         {fault.path}: {fault.detail}" for fault in some[:shown]]
        lines += [f"         and {count - shown} more"] if count > shown else []
    errors = sum(fault.severity == "error" for fault in verdict.faults)
    found = f"errors {errors}, warnings {len(verdict.faults) - errors}"
    lines.append(f"data: {found}" if verdict.faults else "data: nothing is wrong")
    return "\n".join(lines)


def _findings(
    root: Path, classes: Sequence[str], todo: Mapping[str, tuple[Record, list[int]]], workers: int
) -> Iterator[tuple[str, Finding]]:
    executor = ThreadPoolExecutor(max(workers, 1))
    try:
        futures = {executor.submit(look_at, root, image, classes, stamp): path for path, (image, stamp) in todo.items()}
        for future in progress(as_completed(futures), "checking", len(todo), "images"):
            yield futures[future], future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _look(root: Path, split: str, record: Record, found: Mapping[str, Finding]) -> Look:
    path = below(root, record.image)
    return Look(split, record, path, below(root, record.label) if record.label else "", found[path])


def _partners(root: Path, split: str, pairs: Pairs) -> Iterator[Fault]:
    if not pairs.records and split != "test":
        yield Fault("error", "no images", f"{split}/DCM", "holds no images: point --data_root at the folder above.")
    for record in pairs.unlabelled:
        label = pairs.wanted[record.image].removeprefix(f"{root}/")
        yield Fault("error", "image without label", below(root, record.image), f"add {label}, or remove the image.")
    for path in pairs.lone_labels:
        image = pairs.wanted[path].removeprefix(f"{root}/")
        yield Fault("error", "label without image", below(root, path), f"add {image}, or remove the label.")
    for path, why in pairs.faults:
        yield Fault("error", "label in doubt", below(root, path), why)


def _sizes(looks: Sequence[Look]) -> Iterator[Fault]:
    readable = [look for look in looks if look.finding.pixels]
    counts = Counter((look.finding.height, look.finding.width) for look in readable)
    for (height, width), count in counts.most_common(1):
        if count < COMMON * len(readable):
            return
        for look in readable:
            if (look.finding.height, look.finding.width) != (height, width):
                own = f"{look.finding.width} x {look.finding.height}"
                yield Fault("warning", "odd size", look.path, f"is {own}, others are {width} x {height}.")


def _classes(looks: Sequence[Look], classes: Sequence[str], alike: bool) -> Iterator[Fault]:
    labelled = [(look, look.finding.classes) for look in looks if look.finding.classes is not None]
    for look, shown in labelled:
        if not shown and not alike:
            yield Fault("warning", "empty label", look.label, "shows nothing: is it unfinished?")
    for name in classes if labelled else ():
        lacking = [look for look, shown in labelled if name not in shown]
        count = len(labelled) - len(lacking)
        said = f"{name} is shown by {count} of {len(labelled)} labels"
        if COMMON * len(labelled) <= count and alike:
            for look in lacking:
                detail = f"{said}, but not by this one: add it or exclude the image."
                yield Fault("error", "class missing", look.label, detail)
        elif count and lacking and (alike or len(classes) > 1):
            yield Fault("warning", "class in few labels", lacking[0].label, f"{said}: this is the first without.")
        elif not count:
            detail = f"{said}: set --classes to those that are there."
            yield Fault("error", "class in no label", labelled[0][0].label, detail)


def _names(looks: Sequence[Look]) -> Iterator[Fault]:
    for first, *others in _grouped(looks, lambda look: (look.split, look.record.name)):
        if others:
            detail = f"has the name of {_list(others)}, and the CSV tells images by their names: rename them."
            # Only the test split becomes a CSV for sure; training tells images by subject and name.
            yield Fault("error" if first.split == "test" else "warning", "double name", first.path, detail)


def _doubles(looks: Sequence[Look]) -> Iterator[Fault]:
    readable = [look for look in looks if look.finding.pixels]
    for first, *others in _grouped(readable, lambda look: (look.finding.height, look.finding.pixels)):
        if not others:
            continue
        leaks = len({(look.split, look.record.subject) for look in (first, *others)}) > 1
        why = "of another subject or split: a leak between them" if leaks else "of the same subject"
        detail = f"has the same pixels as {_list(others)}, {why}. Keep one."
        yield Fault("error" if leaks else "warning", "double pixels", first.path, detail)


def _subjects(pairs: Mapping[str, Pairs], alike: bool) -> Iterator[Fault]:
    counts = {split: Counter(record.subject for record in pairs[split].records) for split in pairs}
    for split, images in counts.items():
        for subject, count in images.items():
            if count != 2 and alike:
                detail = f"{count} images: a subject has two, one of each hand."
                yield Fault("warning", "subject without two images", f"{split}/DCM/{subject}", detail)
    for subject in sorted({subject for images in counts.values() for subject in images}):
        first, *others = [split for split in counts if subject in counts[split]]
        if others:
            detail = f"is in {', '.join(others)} too: a leak between them. Remove the subject from all but one."
            yield Fault("error", "subject in two splits", f"{first}/DCM/{subject}" if alike else subject, detail)


def _folds(folds: Mapping[str, Collection[str]]) -> Iterator[Fault]:
    places: dict[str, list[str]] = defaultdict(list)
    for fold, subjects in folds.items():
        for subject in set(subjects):
            places[subject].append(fold)
    for subject, names in places.items():
        if len(names) > 1:
            detail = f"is in folds {' and '.join(names)}: split by subject."
            yield Fault("error", "subject in two folds", subject, detail)


def _sides(looks: Sequence[Look], alike: bool) -> Iterator[Fault]:
    for look in looks:
        named = re.search(r"_([LR])$", look.record.image.stem)
        if named and look.finding.side and look.finding.side != named[1]:
            detail = f"its label shows the side {look.finding.side}: is it mirrored? Correct it or exclude the image."
            yield Fault("warning", "side against name", look.path, detail)
    for pair in _grouped(looks, lambda look: (look.split, look.record.subject)) if alike else ():
        if len(pair) == 2 and pair[0].finding.side == pair[1].finding.side != "":
            detail = f"its label and that of {pair[1].path} both show the side {pair[1].finding.side}: is one mirrored?"
            yield Fault("warning", "equal sides", pair[0].path, detail)


def _grouped(looks: Sequence[Look], key: Callable[[Look], Hashable]) -> list[list[Look]]:
    groups: dict[Hashable, list[Look]] = defaultdict(list)
    for look in looks:
        groups[key(look)].append(look)
    return list(groups.values())


def _list(looks: Sequence[Look]) -> str:
    more = f" and {len(looks) - SHOWN} more" if len(looks) > SHOWN else ""
    return ", ".join(look.path for look in looks[:SHOWN]) + more
