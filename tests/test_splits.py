"""dataset/splits.py: subjects never on both sides, strata in every fold, files that may be edited by hand."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import ConfigProblem
from dataset.readers import Record, read_competition
from dataset.splits import KNOWN_BENT, check_disjoint, fold_split, hold_out, load_folds, read_strata, save_folds
from engine.files import FileProblem


def records_of(*subjects: int) -> list[Record]:
    return [Record(Path(f"ID{s:03}/image{s}{side}.png"), None, f"ID{s:03}") for s in subjects for side in "ab"]


def subjects_of(records: list[Record]) -> set[str]:
    return {record.subject for record in records}


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# Folds by seed.


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.sets(st.integers(1, 99), min_size=2, max_size=30), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_folds(subjects: set[int], n_folds: int, seed: int) -> None:
    records = records_of(*sorted(subjects))
    if len(subjects) < n_folds:
        with pytest.raises(ConfigProblem, match=r"n_folds is .* subjects: lower --n_folds"):
            fold_split(records, n_folds, 0, seed)
        return
    held_out: list[str] = []
    for fold in range(n_folds):
        train, val = fold_split(records, n_folds, fold, seed)
        assert fold_split(list(reversed(records)), n_folds, fold, seed)[1] == list(reversed(val)), "order is no matter"
        assert sorted(r.key for r in [*train, *val]) == sorted(r.key for r in records)
        assert not subjects_of(train) & subjects_of(val)
        assert train and len(val) // 2 in (len(subjects) // n_folds, -(-len(subjects) // n_folds))
        held_out += [r.key for r in val]
    assert sorted(held_out) == sorted(r.key for r in records), "every record validates in exactly one fold"


def test_folds_without_strata_stay_what_they_were() -> None:
    """Figures of earlier runs hold only on the same folds."""
    records, names = records_of(*range(23)), [f"ID{s:03}" for s in range(23)]
    order = np.random.default_rng(7).permutation(23)
    for fold in range(5):
        expected = {names[i] for i in order[fold::5]}
        assert subjects_of(fold_split(records, 5, fold, 7)[1]) == expected
        assert subjects_of(fold_split(records, 5, fold, 7, dict.fromkeys(names, "all alike"))[1]) == expected


def test_the_seed_decides_the_folds() -> None:
    records = records_of(*range(20))
    strata = {f"ID{s:03}": "ab"[s % 2] for s in range(20)}
    for given_strata in (None, strata):
        splits = {tuple(r.key for r in fold_split(records, 5, 0, seed, given_strata)[1]) for seed in range(10)}
        assert len(splits) > 5


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=8, max_size=40), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_every_fold_has_its_share_of_each_stratum(drawn: list[str], n_folds: int, seed: int) -> None:
    records = records_of(*range(len(drawn)))
    strata = {f"ID{s:03}": stratum for s, stratum in enumerate(drawn)}
    vals = [subjects_of(fold_split(records, n_folds, fold, seed, strata)[1]) for fold in range(n_folds)]
    assert sorted(subject for val in vals for subject in val) == sorted(strata)
    for counts in ([len(val) for val in vals], *([sum(strata[s] == x for s in val) for val in vals] for x in "abcd")):
        assert max(counts) - min(counts) <= 1


def test_a_subject_on_both_sides_fails_loudly() -> None:
    records = records_of(1, 2)
    check_disjoint(records[:2], records[2:])
    with pytest.raises(ConfigProblem, match=r"subjects ID001 \(1 in all\) are in training and validation: split by"):
        check_disjoint(records[:1], records[1:])


# Fold files.


def test_fold_files_give_back_the_folds(tmp_path: Path) -> None:
    records, path = records_of(*range(11)), tmp_path / "new" / "folds.csv"
    strata = {f"ID{s:03}": "ab"[s % 2] for s in range(11)}
    save_folds(path, records, 3, 5, strata)
    lines = path.read_text("utf-8").splitlines()
    assert lines[0] == "subject,fold" and lines[1:] == sorted(lines[1:]) and len(lines) == 12
    for fold in range(3):
        assert load_folds(path, records, fold) == fold_split(records, 3, fold, 5, strata)
    assert [p.name for p in path.parent.iterdir()] == ["folds.csv"]
    with pytest.raises(ConfigProblem, match="lower --n_folds"):
        save_folds(path, records, 12, 5)


def test_an_edited_fold_file(tmp_path: Path) -> None:
    """As a spreadsheet saves it: byte order mark, Windows line ends, another order, more columns, blank lines."""
    path = tmp_path / "folds.csv"
    path.write_bytes("\ufefffold,note,subject\r\n0,,ID001\r\n\r\n1,thin,ID002\r\n-1,,ID003\r\n".encode())
    for fold, held_out in ((0, {"ID001"}), (1, {"ID002"})):
        train, val = load_folds(path, records_of(1, 2, 3), fold)
        assert subjects_of(val) == held_out and subjects_of(train) == {"ID001", "ID002", "ID003"} - held_out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ID001,0", "ID002,1", "ID001,1"], r"line 4: subject 'ID001' is there twice: remove"),
        (["ID001,0"], r"subject ID002 \(1 in all\) of the data is missing: add a line .* -1 always trains"),
        (["ID001,0", "ID002,1", "ID02,1"], r"no training subject is called 'ID02' \(did you mean ID002.*remove its"),
        (["ID001,0", "ID002,one"], r"line 3: subject 'ID002' has fold 'one': it must be a number from 0, or -1"),
        (["ID001,0", "ID002"], r"line 3: subject 'ID002' has fold '': it must be a number"),
        (["ID001,0", "ID002,-2"], r"subject 'ID002' has fold '-2': it must be"),
        (["ID001,0", "ID002,2"], r"fold 1 has no subjects: number the folds from 0 without gaps"),
        (["ID001,1", "ID002,1"], r"fold 0 has no subjects: number"),
        (["ID001,0", "ID002,0"], r"all subjects are in fold 0, so none trains: give some"),
        (["ID001,-1", "ID002,-1"], r"fold 0 has no subjects: number"),
    ],
)
def test_what_a_fold_file_must_not_say(lines: list[str], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "folds.csv", "subject,fold", *lines)
    with pytest.raises(ConfigProblem, match=message) as raised:
        load_folds(path, records_of(1, 2), 0)
    assert str(path) in str(raised.value)


def test_a_fold_that_the_file_does_not_have(tmp_path: Path) -> None:
    path = written(tmp_path / "folds.csv", "subject,fold", "ID001,0", "ID002,1")
    with pytest.raises(ConfigProblem, match=r"fold is 2, but .* has 2 folds, counted from 0: change --fold or it"):
        load_folds(path, records_of(1, 2), 2)


@pytest.mark.parametrize("first", ["subject;fold", "name,fold", "subject", ""])
def test_a_fold_file_without_its_columns(first: str, tmp_path: Path) -> None:
    path = written(tmp_path / "folds.csv", first, "ID001,0")
    with pytest.raises(FileProblem, match=r"has no column '(subject|fold)': its first line must be subject,fold"):
        load_folds(path, records_of(1), 0)


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    utf16 = tmp_path / "utf16"
    utf16.write_bytes("ID001".encode("utf-16"))
    for path, message in ((tmp_path / "absent", "absent cannot be read .*check"), (utf16, "utf16 is no UTF-8 text")):
        with pytest.raises(FileProblem, match=message):
            hold_out(records_of(1), path)
        with pytest.raises(FileProblem, match=message):
            load_folds(path, records_of(1), 0)


# Hold-outs.


def test_hold_out_by_subject_key_and_name(tmp_path: Path) -> None:
    path = tmp_path / "val.txt"
    path.write_bytes(b"# validation\r\n\r\nID001  # thin\r\nID002/image2a\r\n  image2b.png\r\nimage2b.png\r\n")
    records = records_of(1, 2, 3, 4)
    train, val = hold_out(records, path)
    assert val == records[:4] and train == records[4:]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ID001", "ID0002"], r"'ID0002' is no subject, subject/stem or image name .*did you mean ID002.*: correct"),
        (["image1a"], r"'image1a' is no subject"),
        (["ID001", "ID002/image2a"], r"subjects ID002 \(1 in all\) are in .*: split by subject, .* list both hands"),
        (["# nothing", ""], r"lists no image: name the subjects that validate"),
        (["ID001", "ID002", "ID003"], r"lists every image: .*leave others to train"),
    ],
)
def test_what_a_hold_out_must_not_say(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match=message):
        hold_out(records_of(1, 2, 3), written(tmp_path / "val.txt", *lines))


def test_an_image_name_that_two_subjects_have(tmp_path: Path) -> None:
    records = [Record(Path(f"{subject}/left.png"), None, subject) for subject in ("ID001", "ID002", "ID003")]
    with pytest.raises(ConfigProblem, match=r"'left\.png' may mean ID001/left and ID002/left .*: write the one"):
        hold_out(records, written(tmp_path / "val.txt", "left.png"))
    assert hold_out(records, written(tmp_path / "val.txt", "ID002/left"))[1] == [records[1]]


# Strata.


def table(path: Path, **columns: list[object]) -> Path:
    frame = pandas.DataFrame(columns)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_excel(path, index=False)
    return path


SUBJECTS = [f"ID{number:03}" for number in range(1, 13)]


@pytest.mark.parametrize("name", ["meta_data.xlsx", "meta.csv"])
def test_strata_of_a_table(name: str, tmp_path: Path) -> None:
    sexes: list[object] = ["남", "_x0008_남", "남 ", "_x0008_여 ", "여", "", *["여"] * 6]
    meta = table(tmp_path / name, ID=list(SUBJECTS), 성별=sexes, 나이=[*range(30, 41), "?"])
    by_sex = read_strata(meta, [*SUBJECTS, "ID099"], ["sex"])
    assert [by_sex[s] for s in SUBJECTS[:6]] == ["sex 남"] * 3 + ["sex 여"] * 2 + ["sex unknown"]
    assert by_sex["ID099"] == "unknown"
    assert read_strata(meta, SUBJECTS, ["성별"])["ID001"] == "성별 남", "by the file's own name too"
    by_age = read_strata(meta, SUBJECTS, ["AGE"])
    assert Counter(by_age.values()) == {"AGE 1/4": 3, "AGE 2/4": 3, "AGE 3/4": 2, "AGE 4/4": 3, "AGE unknown": 1}
    assert [by_age[s] for s in SUBJECTS[:11]] == sorted(by_age[s] for s in SUBJECTS[:11])
    assert read_strata(meta, SUBJECTS[:1], ["sex", "age"]) == {"ID001": "sex 남, age 30"}, "few values stay themselves"


def test_bent_wrists(tmp_path: Path) -> None:
    """From the competition's list, or from the table's own column where it has one."""
    assert len(KNOWN_BENT) == 47 and "ID320" not in KNOWN_BENT
    subjects = ["ID273", "ID274", "ID319", "ID320", "ID321"]
    listed = read_strata(table(tmp_path / "a.csv", ID=list(subjects)), subjects, ["bent"])
    assert list(listed.values()) == ["bent no", "bent yes", "bent yes", "bent no", "bent yes"]
    told = read_strata(table(tmp_path / "b.csv", ID=list(subjects), Bent=[1, 0, 0, 0, 1]), subjects, ["bent"])
    assert list(told.values()) == ["bent 1", "bent 0", "bent 0", "bent 0", "bent 1"]


def test_strata_of_the_phantom_reach_every_fold(phantom_root: Path) -> None:
    records = read_competition(phantom_root, "train")
    strata = read_strata(phantom_root / "meta_data.xlsx", sorted(subjects_of(records)), ["sex"])
    assert strata.keys() == subjects_of(records) and set(strata.values()) == {"sex 남", "sex 여"}
    counts = [Counter(strata[s] for s in subjects_of(fold_split(records, 2, fold, 0, strata)[1])) for fold in (0, 1)]
    assert all(abs(counts[0][stratum] - counts[1][stratum]) <= 1 for stratum in set(strata.values()))


def test_an_unknown_column(phantom_root: Path) -> None:
    subjects = sorted(subjects_of(read_competition(phantom_root, "train")))
    message = r"'hight', but .* has no such column \(did you mean height.*: choose from sex, age, .*, bent, 나이"
    with pytest.raises(ConfigProblem, match=message):
        read_strata(phantom_root / "meta_data.xlsx", subjects, ["hight"])


def test_tables_that_cannot_be_used(phantom_root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"absent\.xlsx does not exist: add it, or leave out --stratify"):
        read_strata(tmp_path / "absent.xlsx", ["ID001"], ["sex"])
    cut = shutil.copy(phantom_root / "meta_data.xlsx", tmp_path / "cut.xlsx")
    cut.write_bytes(cut.read_bytes()[:3000])
    with pytest.raises(FileProblem, match=r"cut\.xlsx is no readable table .*save it again"):
        read_strata(cut, ["ID001"], ["sex"])
    with pytest.raises(FileProblem, match=r"has no column 'ID', only name, sex: name"):
        read_strata(table(tmp_path / "a.csv", name=["ID001"], sex=["m"]), ["ID001"], ["sex"])
    with pytest.raises(FileProblem, match=r"has ID001 in 2 rows: leave one"):
        read_strata(table(tmp_path / "b.csv", ID=["ID001", "ID001"], sex=["m", "f"]), ["ID001"], ["sex"])
    with pytest.raises(FileProblem, match=r"its column ID has none of the 2 subjects: correct it or the folders"):
        read_strata(table(tmp_path / "c.csv", ID=[1, 2], sex=["m", "f"]), ["ID001", "ID002"], ["sex"])
