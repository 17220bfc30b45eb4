"""docs/models.md holds every network, with the figures that the code gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config import ConfigProblem
from engine.names import all_names
from scripts.model_table import BEGIN, COLUMNS, END, row, table, write

DOC = Path(__file__).resolve().parent.parent / "docs" / "models.md"


def rows() -> dict[str, str]:
    """Lines of the table by their names."""
    lines = DOC.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip().splitlines()
    return {re.split(r" *\| *", line)[1]: line for line in lines[2:]}


def test_every_name_has_a_row_and_no_other() -> None:
    assert [f"model.{name}" for name in rows()] == all_names("model")


@pytest.mark.parametrize("name", ["model.model_simple_unet", "model.model_segformer_b0", "model.model_two_stage"])
def test_the_figures_are_those_of_the_code(name: str) -> None:
    assert rows()[name.removeprefix("model.")] == f"| {' | '.join(row(name))} |"


@pytest.mark.full
@pytest.mark.parametrize("name", all_names("model"))
def test_all_figures_are_those_of_the_code(name: str) -> None:
    assert rows()[name.removeprefix("model.")] == f"| {' | '.join(row(name))} |"


def test_the_table_goes_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.model_table.all_names", lambda package: ["model.model_simple_unet_quarter"])
    path = tmp_path / "models.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    assert write(path) == 0
    text = path.read_text(encoding="utf-8")
    assert text == f"before\n{BEGIN}\n\n{table(['model.model_simple_unet_quarter'])}\n\n{END}\nafter\n"
    assert " | ".join(COLUMNS) in text and "model_simple_unet_quarter | 4,906,996" in text
    path.write_text("no marks", encoding="utf-8")
    with pytest.raises(ConfigProblem, match="the table goes between them"):
        write(path)
