"""What a log shows of a planted defect: each sentence against the numbers of real short runs."""
import ast
import dataclasses
import json
import platform
import re
import shutil
from pathlib import Path

import pytest

import settings
from exercises import defects, symptoms
from exercises.symptoms import NOT_IN_A_LOG, README, SYMPTOMS, Symptom

ROOT = Path(settings.__file__).parent
KEPT = symptoms.kept()
TEXTS = {**SYMPTOMS, **{row: symptom for row, (symptom, _, _) in README.items()}}


@pytest.mark.parametrize("name", KEPT)
def test_a_symptom_is_what_a_short_run_has_shown(name):
    """Where no sentence is told, nothing that a reader would notice differs."""
    entry = KEPT[name]
    if name in TEXTS:
        assert entry["run"] == TEXTS[name].run and TEXTS[name].holds(entry["numbers"])
    else:
        assert entry["run"] in (*symptoms.RUNS, None)
        assert symptoms.told(name, ("tests/test_x.py::test_y",))[1].endswith("test_x.py::test_y")


def test_what_has_no_sentence_shows_nothing():
    """`bug` said that nothing in the log gives it away, where a loss was a hundred times as large.
    The first number of a column: later ones are of policies that have gone other ways."""
    for name in KEPT.keys() - TEXTS.keys():
        for column, (without, with_) in KEPT[name]["numbers"].items():
            assert abs(without[0] - with_[0]) < 0.25, (name, column)


def test_what_has_not_been_measured_says_so(monkeypatch):
    """With a sentence and without one."""
    monkeypatch.setattr(symptoms, "kept", dict)
    assert "no run has been measured" in symptoms.told("mean-over-pads", ("tests/a.py::b",))[0]
    assert symptoms.told("clip-alone", ("tests/a.py::b",)) == [
        "What a log would show has not been measured.", "What finds it: tests/a.py::b"]


def test_what_is_measured_is_what_there_is():
    assert list(KEPT) == [name for name in symptoms.every() if name in KEPT]
    assert set(SYMPTOMS) <= {d.name for d in defects.with_tests()}


def test_each_row_of_the_readmes_table_is_measured_or_said_not_to_be():
    section = (ROOT / "README.md").read_text().partition("## When something looks wrong")[2]
    rows = re.findall(r"^\| (.+?) \| .+ \| .+ \|$", section.partition("\n## ")[0], re.M)[1:]
    assert sorted(rows) == sorted([*README, *NOT_IN_A_LOG])
    for row, (symptom, flags, defect) in README.items():
        named = re.findall(r"`([a-z_/]+)`", row)
        assert named in ([], [symptom.column]) and bool(flags) != bool(defect)


def test_columns_that_a_sentence_names_are_those_of_a_log():
    source = "".join((ROOT / f).read_text() for f in ("sft.py", "reward.py", "ppo.py",
                                                      "runtime/episodes.py"))
    logged = {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)} | {
        k.arg for k in ast.walk(ast.parse(source)) if isinstance(k, ast.keyword)}
    for symptom in TEXTS.values():
        assert set(re.findall(r"`([a-z_]+(?:/[a-z_]+)?)`", symptom.text)) <= logged


def test_a_sentence_is_held_to_its_numbers():
    numbers = {"kl": [[0.0, 1.0, 2.0], [0.0, 3.0, 5.0]],
               "loss": [[1.0, 1.0, 1.0], [0.5, 0.5, None]]}
    base = Symptom("", "ppo", "kl", "last", "above", 2.5)
    holds = lambda **changes: dataclasses.replace(base, **changes).holds(numbers)
    assert holds() and not holds(by=3.5) and not holds(than="below") and not holds(column="x")
    assert holds(place="mean", by=1.5) and not holds(place="first", by=0.0)
    assert holds(column="loss", place="first", than="below", by=0.4)
    assert not holds(column="loss", place="last", than="below", by=0.4), "NaN is no number"
    assert holds(than="is", by=5.0)
    assert not holds(place="first", than="is", by=0.0), "without the defect it is that, too"


def test_what_differs_between_two_logs():
    rows = [{"step": 1, "loss": 2.0, "lr": 0.1}, {"step": 2, "loss": 1.0, "lr": 0.1, "valid": 3.0}]
    own = symptoms.summary(rows)
    assert own == {"loss": [2.0, 1.5, 1.0], "lr": [0.1] * 3, "valid": [3.0] * 3, "steps": [2] * 3}
    other = symptoms.summary([{**row, "loss": float("nan")} for row in rows] + [rows[1]])
    assert symptoms.differing(own, other) == {
        "loss": [[2.0, 1.5, 1.0], [None, None, 1.0]], "steps": [[2] * 3, [3] * 3]}
    assert symptoms.differing(own, own) == {}
    assert symptoms.differing(own, own, "lr") == {"lr": [[0.1] * 3] * 2}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc fills memory")
def test_what_nobody_has_written_to_is_zero_in_a_run(tmp_path, monkeypatch):
    """Two symptoms came and went with what was in memory: their defects read it."""
    (tmp_path / "run.py").write_text(
        "import torch\nfor n in (2**14, 2**18, 2**22):\n    for _ in range(4):\n"
        "        x = torch.full((n,), 3.0)\n        del x\n        y = torch.empty(n)\n"
        "        print(int(y.count_nonzero()))\n        y.fill_(7.0)\n        del y\n")
    monkeypatch.setenv("MALLOC_PERTURB_", "64")
    done = symptoms.command(tmp_path, "run.py", tmp_path)
    assert done.returncode == 0 and set(done.stdout.split()) == {"0"}, done


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the sources, where defects are planted."""
    return symptoms.copied(tmp_path_factory.mktemp("symptoms") / "project")


@pytest.fixture(scope="module")
def lab(once, tmp_path_factory):
    made = once("lab", lambda folder: symptoms.make_lab(folder, ROOT))
    return shutil.copytree(made, tmp_path_factory.mktemp("symptoms") / "lab")


@pytest.mark.long
@pytest.mark.parametrize("run", sorted({symptom.run for symptom in TEXTS.values()}))
def test_the_runs_show_it_again(run, lab, project):
    """Each run without and with its defects, as `python -m exercises.symptoms` makes them."""
    clean, wrong = {}, {}
    for name in (name for name, symptom in TEXTS.items() if symptom.run == run):
        entry = symptoms.measured(name, lab, project, clean)
        if not TEXTS[name].holds(entry["numbers"]):
            wrong[name] = entry
    assert not wrong


@pytest.mark.long
def test_the_command_writes_what_it_has_measured(lab, tmp_path, monkeypatch, capsys):
    """Into its place among the others."""
    others = {name: entry for name, entry in KEPT.items() if name != "floor-forgotten"}
    monkeypatch.setattr(symptoms, "KEPT", tmp_path / "symptoms.json")
    symptoms.KEPT.write_text(json.dumps(others))
    monkeypatch.setattr(symptoms, "make_lab", lambda folder, _: shutil.copytree(lab, folder))
    symptoms.main(["floor-forgotten"])
    found = symptoms.kept()
    assert list(found) == list(KEPT) and {**found, **others} == found
    assert SYMPTOMS["floor-forgotten"].holds(found["floor-forgotten"]["numbers"])
    assert "floor-forgotten: {" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nothing: no defect with tests"):
        symptoms.main(["nothing"])
