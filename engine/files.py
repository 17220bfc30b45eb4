"""Files that are whole or absent: everything a run writes goes through here."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What os.link says on file systems without hard links: exFAT, some network and FUSE ones."""


_UMASK = threading.Lock()


class FileProblem(ValueError):
    """A file that cannot be used as asked. The message names the file, the rule and the remedy."""


def is_disk_full(error: BaseException) -> bool:
    """True for ENOSPC and EDQUOT, also as the RuntimeError that torch's writer turns them into."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # torch.save reports a full disk as RuntimeError "unexpected pos" or "file write failed", not as OSError.
    return isinstance(error, RuntimeError) and any(s in str(error) for s in ("unexpected pos", "file write failed"))


@contextmanager
def atomic_path(path: Path | str, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success flush it to disk and rename it to `path`.

    A reader sees the old file or the new one, never a part, also after kill -9 or power loss. On any error the
    temporary file is removed. With `overwrite=False` an existing target is never replaced, not even in a race; where
    the file system has no hard links, the target is then an empty file for the moment before the rename.

    Raises:
        FileProblem: the target exists and `overwrite` is False, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not overwrite and path.exists():
        raise FileProblem(f"{path} exists and is never overwritten: move it away or choose another target.")
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        if overwrite:
            os.replace(temporary, path)
        else:
            _rename_new(temporary, path)
    except (OSError, RuntimeError) as error:
        if is_disk_full(error):
            raise FileProblem(f"The disk is full: {path} was not written. Free some space and run again.") from error
        raise
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _rename_new(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path`, which must not exist; may leave `temporary` behind."""
    try:
        try:
            os.link(temporary, path)  # fails where the target has appeared meanwhile; rename would replace it
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # fails in the same way
            try:
                os.replace(temporary, path)
            except BaseException:
                path.unlink()
                raise
    except FileExistsError as error:
        raise FileProblem(f"{path} exists and is never overwritten: move it away or choose another target.") from error


def _umask() -> int:
    # mkstemp makes files of mode 600; a team's shared server needs the mode that open() would have given.
    with _UMASK:  # it can only be read by setting it, which two threads must not do at once
        mask = os.umask(0)
        os.umask(mask)
    return mask


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of writes that were killed: each can be as large as a checkpoint."""
    for path in (folder, *folder.rglob("*/")):
        for leftover in path.glob(".*.part"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold a lock file; where another process holds it, print `waiting` on stderr and wait.

    Network file systems without locks let everyone pass: files are whole or absent anyway.

    Raises:
        BlockingIOError: another process holds it and there is nothing to say while waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:  # to write: NFS locks no file that is open for reading alone
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                raise
            print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def write_text(path: Path | str, text: str, *, overwrite: bool = True) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
