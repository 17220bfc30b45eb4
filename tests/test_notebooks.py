"""The notebooks in eda/: executed, small, without a machine's paths, and made of functions that exist."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "eda").glob("*.ipynb"))
LARGEST = 600_000
"""Bytes of a notebook."""


def cells(path: Path) -> list[dict[str, Any]]:
    """The code cells."""
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["data", "experiment"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_executed_without_errors(path: Path) -> None:
    found = cells(path)
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    outputs = [output for cell in found for output in cell["outputs"]]
    assert outputs and all(output["output_type"] != "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_holds_no_paths_of_a_machine(path: Path) -> None:
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|usr|Users|work|mnt|opt)/|[A-Z]:\\\\", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_imports_what_exists(path: Path) -> None:
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells(path)))
    names = [(node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for alias in node.names]  # fmt: skip
    assert any(str(module).startswith(("dataset.", "report.")) for module, _ in names)
    for module, name in names:
        assert hasattr(importlib.import_module(str(module)), name), f"{module}.{name}"


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    ours = shutil.ignore_patterns("data", "checkpoints", "eda_report", "log", ".*", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=ours)
    # What it writes lies in the copy; the copy's modules are found before the installed ones, as it runs in its folder.
    book = nbformat.read(tmp_path / "copy" / "eda" / path.name, as_version=4)
    client = NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path / "copy")}})
    client.execute()
    assert all(output["output_type"] != "error" for cell in book.cells for output in cell.get("outputs", ()))
    if path.stem == "experiment":
        assert (tmp_path / "copy" / "checkpoints" / "notebook" / "inference" / "test" / "submission.csv").exists()
