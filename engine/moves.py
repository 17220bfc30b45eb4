"""Files that are moved or copied so that it can be undone: a journal is written before the first one is touched.

Nothing is ever overwritten, and a command that is killed leaves each file in one of its two places, or the same file in
both. The journal tells what was to be done; what was done follows from where the files are.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.files import NO_LINKS, FileProblem, atomic_path, write_json
from engine.progress import progress

Action = Literal["move", "copy", "remove"]
FORMAT = "moves-1"
"""First entry of a journal."""
UNDONE = ".undone"
"""Behind the name of a journal that was undone."""


@dataclass(frozen=True)
class Step:
    """One file. To remove `target` means that `source` has all that is in it."""

    action: Action
    source: Path
    target: Path

    def __str__(self) -> str:
        if self.action == "remove":
            return f"remove {self.target}, as {self.source} has all that is in it"
        return f"{self.action} {self.source} -> {self.target}"


@dataclass(frozen=True)
class MoveFlags:
    """What every command that moves files has."""

    dry_run: bool = False
    """Only say what would be done."""
    undo: str = ""
    """Journal of a former run, which is undone; nothing else is done."""


def run_steps(chosen: MoveFlags, folder: Path, steps: Callable[[], Sequence[Step]]) -> int:
    """Carry out or undo, as the flags say, and tell it; returns the exit code.

    Args:
        folder: that the files go to; its journals lie beside it.
        steps: makes them; not called to undo.
    """
    if chosen.undo:
        return _run_undo(Path(chosen.undo), chosen.dry_run)
    planned = steps()
    if chosen.dry_run:
        print("\n".join([*map(str, planned), f"dry run: {len(planned)} files, nothing was done"]))
        return 0
    if not planned:
        print("nothing to do")
        return 0
    journal = journal_beside(folder)
    carry_out(planned, journal)
    print(f"{len(planned)} files are in {folder}")
    return 0


def _run_undo(journal: Path, dry_run: bool) -> int:
    steps, problems = steps_back(journal)
    if dry_run:
        print("\n".join([*map(str, steps), *problems, f"dry run: {len(steps)} files, nothing was undone"]))
        return 0
    count = undo(journal)
    print("\n".join([f"{count} files undone", *problems]))
    return 1 if problems else 0


def journal_beside(folder: Path) -> Path:
    """The first journal of a folder, in the one above it, that is neither there nor undone."""
    number = 1
    while True:
        path = folder.parent / f"{folder.name}.journal-{number}.json"
        if not path.exists() and not path.with_name(path.name + UNDONE).exists():
            return path
        number += 1


def carry_out(steps: Sequence[Step], journal: Path) -> None:
    """Write the journal and say where it is, then move and copy.

    Raises:
        FileProblem: a file is missing, a target exists or is there twice, before anything was touched; or a target has
            appeared meanwhile: what was done by then is undone by the journal.
    """
    steps = [Step(step.action, _absolute(step.source), _absolute(step.target)) for step in steps]
    targets = set[Path]()
    for step in steps:
        if not step.source.is_file():
            raise FileProblem(f"{step.source} is no file any more: run the command again.")
        if step.target in targets or os.path.lexists(step.target):
            raise FileProblem(f"{step.target} exists or is wanted twice, and is never overwritten: rename a file.")
        targets.add(step.target)
    files = [[step.action, str(step.source), str(step.target)] for step in steps]
    missing = {str(folder) for path in targets for folder in path.parents if not folder.exists()}
    write_json(journal, {"format": FORMAT, "folders": sorted(missing), "files": files})
    print(f"to undo this: --undo {journal}", flush=True)  # now, as what is killed must be undone too
    for step in progress(steps, "files", len(steps), "files"):
        _do(step)


def steps_back(journal: Path) -> tuple[list[Step], list[str]]:
    """What undoes a journal, the last file first; and what can't be undone, a sentence each.

    Raises:
        FileProblem: it is no journal, or was undone before.
    """
    steps, problems = [], []
    for done in reversed(_read(journal)[0]):
        source, target = done.source, done.target
        if not os.path.lexists(target):
            if not os.path.lexists(source):
                problems.append(f"{source} is neither there nor at {target}: it was moved or deleted since.")
        elif not os.path.lexists(source):
            if done.action == "move":
                steps.append(Step("move", target, source))
            else:
                problems.append(f"{target} stays: {source}, of which it is a copy, is gone.")
        elif _holds(source, target):
            steps.append(Step("remove", source, target))
        elif done.action == "move" and _holds(target, source):
            steps += [Step("remove", target, source), Step("move", target, source)]
        else:
            problems.append(f"{target} stays: {source} is there too, and is another file.")
    return steps, problems


def undo(journal: Path) -> int:
    """Undo a journal, remove the folders that it had made if they are empty, and put UNDONE behind its name.

    May be killed and run again. Where something can't be undone, the journal keeps its name.

    Returns:
        How many times a file was moved back or removed.
    """
    steps, problems = steps_back(journal)
    for step in steps:
        _do(step)
    for folder in reversed(_read(journal)[1]):  # a folder comes before those in it
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if not problems:
        journal.rename(journal.with_name(journal.name + UNDONE))
    return len(steps)


def _absolute(path: Path) -> Path:
    """Without following links: a link is moved as such."""
    return Path(os.path.abspath(path))


def _read(journal: Path) -> tuple[list[Step], list[Path]]:
    """What was to be done, and the folders that were to be made."""
    try:
        content = json.loads(journal.read_text(encoding="utf-8"))
        if content["format"] == FORMAT:
            files = [Step(action, Path(source), Path(target)) for action, source, target in content["files"]]
            return files, [Path(folder) for folder in content["folders"]]
    except OSError as error:
        raise FileProblem(f"{journal} cannot be read ({error.strerror}): give the journal that was printed.") from None
    except (ValueError, TypeError, KeyError):
        pass
    raise FileProblem(f"{journal} is no journal of moved files: give the one that was printed.")


def _holds(path: Path, other: Path) -> bool:
    """Whether `path` has all that `other` has: it is the same file, or an equal one, or the other is empty.

    An empty file is what a kill leaves of a new name on file systems without hard links.
    """
    if path.parent.resolve() / path.name == other.parent.resolve() / other.name:
        return False  # one folder has become a link to the other: removing one name would remove the file
    if os.path.samestat(path.lstat(), other.lstat()):
        return True
    if path.is_symlink() or other.is_symlink():
        return False
    return not other.stat().st_size or filecmp.cmp(path, other, shallow=False)


def _do(step: Step) -> None:
    if step.action == "remove":
        step.target.unlink()
        return
    step.target.parent.mkdir(parents=True, exist_ok=True)
    if step.action == "copy" or not _linked(step):
        with atomic_path(step.target, overwrite=False) as temporary:
            shutil.copy2(step.source, temporary)
    if step.action == "move":
        step.source.unlink()


def _linked(step: Step) -> bool:
    """Give a file its second name, which must not exist; False where the file system can't."""
    try:
        os.link(step.source, step.target, follow_symlinks=False)
    except FileExistsError:
        raise FileProblem(f"{step.target} has appeared meanwhile and is never overwritten: move it away.") from None
    except OSError as error:
        if error.errno not in (*NO_LINKS, errno.EXDEV, errno.EMLINK):
            raise
        return False
    return True
