"""engine/flags.py: flags, their spellings, precedence, sources, and what a wrong command line says."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from test_config import FIELDS, another_value, field_docstrings

import config
import run_exp
from config import Config
from engine import flags, settings
from engine.presets import PRESETS
from inference import command
from scripts import test_dataloader

ROOT = Path(config.__file__).parent
README = ROOT / "README.md"

ALIASES = {
    "epochs": "epoch",
    "model": "model_file",
    "data_dir": "data_root",
    "saved_dir": "output_dir",
    "image_size": "image_size",
    "resize_size": "image_size",
    "patch_size": "window_size",
    "num_workers": "workers",
    "learning_rate": "lr",
    "val_every": "val_interval",
    "dataset": "dataset_file",
    **{name: name for name in ("loss", "output_dir", "weight_decay", "base_channels", "dropout", "seed")},
}
"""Spellings that must work -> their fields."""


def parse(*argv: str, base: Config | None = None) -> flags.Parsed[run_exp.Commands]:
    return flags.parse(list(argv), run_exp.Commands, "", base=base)[0]


def as_flags(name: str, value: Any) -> list[str]:
    if name in settings.JSON_FIELDS:
        return [f"--{name}", json.dumps(value, default=dataclasses.asdict)]
    if isinstance(value, tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a wrong command line says, without boxes and line breaks; it must leave with exit code 2."""
    with pytest.raises(SystemExit) as left:
        parse(*argv)
    assert left.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    assert "Traceback" not in said.err
    return unboxed(said.err)


def unboxed(text: str) -> str:
    return " ".join(re.sub("[─│╭╮╰╯]", " ", text).split())


@pytest.fixture(scope="module")
def help_text() -> str:
    done = subprocess.run(
        [sys.executable, "run_exp.py", "--help"], cwd=ROOT, env={"COLUMNS": "120"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return unboxed(done.stdout)


# --- every field a flag


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_a_flag_that_sets_it_alone(name: str) -> None:
    value = another_value(name)
    parsed = parse(*as_flags(name, value))
    assert parsed.cfg == settings.replace(Config(), {name: value})
    brought = settings.augment_set(value) if name == "augment" else {}
    assert parsed.sources == dict.fromkeys(brought, f"augment {value}") | {name: "flag"}


def test_a_set_of_augmentations_and_a_flag_that_changes_one() -> None:
    line = ["--augment", "HEAVY", "--rotate", "-5", "5", "0.5"]
    for argv in (line, [*line[2:], *line[:2]]):
        parsed = parse(*argv)
        assert parsed.cfg == settings.replace(Config(), {"augment": "heavy", "rotate": (-5.0, 5.0, 0.5)})
        assert parsed.sources["rotate"] == "flag" and parsed.sources["elastic"] == "augment heavy"


@pytest.mark.parametrize("name", FIELDS)
def test_every_flag_is_in_the_help_with_its_text_and_default(name: str, help_text: str) -> None:
    words = "".join(field_docstrings()[name].split())
    everything = "".join(help_text.split())
    assert re.search(rf"--{name}\b", help_text)
    assert words in everything
    after = everything[everything.index(words) + len(words) :]
    assert after.startswith(("(default:", "(repeatable"))


@pytest.mark.parametrize("kind", [run_exp.Commands, flags.Source])
def test_commands_are_in_the_help_too(kind: type, help_text: str) -> None:
    for field in dataclasses.fields(kind):
        assert f"--{field.name}" in help_text


def test_commands_are_no_settings() -> None:
    names = {f.name for kind in (run_exp.Commands, flags.Source, command.Commands) for f in dataclasses.fields(kind)}
    assert not names & set(FIELDS)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_other_spellings_work_and_are_in_the_help(alias: str, name: str, help_text: str) -> None:
    value = another_value(name)
    for spelling in (alias, alias.replace("_", "-")):
        parsed = parse(*as_flags(spelling, value))
        assert parsed.cfg == settings.replace(Config(), {name: value})
        assert parsed.sources == {name: "flag"}
    assert re.search(rf"--{alias}\b", help_text)


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        ("--epoch=3 --lr=1e-3", {"epoch": 3, "lr": 1e-3}),
        ("--batch-size 4 --val-interval=2", {"batch_size": 4, "val_interval": 2}),
        ("--exp_name a=b", {"exp_name": "a=b"}),
        ("--exp_name=a=b", {"exp_name": "a=b"}),
        ("--no_amp", {"amp": False}),
        ("--no-amp", {"amp": False}),
        ("--amp False", {"amp": False}),
        ("--amp=off", {"amp": False}),
        ("--no_amp False", {"amp": True}),
        ("--overwrite", {"overwrite": True}),
        ("--overwrite TRUE --epoch 2", {"overwrite": True, "epoch": 2}),
        ("--overwrite 1", {"overwrite": True}),
        ("--use-gaussian-sliding no", {"use_gaussian_sliding": False}),
        ("--loss_weights 1 0.5", {"loss_weights": (1.0, 0.5)}),
        ("--classes Radius Ulna --epoch 2", {"classes": ("Radius", "Ulna"), "epoch": 2}),
        ("--exclude ID058/image1661392103627", {"exclude": ("ID058/image1661392103627",)}),
        ("--exclude", {"exclude": ()}),
        ("--save_masks", {"save_masks": "class"}),
        ("--save_masks --epoch 2", {"save_masks": "class", "epoch": 2}),
        ("--save_masks packed", {"save_masks": "packed"}),
        ("--save-masks=NONE", {"save_masks": "none"}),
        ("--scheduler cosine", {"scheduler": "CosineAnnealingLR"}),
        ("--scheduler none", {"scheduler": "None"}),
        ("--optimizer adamp --scheduler POLY", {"optimizer": "adamp", "scheduler": "PolynomialLR"}),
        ("--wandb 0 --device CPU", {"wandb": "off", "device": "cpu"}),
        ("--epoch 3 --epoch 4", {"epoch": 4}),
        ("--epoch 3 --epochs 4", {"epoch": 4}),
        ("--fold -1", {"fold": -1}),
        ("--min_lr -1e-3", {"min_lr": -1e-3}),
        ("--seed 9223372036854775807", {"seed": 2**63 - 1}),
        ("--exp_name ''", {"exp_name": ""}),
        ("--data_root '/a folder/with spaces'", {"data_root": "/a folder/with spaces"}),
    ],
)
def test_spellings_of_values(argv: str, values: dict[str, Any]) -> None:
    parsed = parse(*shlex.split(argv))
    assert parsed.cfg == settings.replace(Config(), values)
    assert parsed.sources == dict.fromkeys(values, "flag")


@pytest.mark.parametrize("name", [f for f in FIELDS if get_origin(settings.TYPE_OF[f]) is Literal])
def test_closed_sets_take_every_value_in_any_case(name: str) -> None:
    for choice in get_args(settings.TYPE_OF[name]):
        for text in (choice, choice.upper(), choice.lower(), choice.title()):
            assert settings.get(parse(f"--{name}", text).cfg, name) == choice


def test_the_first_command_of_every_user_means_what_it_says() -> None:
    line = (
        "--exp_name My_First_Exp --epoch 50 --lr 0.0001 --batch_size 4 "
        "--model_file model.model_nnunet --loss Combined_Focal_Dice"
    )
    values = {
        "exp_name": "My_First_Exp",
        "epoch": 50,
        "lr": 0.0001,
        "batch_size": 4,
        "model_file": "model.model_nnunet",
        "loss": "Combined_Focal_Dice",
    }
    parsed = parse(*line.split())
    assert parsed.cfg == settings.replace(Config(), values)
    assert parsed.sources == dict.fromkeys(values, "flag")
    assert parsed.commands == run_exp.Commands()
    settings.check(parsed.cfg)


def test_no_flags_are_the_defaults() -> None:
    parsed = parse()
    assert (parsed.cfg, parsed.sources, parsed.commands) == (Config(), {}, run_exp.Commands())


# --- precedence and sources


def test_defaults_then_file_then_preset_then_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "mine", {"epoch": 22, "stride": 222, "optimizer": "SGD"})
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"train": {"batch_size": 1, "epoch": 11, "lr": 0.011}, "window": {"stride": 111}}))
    for argv in (
        ["--config", str(saved), "--preset", "mine", "--epoch", "33", "--lr", "0.033"],
        ["--lr", "0.033", "--epoch", "33", "--preset=mine", f"--config={saved}"],  # their order does not matter
    ):
        parsed = parse(*argv)
        want = {"batch_size": 1, "stride": 222, "optimizer": "SGD", "epoch": 33, "lr": 0.033}
        assert parsed.cfg == settings.replace(Config(), want)
        assert parsed.sources == {
            "batch_size": "file",
            "stride": "preset",
            "optimizer": "preset",
            "epoch": "flag",
            "lr": "flag",
        }


def test_every_source_beats_the_one_before_for_every_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {name: settings.get(Config(), name) for name in FIELDS}
    others = {name: another_value(name) for name in FIELDS}
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps(others, default=dataclasses.asdict))
    monkeypatch.setitem(PRESETS, "back", defaults)
    argv: list[str] = []
    for more, values, source in (
        ([], defaults, "default"),
        (["--config", str(saved)], others, "file"),
        (["--preset", "back"], defaults, "preset"),
        ([word for name in FIELDS for word in as_flags(name, others[name])], others, "flag"),
    ):
        argv += more
        parsed = parse(*argv)
        assert {name: settings.get(parsed.cfg, name) for name in FIELDS} == values
        assert {parsed.sources.get(name, "default") for name in FIELDS} == {source}


def test_a_saved_config_gives_the_same_run_again(tmp_path: Path) -> None:
    cfg = settings.replace(Config(), {name: another_value(name) for name in FIELDS})
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(settings.to_record(cfg)))
    assert parse("--config", str(saved)).cfg == cfg


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_parses_in_any_case(preset: str) -> None:
    for text in (preset, preset.upper(), preset.title()):
        parsed = parse("--preset", text)
        assert parsed.cfg == settings.replace(Config(), PRESETS[preset])
        of_its_set = settings.augment_set(PRESETS[preset].get("augment"))
        assert parsed.sources == dict.fromkeys([*of_its_set, *PRESETS[preset]], "preset")
        settings.check(parsed.cfg)


def test_describe_shows_every_value_with_its_source(tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"optimizer": "SGD", "classes": ["a", "b"]}))
    parsed = parse("--config", str(saved), "--preset", "smoke", "--stride", "64", "--no_amp")
    lines = flags.describe(parsed.cfg, parsed.sources).splitlines()
    assert [line[1:-1] for line in lines if not line.startswith(" ")] == list(settings.SECTIONS)
    shown = {}
    for line in lines:
        if match := re.fullmatch(r"  (\w+) = (.+)  \((\w+)\)", line):
            shown[match[1]] = (json.loads(match[2]), match[3])
    assert list(shown) == list(settings.SECTION_OF)
    record = settings.to_record(parsed.cfg)
    for name, (value, source) in shown.items():
        assert value == record[settings.SECTION_OF[name]][name]
        assert source == parsed.sources.get(name, "default")
    assert shown["stride"] == (64, "flag")
    assert shown["amp"] == (False, "flag")
    assert shown["classes"] == (["a", "b"], "file")
    assert shown["phantom"] == (True, "preset")
    assert shown["split_seed"] == (42, "default")


# --- what is wrong


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--epoh", "3"], "--epoch"),
        (["--batchsize", "3"], "--batch_size"),
        (["--windw_size=3"], "--window_size"),
        (["--presett", "demo"], "--preset"),
        (["--ovewrite"], "--overwrite"),
        (["--print_confg"], "--print_config"),
        (["--preset", "demp"], "did you mean demo?"),
        (["--preset", "nothing-like-it"], "demo, smoke"),
        (["--scheduler", "stepplr"], "did you mean StepLR"),
        (["--wandb", "perhaps"], "auto, online, offline, off"),
        (["--save_masks", "packd"], "did you mean packed?"),
        (["--epoch", "three"], "--epoch"),
        (["--epoch", "2.5"], "--epoch"),
        (["--lr", "fast"], "--lr"),
        (["--amp", "perhaps"], "perhaps"),
        (["--epoch"], "--epoch"),
        (["--exp_name"], "--exp_name"),
        (["train"], "train"),
        (["--loss_weights", "1", "heavy"], "--loss_weights"),
    ],
)
def test_wrong_flags_and_values_leave_with_2_and_name_the_remedy(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(capsys, *argv)
    assert said in text
    wrong = argv[-1].split("=")[0] if len(argv) == 2 else argv[0].split("=")[0]
    assert wrong in text or argv[0] in text


def test_several_unknown_flags_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "--epoh", "3", "--strid", "5")
    assert "--epoh" in text
    assert "--strid" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("\x00\x01", "is not JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"strid": 3}', "did you mean stride"),
        ('{"train": {"epoch": "x"}}', "epoch: 'x' is not of type int"),
        ('{"scheduler": "stepplr"}', "did you mean StepLR"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved.json"
    if content is not None:
        saved.write_text(content)
    text = refused(capsys, "--config", str(saved))
    assert text.startswith(f"error: {saved}")
    assert said in text


def test_a_folder_or_binary_for_a_file_is_no_crash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "binary"):
        assert str(path) in refused(capsys, "--config", str(path))


# --- nothing slow


SLOW = ("torch", "cv2", "numba", "pandas", "numpy")


@pytest.mark.parametrize(
    "argv",
    [
        ["run_exp.py", "--help"],
        ["run_exp.py", "--print_config", "--model", "unet_resnet50", "--loss", "bce_dice"],
        ["run_exp.py", "--preset", "smoke", "--print-config"],
        ["run_exp.py", "--list_losses"],
        ["run_exp.py", "--epoh", "3"],
        ["inference/inference.py", "--help"],
        ["inference/inference_sliding.py", "--help"],
    ],
)
def test_help_and_print_config_import_nothing_slow(argv: list[str]) -> None:
    script = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('SLOW', [m for m in {SLOW} if m in sys.modules]))\n"
        f"sys.argv = {argv}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (2 if "--epoh" in argv else 0), done.stderr
    assert done.stdout.endswith("SLOW []\n")


# --- the README


def readme_commands() -> list[str]:
    """What README.md shows in code blocks (fenced or indented) or `spans` and starts with `python ` or `make `."""
    text = README.read_text("utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join([*fenced, *re.findall(r"^ {4,}(.*)", text, re.MULTILINE)]).splitlines()
    lines += re.findall(r"(?<!`)`((?:python|make) [^`\n]+)`", text)
    stripped = (line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for line in lines)
    return [line for line in stripped if line.startswith(("python ", "make "))]


def test_every_command_line_of_the_readme_works(tmp_path: Path) -> None:
    if not README.exists():
        pytest.skip("README.md does not exist yet")
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(settings.to_record(Config())))
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    found = readme_commands()
    assert found, "README.md shows no command"
    for line in found:
        tool, *argv = shlex.split(line, comments=True)
        if tool == "make":
            asked = [word for word in argv if "=" not in word]
            assert asked, line
            assert set(asked) <= set(targets), line
        elif argv[0] == "-m":
            place = ROOT / argv[1].replace(".", "/")
            assert argv[1] == "pytest" or place.is_dir() or place.with_suffix(".py").is_file(), line
        else:
            assert (ROOT / argv[0]).is_file(), line
            kind: Any = {
                "run_exp.py": run_exp.Commands,
                "scripts/test_dataloader.py": test_dataloader.Commands,
            }.get(argv[0])
            if argv[0].startswith("inference/inference"):
                kind = command.Commands
            if kind is not None:
                assert _parses(argv[1:], kind, saved), line


def _parses(argv: list[str], kind: Any, saved: Path) -> bool:
    """Whether the real parser and the checks take `argv`; a --config file of the example need not exist."""
    for i, word in enumerate(argv):
        if word == "--config":
            argv[i + 1] = str(saved)
    try:
        settings.check(flags.parse(argv, kind, "")[0].cfg)
    except SystemExit as left:
        return left.code == 0  # --help
    return True
