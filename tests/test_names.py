"""engine/names.py: a name is a module plus a variant. Every listed name resolves, and its module accepts it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import run_exp
from config import Config, ConfigProblem
from engine import names, settings
from engine.names import Name, all_names, check_variant, resolve
from model.losses import TERM_FILES, canonical_name, term_names

FEW = hypothesis_settings(derandomize=True, max_examples=100, deadline=None)
PACKAGES = ("model", "dataset", "inference")
LISTED = [(package, name) for package in PACKAGES for name in all_names(package)]


@pytest.mark.parametrize(("package", "listed"), LISTED)
def test_every_listed_name_resolves_to_itself_and_its_module_accepts_it(package: str, listed: str) -> None:
    name = resolve(package, listed)
    assert str(name) == listed
    module = name.load()
    assert module.__name__ == f"{package}.{name.stem}"
    assert name.variant in list(module.VARIANTS)
    check_variant(name, module.VARIANTS)
    assert callable(module.build)


@pytest.mark.parametrize(("package", "listed"), LISTED)
def test_names_work_in_any_case_and_without_package_and_prefix(package: str, listed: str) -> None:
    stem = listed.removeprefix(f"{package}.")
    short = stem.removeprefix(f"{package}_")
    for text in (stem, short, listed.upper(), listed.title(), short.upper()):
        assert str(resolve(package, text)) == listed, text


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_listed_once(package: str) -> None:
    listed = all_names(package)
    assert len(listed) == len(set(listed)) > 1
    assert {resolve(package, name).stem for name in listed} == set(names.stems(package))


@pytest.mark.parametrize(("package", "field"), [("model", "model_file"), ("dataset", "dataset_file")])
def test_defaults_are_listed(package: str, field: str) -> None:
    assert settings.get(Config(), field) in all_names(package)
    assert Config().inference.inference_file in all_names("inference")


@pytest.mark.parametrize(
    ("package", "request_", "stem", "variant"),
    [
        ("model", "MODEL.Model_NNUNET", "model_nnunet", ""),
        ("model", "nnunet", "model_nnunet", ""),
        ("model", "unet", "model_unet", ""),
        ("model", "model_unet_resnet34", "model_unet", "resnet34"),
        ("model", "model.model_unet_tu-convnext_tiny", "model_unet", "tu-convnext_tiny"),
        ("model", "simple_unet_quarter", "model_simple_unet", "quarter"),
        ("dataset", "dataset", "dataset", ""),
        ("dataset", "sliding_exclude", "dataset", "sliding_exclude"),
        ("dataset", "dataset.dataset_dali_sliding_exclude", "dataset_dali", "sliding_exclude"),
        ("inference", "inference", "inference", ""),
        ("inference", "Sliding", "inference_sliding", ""),
        ("inference", "inference.inference_sliding", "inference_sliding", ""),
    ],
)
def test_requests(package: str, request_: str, stem: str, variant: str) -> None:
    assert resolve(package, request_) == Name(package, stem, variant)


@pytest.fixture
def fake_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stem in ("model_a", "model_a_b", "model_a_b_c", "model_ab", "other_a"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / f"{stem}.py").touch()
    monkeypatch.setattr(names, "ROOT", tmp_path)


@pytest.mark.usefixtures("fake_files")
@pytest.mark.parametrize(
    ("text", "stem", "variant"),
    [
        ("model_a", "model_a", ""),
        ("model_a_x", "model_a", "x"),
        ("model_a_b", "model_a_b", ""),
        ("model_a_b_x_y", "model_a_b", "x_y"),
        ("model_a_b_c", "model_a_b_c", ""),
        ("model_a_b_cx", "model_a_b", "cx"),
        ("model_a_bc", "model_a", "bc"),
        ("ab_x", "model_ab", "x"),
    ],
)
def test_the_longest_file_name_wins_and_ends_at_an_underscore(text: str, stem: str, variant: str) -> None:
    assert resolve("model", text) == Name("model", stem, variant)


@pytest.mark.usefixtures("fake_files")
@pytest.mark.parametrize(
    "text", ["other_a", "model_abc", "model", "a-b", "dataset.model_a", "model.", "", "../model_a", "model_"]
)
def test_what_no_file_begins_is_refused(text: str) -> None:
    with pytest.raises(ConfigProblem, match="known are model_a, model_a_b, model_a_b_c, model_ab"):
        resolve("model", text)


@FEW
@given(st.sampled_from(PACKAGES), st.text(max_size=20))
def test_any_text_resolves_or_is_a_problem_that_names_it(package: str, text: str) -> None:
    try:
        name = resolve(package, text)
    except ConfigProblem as problem:
        assert repr(text) in str(problem)
    else:
        assert name.stem in names.stems(package)


@pytest.mark.parametrize(
    ("package", "wrong", "near"),
    [
        ("model", "model.model_nnunt", "model_nnunet"),
        ("model", "deeplab", "model_deeplabv3plus"),
        ("model", "MODEL_NUNET", "model_nnunet"),
    ],
)
def test_a_wrong_name_lists_near_ones(package: str, wrong: str, near: str) -> None:
    with pytest.raises(ConfigProblem, match=f"did you mean .*{near}") as problem:
        resolve(package, wrong)
    assert repr(wrong) in str(problem.value)


@pytest.mark.parametrize(
    ("package", "wrong", "near"),
    [
        ("model", "unet_resnet43", "resnet34"),
        ("model", "simple_unet_quater", "quarter"),
        ("dataset", "dataset_slidng", "sliding"),
        ("dataset", "datset_sliding", "dataset.dataset_sliding"),
        ("inference", "inferense", "inference.inference"),
        ("inference", "inference_sliding_exta", "inference.inference_sliding"),
    ],
)
def test_a_wrong_variant_lists_the_modules_own(package: str, wrong: str, near: str) -> None:
    name = resolve(package, wrong)
    with pytest.raises(ConfigProblem, match=near) as problem:
        check_variant(name, name.load().VARIANTS)
    assert str(name) in str(problem.value)


@pytest.mark.parametrize(
    "listed",
    ["model.model_unet_tu-convnext_tiny", "model.model_unet_timm-efficientnet-b0", "model.model_unet_mobilenet_v2"],
)
def test_encoders_beyond_the_table_are_accepted(listed: str) -> None:
    name = resolve("model", listed)
    assert name.load().accepts(name.variant)
    assert not name.load().accepts(name.variant + "-no")


def test_only_the_module_asked_for_is_imported() -> None:
    script = (
        "import sys; from engine.names import resolve; resolve('model', 'simple_unet_half').load();"
        "print([m for m in sys.modules if m.startswith(('model.model_', 'segmentation_models', 'timm'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=names.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['model.model_simple_unet']\n"


# --- losses


def test_loss_terms_are_listed_as_written_and_resolve() -> None:
    listed = term_names()
    assert len(listed) == len(TERM_FILES) == len(set(listed))
    for name in listed:
        assert canonical_name(name) == canonical_name(name.upper()) == canonical_name(name.lower()) == name
        module = importlib.import_module(f"model.losses.term_{name.casefold()}")
        assert name == module.NAME
        assert callable(module.build(Config()).statistics)
    assert canonical_name("_".join(listed)) == "Combined_" + "_".join(listed)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("bce_dice", "Combined_BCE_Dice"),
        ("BCE_DICE", "Combined_BCE_Dice"),
        ("combined_focal_dice", "Combined_Focal_Dice"),
        ("Combined_Dice_Focal", "Combined_Dice_Focal"),
        ("combined_bce", "BCE"),
        ("dice", "Dice"),
    ],
)
def test_spellings_of_losses(text: str, name: str) -> None:
    assert canonical_name(text) == name


@pytest.mark.parametrize(("text", "near"), [("focl_dice", "Focal"), ("Combined_BCE_Dise", "Dice"), ("bse", "BCE")])
def test_an_unknown_term_is_refused_with_the_near_one(text: str, near: str) -> None:
    with pytest.raises(ConfigProblem, match=rf"is no term; terms are .*did you mean .*{near}"):
        canonical_name(text)


# --- the commands that list


@pytest.mark.parametrize(
    ("flag", "listed"),
    [
        ("--list_models", all_names("model")),
        ("--list_datasets", all_names("dataset")),
        ("--list_inference", all_names("inference")),
        ("--list_losses", term_names()),
    ],
)
def test_lists_are_one_name_a_line(flag: str, listed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_exp.main([flag]) == 0
    assert capsys.readouterr().out.splitlines() == listed


def test_a_module_may_list_its_variants_in_any_collection() -> None:
    for variants in ({"": 1, "w48": 2}, ("", "w48"), ["", "w48"]):
        check_variant(Name("model", "model_x", "w48"), SimpleNamespace(VARIANTS=variants).VARIANTS)
        with pytest.raises(ConfigProblem, match=r"model\.model_x_w47 is unknown: .*did you mean model\.model_x_w48"):
            check_variant(Name("model", "model_x", "w47"), variants)
