"""A report: one folder with index.html that opens from the file system in any browser, without server and network.

    index.html, *.js, *.css      the same in every report
    summary.js                   what the first page shows
    cases/0001.js …              one image each, loaded when it is looked at
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from dataset.images import image_shape, read_image
from dataset.readers import Record
from engine.files import FileProblem, write_text
from engine.progress import progress
from inference.csv_scores import count_runs
from inference.metrics import dice_from_counts
from report import leaderboard
from report.case import pack_case, script
from report.sources import Source, shared_records, true_runs
from report.summary import Scores, describe, differences

WORST = 20
"""Images that a report holds by default."""
SUMMARY = "summary.js"
PAGE = Path(__file__).parent / "page"


def write_report(output: Path, sources: Sequence[Source], worst: int | None = WORST) -> Path:
    """Write a report and return its index.html; a report that lies there is replaced, anything else never is.

    Args:
        sources: as `report.sources` finds them, of the same classes.
        worst: images to hold, see `worst_images`; None holds all.

    Raises:
        FileProblem: `output` holds something else; an image, a label or a CSV can't be read.
    """
    check_output(output)
    records = shared_records(sources)
    scores = score(sources, records)
    chosen = worst_images(list(records), [each for each in scores if each], worst)
    with replaced(output) as folder:
        for path in sorted(PAGE.iterdir()):
            shutil.copyfile(path, folder / path.name)
        files = {name: f"cases/{number:04}.js" for number, name in enumerate(chosen, 1)}
        for name, file in progress(files.items(), "report", len(files), "images"):
            write_text(folder / file, case_of(records[name], sources))
        summary = {
            "title": " and ".join(source.title for source in sources),
            "made": datetime.now(UTC).isoformat(timespec="minutes"),
            "classes": sources[0].masks.classes if sources[0].masks else (),
            "labelled": any(record.label for record in records.values()),
            "sources": [describe(source, each) for source, each in zip(sources, scores, strict=True)],
            "settings": differences(sources),
            "experiments": leaderboard.record(sources, output),
            "cases": [{"name": name, "subject": records[name].subject, "file": file} for name, file in files.items()],
            "images": len(records),
        }
        write_text(folder / SUMMARY, script("Report.show", summary))
    return output / "index.html"


def score(sources: Sequence[Source], records: Mapping[str, Record]) -> list[Scores | None]:
    """Dice of each source against the labels; without labels, against the first source, which then has none itself."""
    labelled = any(record.label for record in records.values())
    if not records or not (labelled or len(sources) > 1):
        return [None] * len(sources)
    classes = sources[0].masks.classes if sources[0].masks else ()
    rows: list[dict[str, tuple[float, ...]]] = [{} for _ in sources]
    for name, record in progress(records.items(), "Dice", len(records), "images"):
        if labelled and record.label is None:
            continue
        height, width = image_shape(record.image)
        found = [source.masks.runs(name, height * width) for source in sources if source.masks]
        true = true_runs(record, classes) if labelled else None
        for row, runs in zip(rows, found, strict=True):
            row[name] = tuple(dice_from_counts(count_runs(runs, true or found[0])).tolist())
    tables: list[Scores | None] = [Scores(classes, tuple(row), tuple(row.values())) for row in rows]
    return tables if labelled else [None, *tables[1:]]


def worst_images(names: Sequence[str], tables: Sequence[Scores], n: int | None) -> list[str]:
    """`n` images (None: all), the lowest mean Dice in any table first: half of them for that mean, half for one bone.

    Those that are in no table come last, in their order.
    """
    mean, bone = (_lowest(tables, of) for of in (fmean, min))
    by_mean = sorted(names, key=lambda name: mean.get(name, 2.0))
    by_bone = sorted(by_mean, key=lambda name: bone.get(name, 2.0))
    both = dict.fromkeys(name for pair in zip(by_mean, by_bone, strict=True) for name in pair)
    held = set(list(both)[:n])
    return [name for name in by_mean if name in held]


def _lowest(tables: Sequence[Scores], of: Callable[[Sequence[float]], float]) -> dict[str, float]:
    """Image -> `of` its Dice, in the table where that is lowest."""
    found: dict[str, float] = {}
    for table in tables:
        for name, row in zip(table.images, table.values, strict=True):
            found[name] = min(of(row), found.get(name, 2.0))
    return found


def case_of(record: Record, sources: Sequence[Source]) -> str:
    """The script of one image, see report/case.py."""
    image = read_image(record.image)
    found = [source.masks.runs(record.name, image.size) for source in sources if source.masks]
    classes = sources[0].masks.classes if sources[0].masks else ()
    return pack_case(record.name, image, [true_runs(record, classes), *found])


def check_output(output: Path) -> None:
    """Raise FileProblem where something lies that is no report; an empty folder counts as absent."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / SUMMARY).is_file():
        raise FileProblem(f"{output} exists and is no report, so it is left alone: choose another folder.")


@contextmanager
def replaced(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `output` on success; on any error nothing changes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.", suffix=".part"))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it private, but teams share servers
        old = partial.with_name(f".{output.name}.old.part")
        shutil.rmtree(old, ignore_errors=True)
        if output.exists():
            os.replace(output, old)
        os.replace(partial, output)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
