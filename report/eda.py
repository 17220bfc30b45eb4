"""A page about a data set: counts, sizes, grey values, areas, overlaps, positions, subjects, and what looks wrong.

It is made of the same parts as a report (report/page.py) and opens in the same way; its viewer shows labels alone.
"""

from __future__ import annotations

import base64
import csv
import io
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from config import Config
from dataset.check import check_data
from dataset.findings import below
from dataset.images import read_image
from dataset.layouts import SPLITS, find_layout, has_split, pair_split, with_classes
from dataset.statistics import GRID, Item, Statistics, Table, items_of, measure_all, sum_up
from dataset.subjects import Column, read_columns
from dataset.suspects import Deviations, Suspect, deviations, odd_classes, odd_sides
from engine.files import FileProblem, write_text
from engine.progress import progress
from report.case import pack_case, script
from report.page import PAGE, SUMMARY, WORST, check_output
from report.page import replaced as replaced
from report.sources import true_runs

SUSPECTS = "suspects.csv"
"""Beside the page: all of them."""
META = "meta_data.xlsx"
"""Table of the subjects in data_root."""
MOST_ROWS = 300
"""Of a table on the page."""
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
"""Of a class's areas: ends of the thin line and the thick one, and the dot."""
MEAN_BINS = 64
"""Of the images' mean grey values."""


@dataclass(frozen=True)
class Exploration:
    """What is known of a data set."""

    cfg: Config
    """Its settings, with the classes' own names."""
    items: tuple[Item, ...]
    statistics: Statistics
    table: Table
    deviations: Deviations
    suspects: tuple[Suspect, ...]
    """Errors first, then what is no matter of degree, then the farthest from the usual."""
    columns: tuple[Column, ...]
    """Of the table of subjects."""


def explore(cfg: Config, workers: int) -> Exploration:
    """Look at every image and label of data_root, in any layout.

    Args:
        cfg: `classes` auto takes those of the labels.
        workers: processes that measure; 0 measures in this one.

    Raises:
        ConfigProblem: the classes don't fit the layout.
        FileProblem: there are no images, or no layout fits.
    """
    cfg = with_classes(cfg)
    items = items_of(cfg)
    statistics = sum_up(measure_all(items, cfg.data.classes, workers), cfg.data.classes)
    table = statistics.table()
    found = deviations(table)
    columns, problems = _columns(cfg, statistics)
    suspects = [*problems, *_faults(cfg, items, workers), *odd_sides(statistics, table)]
    suspects += odd_classes(table, cfg.data.classes, found)
    suspects.sort(key=lambda one: (one.severity, -(one.score or np.inf)))
    return Exploration(cfg, tuple(items), statistics, table, found, tuple(suspects), tuple(columns))


def _columns(cfg: Config, statistics: Statistics) -> tuple[list[Column], list[Suspect]]:
    path = Path(cfg.data.data_root) / META
    try:
        return read_columns(path, statistics.subjects) if path.exists() else [], []
    except FileProblem as problem:
        return [], [Suspect("unreadable table", "", "", str(problem), None)]


def _faults(cfg: Config, items: Sequence[Item], workers: int) -> list[Suspect]:
    """What dataset/check.py finds."""
    data, root = cfg.data, Path(cfg.data.data_root)
    pairs = {split: pair_split(cfg, split) for split in SPLITS if has_split(cfg, split)}
    cache = Path(data.cache_dir or root / "cache") / "check.json"
    alike = find_layout(cfg) == "competition"
    verdict = check_data(
        root, data.classes, None, cache, max(workers, 1), pairs=pairs, exclude=data.exclude, alike=alike
    )
    image_of = {below(root, path): item.path for item in items for path in item.record.label_files}
    image_of |= {item.path: item.path for item in items}
    return [
        Suspect(fault.kind, image_of.get(fault.path, ""), "", f"{fault.path}: {fault.detail}", None, fault.severity)
        for fault in verdict.faults
    ]


def shown_first(found: Exploration, n: int | None) -> list[Item]:
    """`n` images (None: all): the suspicious ones in their order, then those with the farthest size or place."""
    by_path = {item.path: item for item in found.items}
    scores = np.fmax(found.deviations.size, found.deviations.place)
    farthest = np.argsort(-np.nan_to_num(scores).max(1, initial=0.0), kind="stable")
    wanted = [*(one.image for one in found.suspects if one.image), *(found.table.items[k].path for k in farthest)]
    return [by_path[path] for path in dict.fromkeys([*wanted, *by_path])][:n]


def write_eda(output: Path, found: Exploration, worst: int | None = WORST) -> Path:
    """Write the page and return its index.html; a report that lies there is replaced, anything else never is.

    Args:
        worst: images that its viewer holds, see `shown_first`; None holds all.

    Raises:
        FileProblem: `output` holds something else.
    """
    check_output(output)
    classes, files = found.cfg.data.classes, dict[str, str]()
    with replaced(output) as folder:
        for path in sorted(PAGE.iterdir()):
            shutil.copyfile(path, folder / path.name)
        chosen = shown_first(found, worst)
        for number, item in progress(enumerate(chosen, 1), "pictures", len(chosen), "images"):
            if text := case_of(item, classes):
                files[item.path] = f"cases/{number:04}.js"
                write_text(folder / files[item.path], text)
        write_text(folder / SUSPECTS, suspects_csv(found.suspects))
        write_text(folder / SUMMARY, script("Report.showData", summary_of(found, files)))
    return output / "index.html"


def case_of(item: Item, classes: Sequence[str]) -> str:
    """The script of one image, see report/case.py; empty where it can't be read. No label is one that shows nothing."""
    try:
        image = read_image(item.record.image)
    except FileProblem:
        return ""
    try:
        runs = true_runs(item.record, classes)
    except FileProblem:
        runs = None
    return pack_case(item.path, image, [None, runs or [np.zeros((0, 2), np.int64)] * len(classes)])


def suspects_csv(suspects: Sequence[Suspect]) -> str:
    """Header `severity,kind,image,class,units,detail`, a row for each."""
    text = io.StringIO()
    rows = [
        (one.severity, one.kind, one.image, one.label, "" if one.score is None else f"{one.score:.2f}", one.detail)
        for one in suspects
    ]
    head = ("severity", "kind", "image", "class", "units", "detail")
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def summary_of(found: Exploration, files: Mapping[str, str]) -> dict[str, Any]:
    """What the page shows, as plain values for JSON.

    Args:
        files: image -> its script, of those that the viewer holds, in its order.
    """
    statistics, classes = found.statistics, found.cfg.data.classes
    notes: dict[str, list[str]] = {path: [] for path in files}
    for one in found.suspects:
        notes.get(one.image, []).append(f"{one.kind}{f' of {one.label}' if one.label else ''}: {one.detail}.")
    splits = [split for split in SPLITS if statistics.images[split]]
    return {
        "title": f"Data: {Path(found.cfg.data.data_root).resolve().name}",
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "layout": find_layout(found.cfg),
        "classes": classes,
        # For the viewer: labels are what it shows of its one source.
        "labelled": False,
        "shows": "Labels",
        "sources": [{"title": "Labels", "scores": None}],
        "cases": [{"name": path, "subject": "", "file": file, "note": " ".join(notes[path])}
                  for path, file in files.items()],
        "bones": [{"case": one.image, "focus": classes.index(one.label)} for one in found.suspects
                  if one.label and one.image in files],
        "images": len(found.items),
        "splits": [{"name": split, "images": statistics.images[split], "labels": statistics.labels[split],
                    "subjects": len(statistics.subjects[split])} for split in splits],
        "sizes": [{"split": split, "height": height, "width": width, "images": count}
                  for (split, height, width), count in statistics.sizes.most_common(MOST_ROWS)],
        "levels": [{"split": split, "shares": _shares(statistics.levels[split])} for split in splits],
        "means": [{"split": split, "counts": statistics.means[split].reshape(MEAN_BINS, -1).sum(1).tolist()}
                  for split in splits],
        "areas": class_rows(found),
        "overlaps": overlap_rows(found),
        "several": _ratio(statistics.several, statistics.labelled),
        "maps": maps_of(statistics),
        "columns": [column.record() for column in found.columns],
        "kinds": [{"severity": severity, "kind": kind, "count": count} for (severity, kind), count in
                  Counter((one.severity, one.kind) for one in found.suspects).items()],
        "suspects": [{"kind": one.kind, "severity": one.severity, "image": one.image, "label": one.label,
                      "detail": one.detail, "score": one.score} for one in found.suspects[:MOST_ROWS]],
    }  # fmt: skip


def class_rows(found: Exploration) -> list[dict[str, Any]]:
    """A row for each class: in how many labels, areas, the side of a square of that area, grey value."""
    statistics, rows = found.statistics, []
    for k, name in enumerate(statistics.classes):
        shown = found.table.pixels[:, k] > 0
        pixels, shares = found.table.pixels[shown, k], found.table.areas[shown, k]
        rows.append({
            "name": name,
            "labels": int(statistics.shown[k]),
            "pixels": [float(v) for v in np.quantile(pixels, QUANTILES)] if len(pixels) else None,
            "share": float(np.median(shares)) if len(shares) else None,
            "sides": [float(v) for v in np.quantile(np.sqrt(shares), QUANTILES)] if len(shares) else None,
            "grey": _ratio(float(statistics.greys[k]), int(statistics.shown[k])),
        })
    return rows


def overlap_rows(found: Exploration) -> list[dict[str, Any]]:
    """A row for each two classes that overlap, the largest share of the smaller one first."""
    statistics, total = found.statistics, found.table.pixels.sum(0)
    rows = [
        {
            "a": statistics.classes[i],
            "b": statistics.classes[j],
            "labels": int(statistics.paired[i, j]),
            "pixels": statistics.pairs[i, j] / statistics.paired[i, j],
            "share": statistics.pairs[i, j] / min(total[i], total[j]),
        }
        for i, j in np.argwhere(np.triu(statistics.pairs)).tolist()
    ]
    return sorted(rows, key=lambda row: -row["share"])[:MOST_ROWS]


def maps_of(statistics: Statistics) -> list[dict[str, Any]]:
    """A position map of all classes together and of each: PNG, and the share of the labels in its brightest cell."""
    labels = sum(statistics.labels.values())
    if not labels:
        return []
    maps = zip(("all classes", *statistics.classes), (statistics.heat.sum(0), *statistics.heat), strict=True)
    return [{"name": name, "most": float(heat.max()) / labels, "image": _png(heat)} for name, heat in maps]


def _png(heat: NDArray[np.int64]) -> str:
    """A map of counts as data URL: viridis (told apart with any colour vision) from none to the most."""
    grey = np.rint(heat * (255 / max(int(heat.max()), 1))).astype(np.uint8)
    assert grey.shape == (GRID, GRID)
    data = cv2.imencode(".png", cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS))[1].tobytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def _shares(levels: NDArray[np.int64]) -> list[float]:
    return [round(float(share), 6) for share in levels / max(int(levels.sum()), 1)]


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
