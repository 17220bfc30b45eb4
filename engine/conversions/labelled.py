"""What labels are converted through: one image at a time, with its classes as shapes, and nothing lost in silence."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from config import suggest
from engine.conversions.shapes import Shape
from engine.files import FileProblem, atomic_path

ImageFiles = Literal["copy", "link", "none"]
"""What becomes of the images: copied, linked to by symbolic links, or left where they are."""

ShapeOf = Callable[[Path], tuple[int, int]]
"""Height and width of an image file; raises FileProblem."""


@dataclass(frozen=True)
class Labelled:
    """One image and what is seen in it."""

    name: str
    """Path of the image below the folder of its split, with '/' and its extension."""
    split: str
    """train, val, test or another."""
    height: int
    width: int
    """px."""
    shapes: Mapping[str, Shape] | None
    """Class -> what is seen of it; a class that is not here is not seen. None where nobody has labelled the image."""
    image: Path | None
    """The file; None where only the labels are known."""

    @property
    def seen(self) -> Mapping[str, Shape]:
        """The shapes of a labelled image.

        Raises:
            FileProblem: nobody has labelled it.
        """
        if self.shapes is None:
            raise FileProblem(
                f"{self.image} has no label, and without one it would count as an image of nothing: add the label, or "
                f"leave {self.split!r} out of --splits."
            )
        return self.shapes


class Source(Protocol):
    """Labelled images in some format; one is in memory at a time."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    """Of all images, in their order."""

    def __iter__(self) -> Iterator[Labelled]:
        """All images; raises FileProblem where one can't be read or something would be lost."""
        ...


class Target(Protocol):
    """A new folder in some format."""

    def add(self, image: Labelled) -> None:
        """Write one image; raises FileProblem where the format can't hold it."""
        ...

    def finish(self) -> None:
        """Write what is known only after the last image."""
        ...


class Losses:
    """What is lost on the way: an error, unless the user has allowed it.

    Attributes:
        found: what was lost -> how often.
    """

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed
        self.found: Counter[str] = Counter()

    def add(self, what: str, where: str) -> None:
        """Something is lost at a place, such as a file.

        Raises:
            FileProblem: nothing may be lost.
        """
        if not self.allowed:
            raise FileProblem(f"{where}: {what}. Give --lossy to go on without.")
        self.found[what] += 1


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file holds; `what` names its format.

    Raises:
        FileProblem: it can't be read, or holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from None
    except (ValueError, RecursionError) as error:
        raise FileProblem(f"{path} is not JSON ({error}): fetch the file again.") from None
    if not isinstance(content, dict):
        raise FileProblem(f"{path} holds no JSON object, so it is no {what}: give another file.")
    return content


def checked_name(name: Any, where: Path) -> str:
    """A relative path of an image as files tell it, which must not lead out of its folder.

    Raises:
        FileProblem: it does, or is none.
    """
    if isinstance(name, str) and name and "\\" not in name and "\0" not in name:
        parts = PurePosixPath(name).parts
        if parts and parts[0] != "/" and ".." not in parts:
            return PurePosixPath(name).as_posix()
    raise FileProblem(f"{where}: {name!r} is no path of an image below a folder: correct it.")


def checked_classes(names: Sequence[Any], where: Path) -> tuple[str, ...]:
    """Names of classes as files tell them.

    Raises:
        FileProblem: one is no text, or there twice; or there are none.
    """
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name or name in names[:i]:
            raise FileProblem(f"{where}: class name {name!r} is empty or there twice: correct it.")
    if not names:
        raise FileProblem(f"{where} names no classes: correct it.")
    return tuple(names)


def in_order(found: Sequence[str], wanted: Sequence[str], where: Path) -> tuple[str, ...]:
    """The classes in the order that is wanted; as found where `wanted` is empty.

    Raises:
        FileProblem: a class that is found is not wanted.
    """
    for name in found if wanted else ():
        if name not in wanted:
            raise FileProblem(f"{where}: {name!r} is no class{suggest(name, wanted)}. Correct it or set --classes.")
    return tuple(wanted or found)


def put_image(image: Labelled, target: Path, how: ImageFiles) -> None:
    """Copy or link the file of an image.

    Raises:
        FileProblem: only the labels are known.
    """
    if how == "none":
        return
    if image.image is None:
        raise no_file(image)
    if how == "link":
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(image.image.resolve())
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(image.image, temporary)


def no_file(image: Labelled) -> FileProblem:
    """What is wrong where the image itself is wanted and only its labels are known."""
    return FileProblem(f"image {image.name!r} has no file: give --images, or --image_files none for labels only.")
