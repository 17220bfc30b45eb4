"""Statistics of phantoms against a radiograph: measures of known pictures, and the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from config import ConfigProblem
from dataset.phantom import draw_phantom
from dataset.phantom_statistics import (
    UNITS,
    Landmarks,
    landmarks_of,
    measure,
    measure_phantoms,
    table,
)
from scripts import phantom_statistics

PLACES = Landmarks(np.array([200.0, 390.0]), np.array([200.0, 130.0]), np.array([200.0, 470.0]))
"""A metacarpal of 260 px: 4 px a mm."""


def shaft(noise: float = 0.0) -> NDArray[np.uint8]:
    """Grey ground, a shaft 8 mm wide whose shells are 2 mm thick and twice as far above the ground as its inside."""
    picture = np.full((520, 400), 50.0)
    picture[100:420, 184:216] = 150
    picture[100:420, 192:208] = 100
    picture += np.random.default_rng(1).normal(0, noise, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def test_edges_of_a_known_shaft() -> None:
    found = measure(shaft(), PLACES)
    assert found["bone above flesh"] == pytest.approx(100 / 255, rel=0.05)
    assert found["medulla"] == pytest.approx(0.5, abs=0.05)
    assert found["cortex"] == pytest.approx(0.5, abs=0.06)
    assert found["rise of the edge"] < 0.8
    blurred = measure(cv2.GaussianBlur(shaft(), (0, 0), 3), PLACES)
    assert blurred["rise of the edge"] > 1.5 * found["rise of the edge"]


@pytest.mark.parametrize("degrees", [0, 25, 90])
def test_a_turned_or_enlarged_picture_measures_the_same(degrees: float) -> None:
    matrix = cv2.getRotationMatrix2D((200, 260), degrees, 1.5)
    matrix[:, 2] += 200
    picture = cv2.warpAffine(shaft(), matrix, (800, 800), borderValue=50.0)
    places = Landmarks(*(matrix[:, :2] @ place + matrix[:, 2] for place in vars(PLACES).values()))
    first, second = measure(shaft(), PLACES), measure(np.asarray(picture, np.uint8), places)
    for name, tolerance in (("medulla", 0.08), ("cortex", 0.06), ("bone above flesh", 0.03)):
        assert second[name] == pytest.approx(first[name], abs=tolerance), name


def test_noise_and_texture_are_found() -> None:
    quiet, loud = (measure(shaft(noise), PLACES) for noise in (2.0, 8.0))
    assert loud["noise"] == pytest.approx(8 / 255, rel=0.2) and quiet["noise"] == pytest.approx(2 / 255, rel=0.2)
    assert loud["texture 0.5-1 mm"] > 2 * quiet["texture 0.5-1 mm"]
    streaked = shaft().astype(float)
    streaked[440:510] += 20 * np.sin(np.arange(400) * 2 * np.pi / 4)  # 1 mm
    assert measure(streaked.astype(np.uint8), PLACES)["streaks"] > 3


def test_landmarks_lie_in_their_bones() -> None:
    phantom = draw_phantom(2, 1, "R", 512, False)
    places = landmarks_of(phantom)
    assert places is not None and places.head[1] < places.base[1] < places.radius[1]
    radius = cv2.fillPoly(np.zeros((512, 512), np.uint8), phantom.polygons["Radius"], 1)
    assert radius[tuple(places.radius.astype(int)[::-1])]
    phantom.polygons["Radius"].clear()
    assert landmarks_of(phantom) is None


def test_places_outside_are_refused() -> None:
    with pytest.raises(ConfigProblem, match=r"radius is \[200.0, 470.0\], which lies outside the 400 x 450 image"):
        measure(shaft()[:450], PLACES)


def test_table_marks_what_the_radiograph_lies_in() -> None:
    found = measure_phantoms("dr", 3, 256, 1)
    assert found.keys() == UNITS.keys() and all(np.isfinite(values).all() for values in found.values())
    median = {name: float(np.median(values)) for name, values in found.items()}
    rows = table({**median, "mean": 9.0}, {"dr": found}).splitlines()
    assert rows[0] == "| measure | radiograph | dr |" and len(rows) == 2 + len(UNITS)
    assert "**" not in rows[2] and all("**" in row for row in rows[3:])


def test_command(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "hand.png"), shaft(2.0))
    places = ["--base", "200", "390", "--head", "200", "130", "--radius", "200", "470"]
    script = Path(phantom_statistics.__file__)
    done = subprocess.run(
        [sys.executable, script.name, str(tmp_path / "hand.png"), *places, "--styles", "cr", "--count", "1", "--size",
         "256"],
        cwd=script.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| measure | radiograph | cr |" in done.stdout and "| medulla" in done.stdout


@pytest.mark.parametrize(
    ("flags", "said", "code"),
    [
        (["--size", "64"], "size is 64", 2),
        (["--count", "0"], "count is 0", 2),
        (["--styles", "kodak"], "'kodak'", 2),
        (["--radius", "900", "470"], "radius is [900.0, 470.0]", 2),
        (["--nothing"], "nothing.png", 1),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    flags: list[str], said: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "hand.png"), shaft())
    image = "nothing.png" if flags == ["--nothing"] else "hand.png"
    places = {"--base": ["200", "390"], "--head": ["200", "130"], "--radius": ["200", "470"]}
    argv = [word for name, values in places.items() if name not in flags for word in (name, *values)]
    argv += [] if flags == ["--nothing"] else flags
    try:
        found = phantom_statistics.main([str(tmp_path / image), *argv])
    except SystemExit as ended:
        found = int(ended.code or 0)
    assert found == code
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
