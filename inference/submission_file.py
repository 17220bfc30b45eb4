"""A submission CSV as a store: any image by its name, in any order, one in memory at a time; shards made into one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from engine.files import FileProblem
from inference.submission import Place, SubmissionImage, SubmissionWriter, read_submission


class SubmissionFile:
    """A submission CSV, read once from end to end to learn where each image begins; texts are not kept.

    Memory grows by the images' names only, so the file may be larger than memory.

    Args:
        path: the CSV.
        classes: the expected classes, in order; None takes the first image's.

    Attributes:
        path: the CSV.
        classes: in the file's order.
        names: base names of the images, in the file's order.

    Raises:
        FileProblem: as `read_submission`; also a file without images.
    """

    def __init__(self, path: Path | str, classes: Sequence[str] | None = None) -> None:
        self.path = Path(path)
        self._places: dict[str, Place] = {}
        for image in read_submission(self.path, classes):
            classes = classes or tuple(image.rles)
            self._places[image.name] = image.place
        if not self._places:
            raise FileProblem(f"{self.path} holds no images, only a header: write it again.")
        self.classes: tuple[str, ...] = tuple(classes or ())
        self.names: tuple[str, ...] = tuple(self._places)

    def __contains__(self, name: object) -> bool:
        """Whether the image is there."""
        return name in self._places

    def __iter__(self) -> Iterator[SubmissionImage]:
        """All images in the file's order."""
        return read_submission(self.path, self.classes)

    def read(self, name: str) -> SubmissionImage:
        """One image.

        Raises:
            FileProblem: it is not in the file, or the file has changed since it was opened.
        """
        if name not in self._places:
            raise FileProblem(
                f"{self.path} holds no image {name!r} among its {len(self.names)}: give CSVs of the same images."
            )
        image = next(read_submission(self.path, self.classes, self._places[name]), None)
        if image is None or image.name != name:
            raise FileProblem(
                f"{self.path} has no image {name!r} on line {self._places[name].line} any more: it was changed while "
                "it was read, so run again."
            )
        return image


def check_alike(first: SubmissionFile, other: SubmissionFile) -> None:
    """Check that two files hold the same classes and the same images, each in any order.

    Raises:
        FileProblem: a class or an image is in one of them only; names the first.
    """
    for lacking, having in ((other, first), (first, other)):
        for what, there, here in (
            ("class", having.classes, set(lacking.classes)),
            ("image", having.names, set(lacking.names)),
        ):
            if missing := [name for name in there if name not in here]:
                raise FileProblem(
                    f"{lacking.path} lacks {what} {missing[0]!r} of {having.path}, {len(missing)} in all: give CSVs of "
                    "the same images and classes."
                )


def merge_submissions(parts: Sequence[Path], output: Path, like: Path | None = None) -> int:
    """Write the images of all parts into one CSV, byte by byte what one process would have written; streams.

    Args:
        parts: one CSV or more, of the same classes in the same order and of different images.
        output: the CSV to write; never overwritten.
        like: a CSV of the same images, which are then written in its order; None takes the order of the parts.

    Returns:
        The number of images.

    Raises:
        FileProblem: a part that cannot be read or has other classes, an image in two parts, an image in the parts or in
            `like` only, or an `output` that exists.
    """
    first = SubmissionFile(parts[0])
    owners: dict[str, SubmissionFile] = {}
    for file in (first, *(SubmissionFile(part, first.classes) for part in parts[1:])):
        for name in file.names:
            if name in owners:
                raise FileProblem(
                    f"Image {name!r} is in {owners[name].path} and in {file.path}, but parts must hold different "
                    "images: leave one of the two out."
                )
            owners[name] = file
    order = tuple(owners) if like is None else _order_like(like, owners)
    with SubmissionWriter(output, order, first.classes) as writer:
        for name in order:
            writer.write_rles(name, tuple(owners[name].read(name).rles.values()))
    return len(order)


def _order_like(like: Path, images: Collection[str]) -> tuple[str, ...]:
    """The images in the order of the CSV `like`, which must hold the same."""
    order = SubmissionFile(like).names
    wanted = set(order)
    for where, missing in (
        (f"{like}, but in no part", [name for name in order if name not in images]),
        (f"the parts, but not in {like}", [name for name in images if name not in wanted]),
    ):
        if missing:
            raise FileProblem(
                f"Image {missing[0]!r} ({len(missing)} in all) is in {where}: give all the parts, and the CSV of the "
                "same images."
            )
    return order
