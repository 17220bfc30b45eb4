"""The record of all experiments (engine/leaderboard.py) as plain values for JSON, for the page of some of them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from engine import leaderboard
from engine.files import FileProblem
from engine.leaderboard import AT_THE_END, COLUMNS, FALLING, Word
from report.sources import Source

QUEUE = Path("log/queue")
"""Where scripts/schedule.py has the queue unless told otherwise."""
MOST_ROWS = 300
"""Experiments, those with the highest Dice: a page of a thousand would take half a megabyte and long to draw."""
MOST_SETTINGS = 12
"""Columns of settings, those that most experiments have changed."""
LONGEST = 60
"""Characters of a value."""
DIGITS = 5
"""Of a Dice and of hours."""


def record(sources: Sequence[Source], output: Path) -> dict[str, Any] | None:
    """All experiments in the folder of the first source; None where there are no others, or no experiment at all.

    {columns, falling (columns that are sorted from the highest), rows (a value a column: number, text or None), own
    (positions of the sources' rows), links (position -> address of its report, seen from `output`), same (setting ->
    value, of all alike), total, left_out (settings that have no column)}.
    """
    folders = [source.folder for source in sources if source.folder and source.cfg]
    if not folders:
        return None
    folder = folders[0].parent
    mine = {each.name for each in folders if each.resolve().parent == folder.resolve()}
    found = leaderboard.ordered(leaderboard.read_rows(folder, _words()), "dice")
    others = [row for row in found if row.experiment not in mine]
    if not others:
        return None
    best = {row.experiment for row in others[: MOST_ROWS - len(mine)]}
    rows = [row for row in found if row.experiment in best | mine]
    names, same = leaderboard.differing(rows)
    changed = Counter(name for row in rows for name in row.changed)
    kept = sorted(names, key=lambda name: -changed[name])[:MOST_SETTINGS]
    columns = [*(name for name in COLUMNS if name not in AT_THE_END), *(n for n in names if n in kept), *AT_THE_END]
    links = {position: _link(folder / row.experiment, output) for position, row in enumerate(rows)}
    return {
        "columns": columns,
        "falling": FALLING,
        "rows": [[_value(name, row.value(name)) for name in columns] for row in rows],
        "own": [position for position, row in enumerate(rows) if row.experiment in mine],
        "links": {position: link for position, link in links.items() if link},
        "same": {name: _value(name, value) for name, value in same.items()},
        "total": len(found),
        "left_out": len(names) - len(kept),
    }


def _words() -> dict[str, list[Word]]:
    """What the queue and log/ say; nothing where the queue is damaged: that is no reason to have no page."""
    try:
        return leaderboard.said_elsewhere(QUEUE)
    except FileProblem:
        return {}


def _value(name: str, value: Any) -> float | str | None:
    """A column's value as JSON has it."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            return None
        return round(value, DIGITS) if name in COLUMNS else value
    return _short(leaderboard.shown(value)) or None


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _link(folder: Path, output: Path) -> str:
    """Address of an experiment's own report, relative, so that folders may be moved together; empty without one."""
    index = folder / "report" / "index.html"
    own = index.parent == output.resolve()
    return quote(os.path.relpath(index, output.resolve())) if index.exists() and not own else ""
