"""Which part imports which: read from the sources, imports inside functions and for type checkers included."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("config",),
    ("engine",),
    ("dataset", "model"),
    ("inference",),
    ("report",),
    ("train",),
    ("train_dali",),
    ("run_exp",),
    ("scripts", "benchmarks"),
)
"""From the lowest; a part imports itself and lower layers only, never a neighbour in its own."""

LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def sources() -> list[Path]:
    """The project's own files, without tests and whatever tools have left here."""
    found = [path for part in LEVEL for path in (ROOT / part).rglob("*.py")]
    return sorted([*found, *(p for part in LEVEL if (p := ROOT / f"{part}.py").exists())])


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that the file imports by a statement, and by importlib where the name is written out."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            found |= {module} if module else set()
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return frozenset(found)


def importers(module: str) -> list[str]:
    """Files that import `module` or something inside it."""
    return [
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if any(name == module or name.startswith(f"{module}.") for name in imports(path))
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_imports_upwards_or_sideways(path: Path) -> None:
    own = part_of(path)
    used = {name.split(".")[0] for name in imports(path)} & LEVEL.keys()
    wrong = {part for part in used if part != own and LEVEL[part] >= LEVEL[own]}
    assert not wrong, f"{own} is below or beside {wrong}"


def test_every_package_of_ours_has_its_layer() -> None:
    ours = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/__init__.py")}
    ours |= {path.stem for path in ROOT.glob("*.py")}
    assert ours - {"tests"} <= LEVEL.keys()


def test_scripts_and_benchmarks_are_imported_by_nothing() -> None:
    for top in ("scripts", "benchmarks"):
        assert [path for path in importers(top) if not path.startswith(f"{top}/")] == []


def test_each_guarded_library_has_one_door() -> None:
    for library in ("segmentation_models_pytorch", "onnxruntime", "nvidia.dali", "wandb", "albumentations"):
        # The benchmarks hold what others do with it, too.
        assert len([path for path in importers(library) if not path.startswith("benchmarks/")]) <= 1, library


def test_there_is_no_grab_bag() -> None:
    grab_bags = {"utils", "util", "helpers", "common", "misc", "tools"}
    assert [path for path in sources() if grab_bags & {path.stem, *path.relative_to(ROOT).parts}] == []


def test_config_imports_nothing_but_tyro_and_the_standard_library() -> None:
    used = {name.split(".")[0] for name in imports(ROOT / "config.py")}
    assert used - sys.stdlib_module_names == {"tyro"}


def test_nothing_is_loaded_half_or_run_from_a_pickle() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("load_state_dict", "torch.load")):
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert said.get("strict") != "False", path
                if ast.unparse(node.func) == "torch.load":
                    assert said.get("weights_only") == "True", path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import a.b", {"a.b"}),
        ("from a import b", {"a", "a.b"}),
        ("def f():\n    from a.b import c as d", {"a.b", "a.b.c"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a", {"typing", "typing.TYPE_CHECKING", "a"}),
        ("from . import b", {"model.losses", "model.losses.b"}),
        ("from ..x import b", {"model.x", "model.x.b"}),
        ("import importlib\nimportlib.import_module('a.b')", {"importlib", "a.b"}),
    ],
)
def test_the_reader_of_imports(text: str, found: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_layers.ROOT", tmp_path)
    path = tmp_path / "model" / "losses" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert imports(path) == found


DISTRIBUTIONS = {
    "cv2": "opencv-python-headless", "PIL": "pillow", "nvidia": "nvidia-dali-cuda120", "pynvml": "nvidia-ml-py",
    "yaml": "pyyaml",
}
"""Import name -> name in requirements.txt, where they differ."""


def test_everything_imported_is_pinned() -> None:
    """A package that only lies in someone's environment breaks the first fresh clone."""
    pinned = {
        line.split("==")[0].casefold().replace("_", "-")
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    ours = {path.stem for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")]}
    ours |= {path.name for path in ROOT.iterdir() if path.is_dir()}
    folders = ("engine", "dataset", "model", "inference", "report", "scripts", "tests")
    for path in [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.split(".")[0] for name in names} - ours - sys.stdlib_module_names:
                wanted = DISTRIBUTIONS.get(top, top).casefold().replace("_", "-")
                assert wanted in pinned, f"{path} imports {top}, which requirements.txt does not pin"
