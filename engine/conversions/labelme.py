"""labelme: `a.json` beside `a.jpg`. github.com/wkentaro/labelme

A vertex is the pixel that it lies in, and the mask of a class is `cv2.fillPoly` of its polygons: labelme, too, cuts off
fractions and draws the rim. dataset/labels.py reads such files.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from engine.conversions.labelled import ImageFiles, Labelled, put_image
from engine.conversions.shapes import Points, polygons_of
from engine.files import write_text

VERSION = "5.5.0"
"""Of the labelme whose files these are like."""


class LabelmeTarget:
    """A folder of images, each with its JSON, which names the image and does not hold it."""

    def __init__(self, folder: Path, how: ImageFiles) -> None:
        self._folder, self._how = folder, how

    def add(self, image: Labelled) -> None:
        """See Target."""
        name = PurePosixPath(image.name)
        content: dict[str, Any] = {
            "version": VERSION,
            "flags": {},
            "shapes": [
                _shape(label, points)
                for label, shape in image.seen.items()
                for points in polygons_of(shape, image.width)
            ],
            "imagePath": name.name,
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        write_text(self._folder / name.with_suffix(".json"), json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        put_image(image, self._folder / name, self._how)

    def finish(self) -> None:
        """See Target."""


def _shape(label: str, points: Points) -> dict[str, Any]:
    return {
        "label": label,
        "points": points.astype(float).tolist(),
        "group_id": None,
        "description": "",
        "shape_type": "polygon",
        "flags": {},
    }
