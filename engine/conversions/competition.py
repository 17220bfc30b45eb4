"""The competition's tree: `<split>/DCM/…` and a JSON of polygons for each image in `<split>/outputs_json/…`.

The mask of a class is `cv2.fillPoly` of its polygons, one by one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from engine.conversions.labelled import ImageFiles, Labelled, put_image
from engine.conversions.shapes import polygons_of
from engine.files import write_text


class CompetitionTarget:
    """A new tree. Images may be of any type that loads here; the competition's own are PNG."""

    def __init__(self, folder: Path, classes: Sequence[str], how: ImageFiles) -> None:
        self._folder, self._classes, self._how = folder, classes, how

    def add(self, image: Labelled) -> None:
        """See Target."""
        name = PurePosixPath(image.name)
        annotations = [
            {"id": f"{label}-{i}", "type": "poly_seg", "attributes": {}, "points": polygon.tolist(), "label": label}
            for label in self._classes
            for i, polygon in enumerate(polygons_of(image.seen.get(label, ()), image.width))
        ]
        content = {
            "annotations": annotations,
            "attributes": {},
            "file_id": name.stem,
            "filename": name.name,
            "parent_path": f"/{image.split}/{name.parent}",
            "last_modifier_id": "",
            "metadata": {"height": image.height, "width": image.width},
            "last_workers": {},
        }
        target = self._folder / image.split / "outputs_json" / name.with_suffix(".json")
        write_text(target, json.dumps(content, ensure_ascii=False))
        put_image(image, self._folder / image.split / "DCM" / name, self._how)

    def finish(self) -> None:
        """See Target."""
