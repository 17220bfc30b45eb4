"""One run of a preset on drawn data, from nothing to masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from test_run_exp import run

from scripts import make_example


def trained(preset: str, folder: Path, count: int, flags: Sequence[str]) -> tuple[Path, str]:
    """Folder of the experiment, and what the command printed. Images of 128 px, in folder/data; flags beat presets."""
    data = folder / "data"
    assert make_example.main([preset, "--root", str(data), "--count", str(count), "--size", "128"]) == 0
    code, out, err = run("--preset", preset, "--data_root", str(data), "--output_dir", str(folder), *flags)
    assert code == 0, err
    return folder / preset, out
