"""The inference commands and inference/plan.py: one network, folds, ensembles, what is fitted for them, shards."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_run_exp import command, elsewhere, one_sentence, read_csv, run, tiny

from config import BEST, Config, ConfigProblem, EnsembleMember
from dataset.readers import read_competition
from dataset.selection import select
from dataset.switches import switches_of
from engine import flags, settings
from engine.files import FileProblem
from inference.command import Commands, main, main_optimise
from inference.fitted import Evidence, Fitted, Member, read_fitted, write_fitted
from inference.plan import OPTIMAL, as_member, plan_ensemble, plan_folds, plan_one, read_folds, read_member
from inference.probs import ProbsFolder
from inference.settings import full_names
from model.checkpoint import read_checkpoint, save_weights
from model.network import build

__all__ = ["elsewhere"]  # a fixture

CSV = "submission.csv"


def cfg_of(data: Path, folder: Path, name: str, *more: str) -> Config:
    """The settings of a tiny run."""
    parsed, _ = flags.parse(tiny(data, folder, name, *more), Commands, "")
    return full_names(parsed.cfg)


def weights(cfg: Config, seed: int, folder: Path | None = None) -> Path:
    """An untrained network that calls some pixels bone, and is sure of few."""
    torch.manual_seed(seed)
    network = build(cfg)
    with torch.no_grad():
        network.get_parameter("body.head.weight").normal_(std=50)
        network.get_parameter("body.head.bias").normal_()
    path = (folder or cfg.folder) / BEST
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, network.state_dict(), cfg, 0.5, 1)
    return path


@pytest.fixture(scope="module")
def runs(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experiments A (64 px), B (96 px, whole images, CLAHE), and K, which has three folds."""
    folder = tmp_path_factory.mktemp("runs")
    weights(cfg_of(phantom_root, folder, "A", "--augment", "heavy"), 1)
    more = ["--image_size", "96", "--inference_file", "inference.inference"]
    weights(cfg_of(phantom_root, folder, "B", *more, "--dataset_file", "dataset.dataset_sliding_clahe"), 2)
    for k in range(3):
        weights(cfg_of(phantom_root, folder / "K", f"fold{k}", "--fold", str(k)), 3 + k)
    return folder


def infer(script: str, *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of an inference command in this process."""
    style = "" if script == "inference" else f"inference.{script}"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([*argv, "--device", "cpu"], style)
        except SystemExit as left:
            assert isinstance(left.code, int)
            code = left.code
    return code, out.getvalue(), err.getvalue()


def written(script: str, folder: Path, *argv: str) -> bytes:
    """The CSV that a command writes into a new folder."""
    code, out, err = infer(script, *argv, "--output", str(folder))
    assert code == 0, err
    assert f"CSV: {folder / CSV}" in out
    return (folder / CSV).read_bytes()


def test_every_command_writes_a_complete_csv(runs: Path, phantom_root: Path, tmp_path: Path) -> None:
    names = [record.name for record in read_competition(phantom_root, "test")]
    commands = {
        "inference": ["--exp_name", "A"],
        "inference_sliding": ["--exp_name", "B"],
        "inference_mixed": ["--exp_name", "A", "--mixed_size", "32"],
        "inference_tta": ["--exp_name", "A"],
        "inference_kfold": ["--exp_name", "K"],
        "inference_ensemble": ["--exp_name", "E", "--ensemble_models", members(runs, "A", "B", "K")],
    }
    found = {}
    for script, argv in commands.items():
        found[script] = written(script, tmp_path / script, *argv, "--output_dir", str(runs))
        rows = read_csv(tmp_path / script / CSV)
        assert [row["image_name"] for row in rows[::29]] == names and len(rows) == 29 * len(names)
        record = json.loads((tmp_path / script / "config.json").read_text())
        assert record["inference"]["inference_file"].startswith("inference.inference")
        assert (tmp_path / script / "per_class.csv").exists(), "the phantom's test split has labels"
    assert len(set(found.values())) == len(found), "each command predicts in its own way"


def members(runs: Path, *names: str, **more: Any) -> str:
    return json.dumps([{"path": str(runs / name), **more} for name in names])


def test_an_ensemble_of_one_is_that_one(runs: Path, tmp_path: Path) -> None:
    """In its own style and with its own preparation, whatever the ensemble's."""
    for name, script in (("A", "inference"), ("B", "inference"), ("K", "inference_kfold")):
        alone = written(script, tmp_path / name, "--exp_name", name, "--output_dir", str(runs))
        one = written("inference_ensemble", tmp_path / f"{name}1", "--ensemble_models", members(runs, name))
        assert one == alone


@pytest.mark.parametrize("vote", ["soft", "hard", "logit"])
def test_equal_members_equal_one(vote: str, runs: Path, tmp_path: Path) -> None:
    alone = written("inference", tmp_path / "one", "--exp_name", "A", "--output_dir", str(runs))
    same = members(runs, "A", "A", "A")
    assert written("inference_ensemble", tmp_path / "three", "--ensemble_models", same, "--vote", vote) == alone


def test_weights_of_members_and_of_classes(runs: Path, tmp_path: Path) -> None:
    listed = [{"path": str(runs / "A"), "weight": 0, "class_weights": {"Ulna": 1}}, {"path": str(runs / "B")}]
    listed[1]["class_weights"] = {"Ulna": 0}
    Path("members.json").write_text(json.dumps(listed))
    written("inference_ensemble", tmp_path / "E", "--ensemble_models", "@members.json")
    for name in ("A", "B"):
        written("inference", tmp_path / name, "--exp_name", name, "--output_dir", str(runs))
    a, b, both = (read_csv(tmp_path / name / CSV) for name in ("A", "B", "E"))
    for row_a, row_b, row in zip(a, b, both, strict=True):
        assert row == (row_a if row["class"] == "Ulna" else row_b)


def test_members_of_other_formats_and_places(runs: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "renamed.safetensors"
    moved.parent.mkdir()
    moved.write_bytes((runs / "A" / BEST).read_bytes())
    alone = written("inference", tmp_path / "one", "--exp_name", "A", "--output_dir", str(runs))
    listed = json.dumps([{"path": str(moved)}, {"path": str(runs / "A"), "weight": 2}])
    assert written("inference_ensemble", tmp_path / "two", "--ensemble_models", listed) == alone


@pytest.mark.full
def test_an_exported_member(runs: Path, tmp_path: Path) -> None:
    exported = tmp_path / "A.onnx"
    done = command(
        "scripts/export.py", "--checkpoint", str(runs / "A" / BEST), "--format", "onnx", "--output", str(exported),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    listed = json.dumps([{"path": str(exported)}, {"path": str(runs / "B")}])
    plain = json.dumps([{"path": str(runs / "A")}, {"path": str(runs / "B")}])
    onnx, torch_ = (
        written("inference_ensemble", tmp_path / name, "--ensemble_models", each, "--save_masks", "packed")
        for name, each in (("onnx", listed), ("torch", plain))
    )
    assert onnx[:40] == torch_[:40]
    for found in (tmp_path / "onnx" / "masks").iterdir():
        ours, theirs = (np.load(tmp_path / name / "masks" / found.name)["bits"] for name in ("onnx", "torch"))
        assert np.mean(ours != theirs) < 1e-3, "two runtimes round differently"


def test_a_members_own_settings_and_those_of_all(runs: Path) -> None:
    own = settings.replace(Config(), {"stride": 64, "tta_mode": "flip", "inference_file": "inference.inference"})
    entry = EnsembleMember("x")
    assert as_member(own, Config(), entry, ()) == own
    asked = settings.replace(Config(), {"blend": "probs", "stride": 512})
    assert as_member(own, asked, entry, ()) == settings.replace(own, {"blend": "probs"})
    assert as_member(own, asked, entry, {"stride", "vote"}) == settings.replace(own, {"blend": "probs", "stride": 512})
    styled = EnsembleMember("x", inference_file="inference.inference_sliding", dataset_file="dataset.dataset_clahe")
    found = as_member(own, Config(), styled, ())
    assert (found.inference.inference_file, found.data.dataset_file) == (styled.inference_file, styled.dataset_file)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--ensemble_models", "[]"], "ensemble_models is empty"),
        (["--ensemble_models", '[{"path": "nowhere"}]'], "nowhere does not exist"),
        (["--ensemble_models", '[{"path": "empty"}]'], "holds neither best.safetensors nor folds"),
        (["--ensemble_models", '[{"path": "RUNS/A", "weight": -1}]'], "weight -1 must be"),
        (["--ensemble_models", '[{"path": "RUNS/A", "weight": 0}]'], "no member has a weight above 0 for finger-1"),
        (["--ensemble_models", '[{"path": "RUNS/A", "class_weights": {"Ulnar": 1}}]'], "did you mean Ulna?"),
        (["--ensemble_models", '[{"path": "RUNS/A", "inference_file": "slidin"}]'], "did you mean"),
        (["--ensemble_models", '[{"path": "RUNS/A"}]', "--split", "val"], "split val"),
        (["--ensemble_models", '[{"path": "RUNS/A"}]', "--vote", "sift"], "did you mean soft?"),
        (["--ensemble_models", '[{"path": "RUNS/A"}]', "--lr", "1"], "The training decided this"),
        (["--ensemble_models", '[{"path": "RUNS/B"}]', "--use_tta"], "never showed these views"),
    ],
)
def test_what_an_ensemble_refuses(argv: Sequence[str], said: str, runs: Path) -> None:
    Path("empty").mkdir()
    code, _, err = infer("inference_ensemble", *(word.replace("RUNS", str(runs)) for word in argv))
    assert code in (1, 2) and said in err and one_sentence(err)
    assert not Path("checkpoints").exists()


def test_short_forms(runs: Path, tmp_path: Path) -> None:
    short = written("inference", tmp_path / "a", "--exp_name", "A", "--output_dir", str(runs), "--use_tta")
    long = written("inference", tmp_path / "b", "--exp_name", "A", "--output_dir", str(runs), "--tta_mode", "flip")
    tta = written("inference_tta", tmp_path / "c", "--exp_name", "A", "--output_dir", str(runs))
    plain = written("inference", tmp_path / "d", "--exp_name", "A", "--output_dir", str(runs))
    assert short == long == tta != plain
    for value, expected in (("True", short), ("False", plain)):
        folder = tmp_path / value
        argv = ["--exp_name", "A", "--output_dir", str(runs), "--use_tta", value]
        assert written("inference", folder, *argv) == expected
    windows = ["--exp_name", "B", "--output_dir", str(runs)]
    assert written("inference", tmp_path / "e", *windows, "--use_sliding_window") == written(
        "inference_sliding", tmp_path / "f", *windows
    )


def test_out_of_fold_every_fold_predicts_what_it_has_not_seen(runs: Path, phantom_root: Path, tmp_path: Path) -> None:
    argv = ["--exp_name", "K", "--output_dir", str(runs), "--split", "val", "--save_probs"]
    written("inference_kfold", tmp_path / "oof", *argv)
    rows = {row["image_name"]: row for row in read_csv(tmp_path / "oof" / CSV)}
    assert set(rows) == {record.name for record in read_competition(phantom_root, "train")}
    store = ProbsFolder(tmp_path / "oof" / "probs")
    folds = read_folds(runs / "K")
    assert store.members == tuple(fold.sha256 for fold in folds)
    for k, fold in enumerate(folds):
        mine = select(fold.cfg, switches_of(fold.cfg))[1]
        one = ["--checkpoint", str(fold.path), "--split", "val", "--save_probs"]
        written("inference", tmp_path / f"fold{k}", *one)
        alone = ProbsFolder(tmp_path / f"fold{k}" / "probs")
        assert alone.keys() == tuple(sorted(record.key for record in mine))
        for key in alone.keys():  # noqa: SIM118 (not a dict)
            for ours, theirs in zip(store.read(key).values, alone.read(key).values, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_shards_merge_to_the_same_csv(runs: Path, tmp_path: Path) -> None:
    argv = ["--exp_name", "A", "--output_dir", str(runs)]
    whole = written("inference", tmp_path / "whole", *argv)
    for index in (2, 1, 3):
        code, out, err = infer("inference", *argv, "--shard", f"{index}/3", "--output", str(tmp_path / "parts"))
        assert code == 0, err
        assert ("CSV:" in out) == (index == 3)
    assert (tmp_path / "parts" / CSV).read_bytes() == whole
    code, _, err = infer("inference", *argv, "--shard", "1/3")
    assert (code, one_sentence(err)) == (2, True) and "needs --output" in err


def test_two_processes_by_torchrun(runs: Path, tmp_path: Path) -> None:
    argv = ["--exp_name", "A", "--output_dir", str(runs), "--device", "cpu"]
    whole = written("inference", tmp_path / "whole", *argv)
    done = command("inference/inference.py", *argv, "--gpus", "2", "--output", str(tmp_path / "two"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two" / CSV).read_bytes() == whole


def test_an_inference_has_as_many_processes_as_it_is_asked_for(
    phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not as many as trained the network."""
    weights(cfg_of(phantom_root, tmp_path, "G", "--gpus", "4"), 1)
    monkeypatch.setattr("engine.launch.launch", lambda *started: pytest.fail("processes were started"))
    code, _, err = infer("inference", "--exp_name", "G", "--output_dir", str(tmp_path))
    assert code == 0, err


def test_folds_are_named_where_there_is_no_single_best(runs: Path) -> None:
    code, _, err = infer("inference", "--exp_name", "K", "--output_dir", str(runs))
    assert (code, one_sentence(err)) == (1, True) and "run inference/inference_kfold.py" in err


def test_results_get_new_folders(runs: Path) -> None:
    argv = ["--exp_name", "B", "--output_dir", str(runs)]
    for name in ("test", "test-2"):
        code, out, err = infer("inference", *argv)
        assert code == 0, err
        assert f"CSV: {runs / 'B' / 'inference' / name / CSV}" in out


def fitted_for(plan_classes: Sequence[str], members: Sequence[Member], **values: Any) -> Fitted:
    chosen = {"weights": None, "thresholds": None, "post_process": (), **values}
    nothing = Evidence("together", "", 0.5, 0.4, 0.1, 0.05, 0.15, 0.1, 0.05, 0.15, True, True, False)
    return Fitted(tuple(plan_classes), tuple(members), **chosen, evidence=(nothing,))


def test_what_was_fitted_is_picked_up(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "A"
    folder.mkdir()
    (folder / BEST).write_bytes((runs / "A" / BEST).read_bytes())
    trained = read_checkpoint(folder / BEST)
    cfg = settings.replace(trained.cfg, {"use_optimal_threshold": True, "optimal_thresholds": {"Ulna": 0.9}})
    with pytest.raises(FileProblem, match=r"optimal\.json cannot be read.*inference/optimize\.py"):
        plan_one(trained, cfg)
    thresholds = tuple(0.3 + 0.01 * k for k in range(29))
    member = Member(str(folder), (trained.sha256,))
    found = fitted_for(cfg.data.classes, [member], thresholds=thresholds, post_process=("largest",))
    write_fitted(folder / OPTIMAL, found)
    plan = plan_one(trained, cfg)
    expected = dict(zip(cfg.data.classes, thresholds, strict=True)) | {"Ulna": 0.9}
    assert plan.cfg.inference.optimal_thresholds == expected, "what is given by hand stays"
    assert plan.cfg.inference.post_process == ("largest",)
    assert "optimal_thresholds, post_process" in capsys.readouterr().out
    kept = plan_one(trained, settings.replace(cfg, {"post_process": ("fill_holes",)}))
    assert kept.cfg.inference.post_process == ("fill_holes",)
    assert plan_one(trained, trained.cfg).cfg.inference.optimal_thresholds == {}, "only where it is asked for"
    weights(trained.cfg, 77, folder)
    with pytest.raises(FileProblem, match="have changed since the fit"):
        plan_one(read_checkpoint(folder / BEST), cfg)


def test_fitted_weights_of_an_ensemble(runs: Path, tmp_path: Path) -> None:
    listed = tuple(EnsembleMember(str(runs / name)) for name in ("A", "K"))
    cfg = settings.replace(
        read_member(str(runs / "A"))[0].cfg,
        {"exp_name": "E", "output_dir": str(tmp_path), "ensemble_models": listed, "ensemble_use_optimization": True},
    )
    shas = [tuple(t.sha256 for t in read_member(str(runs / name))) for name in ("A", "K")]
    rows = (tuple([0.25] * 29), tuple([0.75] * 29))
    found = fitted_for(cfg.data.classes, [Member(m.path, s) for m, s in zip(listed, shas, strict=True)], weights=rows)
    write_fitted(tmp_path / "E" / OPTIMAL, found)
    plan = plan_ensemble(cfg)
    assert [voter.weights for voter in plan.voters] == list(rows)
    ensemble, _ = next(plan.ensembles("cpu"))
    torch.testing.assert_close(ensemble.weights, torch.tensor([[0.25], [0.25], [0.25], [0.25]]).expand(4, 29))
    equal = plan_ensemble(settings.replace(cfg, {"ensemble_use_optimization": False}))
    assert equal.sha256[:-1] == plan.sha256[:-1] and equal.sha256[-1] != plan.sha256[-1], "weights are results' origin"


def optimise(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main_optimise([*argv, "--device", "cpu"])
        except SystemExit as left:
            assert isinstance(left.code, int)
            code = left.code
    return code, out.getvalue(), err.getvalue()


def test_optimize_one_experiment_and_an_ensemble(runs: Path, tmp_path: Path) -> None:
    code, out, err = optimise("--exp_name", "K", "--output_dir", str(runs), "--post_process", "min_area=20")
    assert code == 0, err
    found = read_fitted(runs / "K" / OPTIMAL)
    assert found.members[0].sha256 == tuple(fold.sha256 for fold in read_folds(runs / "K"))
    assert "noise" in out or "clears" in out
    assert (runs / "K" / "thresholds.png").stat().st_size > 10_000
    assert len(read_csv(runs / "K" / "thresholds.csv")) == 255
    code, out, err = infer("inference_kfold", "--exp_name", "K", "--output_dir", str(runs), "--use_optimal_threshold")
    assert code == 0, err
    assert f"{runs / 'K' / OPTIMAL}: " in out

    # Members that were validated on the same images; the store of a member that is there already is used again.
    same = json.dumps([{"path": str(runs / "A")}, {"path": str(runs / "B")}])
    ensemble = ["--exp_name", "E", "--output_dir", str(tmp_path), "--ensemble_models", same]
    code, out, err = optimise(*ensemble)
    assert code == 0, err
    stores = sorted(runs.glob("[AB]/inference/oof-*"))
    assert len(stores) == 2
    before = [path.stat().st_mtime_ns for store in stores for path in store.rglob("*.probs")]
    code, out, err = infer("inference_ensemble", *ensemble, "--ensemble_use_optimization")
    assert code == 0, err
    assert before == [path.stat().st_mtime_ns for store in stores for path in store.rglob("*.probs")]
    assert len(read_fitted(tmp_path / "E" / OPTIMAL).members) == 2


def test_an_ensemble_is_fitted_where_that_is_asked_for_and_missing(runs: Path, tmp_path: Path) -> None:
    same = json.dumps([{"path": str(runs / "A")}, {"path": str(runs / "A")}])
    argv = ["--exp_name", "F", "--output_dir", str(tmp_path), "--ensemble_models", same]
    code, _, err = infer("inference_ensemble", *argv, "--ensemble_use_optimization")
    assert code == 0, err
    assert (tmp_path / "F" / OPTIMAL).exists() and list(tmp_path.glob("F/inference/test/submission.csv"))


def test_run_exp_ends_with_the_style_that_is_asked_for(runs: Path, phantom_root: Path, tmp_path: Path) -> None:
    more = ["--augment", "heavy", "--wandb", "off", "--debug"]
    code, out, err = run(*tiny(phantom_root, tmp_path, "T", "--inference_file", "tta", *more))
    assert code == 0, err
    (folder,) = (tmp_path / "T" / "inference").glob("*")
    assert json.loads((folder / "config.json").read_text())["inference"]["inference_file"] == "inference.inference_tta"
    listed = json.dumps([{"path": str(tmp_path / "T")}, {"path": str(runs / "A")}])
    style = ["--inference_file", "ensemble", "--ensemble_models", listed]
    code, out, err = run(*tiny(phantom_root, tmp_path, "U", *style, *more))
    assert code == 0, err
    assert str(runs / "A" / BEST) in out and str(tmp_path / "T" / BEST) in out


def test_run_exp_runs_an_ensemble_of_others(runs: Path, tmp_path: Path) -> None:
    argv = ["--exp_name", "E", "--output_dir", str(tmp_path), "--inference_file", "ensemble", "--eval_only", "--cpu"]
    argv += ["--ensemble_models", members(runs, "A", "B")]
    code, out, err = run(*argv, "--dry_run")
    assert code == 0, err
    assert "would predict 4 images with 2 networks" in out and not (tmp_path / "E").exists()
    code, out, err = run(*argv)
    assert code == 0, err
    whole = written("inference_ensemble", tmp_path / "x", "--ensemble_models", members(runs, "A", "B"))
    assert (tmp_path / "E" / "inference" / "test" / CSV).read_bytes() == whole


def test_a_validation_split_needs_one(runs: Path, phantom_root: Path, tmp_path: Path) -> None:
    weights(cfg_of(phantom_root, tmp_path, "N", "--fold", "none"), 1)
    code, _, err = infer("inference", "--exp_name", "N", "--output_dir", str(tmp_path), "--split", "val")
    assert (code, one_sentence(err)) == (1, True) and "trained without validation images" in err


def test_the_validation_split_is_scored(runs: Path, tmp_path: Path) -> None:
    written("inference", tmp_path / "val", "--exp_name", "A", "--output_dir", str(runs), "--split", "val")
    cfg = read_member(str(runs / "A"))[0].cfg
    names = {record.name for record in select(cfg, switches_of(cfg))[1]}
    assert {row["image_name"] for row in read_csv(tmp_path / "val" / CSV)} == names
    assert len(read_csv(tmp_path / "val" / "per_class.csv")) == 29


def test_folds_and_ensembles_know_their_own(runs: Path, phantom_root: Path) -> None:
    folds = read_folds(runs / "K")
    cfg = folds[0].cfg
    plan = plan_folds(folds, settings.replace(cfg, {"split": "val"}), runs / "K")
    assert [len(part) for part in plan.by_fold] == [4, 4, 4] and len(plan.records) == 12
    mean = plan_folds(folds, cfg, runs / "K")
    assert not mean.by_fold and mean.scale == "vote soft" and plan.scale == "logits"
    with pytest.raises(ConfigProblem, match="ensemble_models is empty"):
        plan_ensemble(cfg)
