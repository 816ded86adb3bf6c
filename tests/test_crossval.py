"""Cross-validation: a run of all folds, and its summary."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import run_carseg, write_pairs
from project import Project

from carseg.columns import LAID, NETS, VIEWS
from carseg.crossval import Row, changed, crossval, dequeue, git, report, run_dvc, sides, wait_for
from carseg.errors import CarsegError
from carseg.files import read_csv, write_csv
from carseg.params import Params


def rows(ious: dict[str, list[float]], lying: list[int]) -> list[Row]:
    """Rows as `evaluate` writes them: all scores of a photo are its IoU, of every net and view."""
    names = [f"{net}_{view}_{s}" for net in NETS for view in VIEWS
             for s in ("dice", "iou", "boundary_iou", "hd95")]  # fmt: skip
    names += [f"{net}_{turn}_iou" for net in NETS for turns in TURNS.values() for turn in turns]
    return [
        {"photo": photo, "lying": str(lies), **{name: str(values[0]) for name in names}}
        | {
            f"dice_{turn}_iou": str(value + added)
            for turns, added in zip(TURNS.values(), (0, 1, 2), strict=True)
            for turn, value in zip(turns, values, strict=True)
        }
        for (photo, values), lies in zip(ious.items(), lying, strict=True)
    ]


TURNS = {
    "plain": ("plain", "turn90", "turn180", "turn270"),
    "upright": ("upright", "upright_turn90", "upright_turn180", "upright_turn270"),
    "closer": ("closer", "closer_turn90", "closer_turn180", "closer_turn270"),
}


def test_a_standing_car_lies_when_its_photo_is_turned_and_the_reverse() -> None:
    table = rows({"a": [0.9, 0.5, 0.8, 0.6], "b": [0.4, 1.0, 0.2, 0.9]}, [0, 1])
    for view, added in (("plain", 0), ("upright", 1), ("closer", 2)):
        found = sides(table, "dice", view)
        assert found["standing"] == pytest.approx((0.9 + 0.8 + 1.0 + 0.9) / 4 + added)
        assert found["lying"] == pytest.approx((0.5 + 0.6 + 0.4 + 0.2) / 4 + added)


def test_the_report_has_every_photo_and_its_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows({"b": [0.9] * 4, "a": [0.7] * 4}, [0, 1])
    report(table, tmp_path / "crossval")
    assert read_csv(tmp_path / "crossval/scores.csv") == table[::-1]
    summary = json.loads((tmp_path / "crossval/summary.json").read_text())
    assert summary["photos"] == 2
    assert summary["dice"]["plain"]["iou"]["mean"] == 0.8
    assert summary["bce"]["d4"]["hd95"]["worst"] == 0.9
    assert summary["bce"]["d4"]["iou"]["worst"] == 0.7
    printed = capsys.readouterr().out
    assert all(f"{net} {view} " in printed for net in NETS for view in VIEWS)


def test_every_summary_is_of_its_own_net_view_and_score(tmp_path: Path) -> None:
    table = rows({"a": [0.9] * 4, "b": [0.7] * 4}, [0, 1])
    for row in table:
        of_their_own = {name: str(k / 1000) for k, name in enumerate(row)}
        row |= of_their_own | {name: row[name] for name in ("photo", "lying")}
    report(table, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for net in NETS:
        for view in VIEWS:
            for score, found in summary[net][view].items():
                assert found["mean"] == float(table[0][f"{net}_{view}_{score}"])
        assert summary["iou_by_side"][net] == {view: sides(table, net, view) for view in LAID}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("split.fold=1", "split.fold"),
        ("keep=best", "keep"),
        ("patience=3", "patience"),
        ("split.val_size=3", "split.val_size"),
        ("params.yaml:split.val_size=3", "split.val_size"),
        ("+keep=best", "keep"),
        ("split={val_size: 1, fold: null}", "split"),
    ],
)
def test_what_a_cross_validation_sets_itself_cannot_be_set(change: str, name: str) -> None:
    said = rf"^--set-param {re.escape(change)}: {name} .* here.*; leave it out$"
    with pytest.raises(CarsegError, match=said):
        crossval([change], Path("crossval"))


@pytest.mark.parametrize(
    "change", ["learning_rate=0.0001,0.0003", "epochs=range(1,3)", "params.yaml:epochs=1,2"]
)
def test_several_values_are_refused_before_anything_is_trained(change: str) -> None:
    said = rf"^--set-param {re.escape(change)}: has several values; take one after the other$"
    with pytest.raises(CarsegError, match=said):
        crossval([change], Path("crossval"))


@pytest.mark.parametrize("change", ["epochs", "epochs=[1"])
def test_what_is_no_setting_is_refused(change: str) -> None:
    said = rf"^--set-param {re.escape(change)}: is not NAME=VALUE as DVC reads it; write it as in "
    with pytest.raises(CarsegError, match=said):
        crossval([change], Path("crossval"))


FULL = "epochs: {epochs}\nkeep: {keep}\npatience: null\nsplit: {{val_size: 1, fold: {fold}}}\n"
SETTINGS = "epochs: 3\nlearning_rate: 1e-4\nlauncher: python\n"


def test_the_parameters_of_a_fold_are_those_that_dvc_makes() -> None:
    overrides = ["epochs=5", "params.yaml:launcher='torchrun --rdzv-endpoint=first:29400'"]
    params = changed(SETTINGS, overrides)
    assert (params.epochs, params.learning_rate) == (5, 1e-4)
    assert params.launcher == "torchrun --rdzv-endpoint=first:29400"
    assert changed(SETTINGS, []) == Params(epochs=3, learning_rate=1e-4)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=0", r"^params\.yaml: epochs is 0; it must be a whole number from 1 to 1000000$"),
        ("+epoch=4", r"^params\.yaml: epoch is not a parameter; did you mean epochs\?$"),
        ("epoch=4", r"^--set-param: .*epoch.*$"),
    ],
)
def test_a_setting_out_of_range_is_told_of_before_anything_is_trained(
    override: str, said: str
) -> None:
    with pytest.raises(CarsegError, match=said) as caught:
        changed(SETTINGS, [override])
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository without a commit, and git as a machine has it that nobody has told a name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for name in ("NAME", "EMAIL"):
        monkeypatch.delenv(f"GIT_COMMITTER_{name}", raising=False)
    monkeypatch.delenv("EMAIL", raising=False)
    git("init", "--quiet")
    git("config", "user.useConfigOnly", "true")
    Path("params.yaml").write_text(FULL.format(epochs=1, keep="best", fold="null"))
    return tmp_path


@pytest.fixture
def project(repository: Path) -> Project:
    """The same with a commit, and git that has been told a name."""
    git("config", "user.name", "a")
    git("config", "user.email", "b")
    project = Project.at(repository)
    project.commit("start")
    return project


def test_folds_that_an_interrupted_call_queued_are_removed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = "Task  Name  Status\na1b2c3d  crossval-fold-7  Queued\nd4e5f6a  mine  Queued\n"
    removed: list[str] = []
    monkeypatch.setattr("carseg.crossval.queue_status", lambda: queue)
    left = Counter({"crossval-fold-1": 2, "crossval-fold-7": 1, "mine": 1})  # two of one name

    def remove(words: list[str], **_: object) -> int:
        removed.append(words[-1])
        left[words[-1]] -= 1
        return int(left[words[-1]] < 0)

    monkeypatch.setattr("carseg.crossval.subprocess.Popen", remove)
    monkeypatch.setattr("carseg.crossval.wait_for", lambda code: code)
    dequeue(["crossval-fold-0", "crossval-fold-1"])
    assert set(removed) == {"crossval-fold-0", "crossval-fold-1", "crossval-fold-7"}
    assert left["crossval-fold-1"] == left["crossval-fold-7"] == -1


def test_what_git_lacks_is_told_of_before_anything_is_done(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carseg.crossval.run_dvc", pytest.fail)
    with pytest.raises(CarsegError, match=r"^git: this project has no commit .*; run git init"):
        crossval([], Path("crossval"))
    Project.at(repository).commit("start")
    with pytest.raises(CarsegError, match=r"^git: does not know who you are; run git config"):
        crossval([], Path("crossval"))
    # What git itself says of other faults names the remedy, on several lines.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    with pytest.raises(CarsegError, match=r"dubious ownership .* safe\.directory") as error:
        crossval([], Path("crossval"))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.usefixtures("repository")
def test_a_place_that_cannot_be_written_to_is_told_of_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("carseg.crossval.run_dvc", pytest.fail)
    Path("notes").write_text("mine")
    with pytest.raises(OSError, match="notes"):
        crossval([], Path("notes"))


LOCK = """stages:
  split: {{deps: [{{path: dataset, md5: {dataset}.dir}}], outs: [{{path: split, md5: {fold}.dir}}]}}
  train_bce:
    deps:
      - {{path: pretrained, md5: {weights}.dir}}
      - {{path: renderings, md5: {renderings}.dir}}
      - {{path: carseg/train.py, md5: {code}}}
"""
CHANGED = "Image, Mask, Weights, renderings or code: were changed while folds ran; run carseg "


@pytest.mark.parametrize(
    ("epochs", "other", "said"),
    [
        (3, "", "crossval-fold-1: ran with other parameters, .*; run dvc queue stop "),
        (4, "dataset", CHANGED),
        (4, "weights", CHANGED),
        (4, "renderings", CHANGED),
        (4, "code", CHANGED),
        (4, "photo", CHANGED),  # judged twice, and another not at all
        (4, "fold", None),
    ],
)
def test_folds_of_other_parameters_photos_or_code_are_not_taken_for_ones_own(
    epochs: int,
    other: str,
    said: str | None,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the call before was cut off and DVC goes on with its fold in the background."""
    inner = project.folder / "inner"  # a project need not be all of its repository
    inner.mkdir()
    monkeypatch.chdir(inner)
    Path("params.yaml").write_text(FULL.format(epochs=1, keep="best", fold="null"))
    write_pairs(inner / "dataset/Image", inner / "dataset/Mask", 2)
    project.commit("photos")
    head = git("rev-parse", "HEAD")
    place = f"refs/exps/{head[:2]}/{head[2:]}"
    for name in ("crossval-fold-7", "mine"):  # of a time when there were more folds; the user's
        git("update-ref", f"{place}/{name}", "HEAD")

    def run(*words: str) -> None:
        if words[:3] == ("exp", "run", "--queue"):
            k = int(words[-1].removeprefix("++split.fold="))
            settings = FULL.format(epochs=epochs if k else 4, keep="last", fold=k)
            Path("params.yaml").write_text(settings)
            inputs = ("dataset", "weights", "renderings", "code", "fold")
            hashes = dict.fromkeys(inputs, "aa")
            Path("dvc.lock").write_text(LOCK.format(**(hashes | ({other: "ab"} if k else {}))))
            photo = "0" if other == "photo" else str(k)
            write_csv(inner / "plots/scores.csv", ("photo",), [[photo]])
            project.commit("fold")
            name = words[words.index("--name") + 1]
            git("update-ref", f"{place}/{name}", "HEAD")
            git("reset", "--quiet", "--hard", head)

    reported: list[list[Row]] = []
    monkeypatch.setattr("carseg.crossval.run_dvc", run)
    monkeypatch.setattr("carseg.crossval.report", lambda rows, _: reported.append(rows))
    if said is None:
        crossval(["epochs=4"], Path("crossval"))
        assert reported == [[{"photo": "0"}, {"photo": "1"}]]
        left = git("for-each-ref", "--format=%(refname:lstrip=4)", place).split()
        assert left == ["crossval-fold-0", "crossval-fold-1", "mine"]
    else:
        with pytest.raises(CarsegError, match=f"^{said}"):
            crossval(["epochs=4"], Path("crossval"))
        assert not reported


@pytest.mark.parametrize(
    ("there", "init"), [("u2netp.onnx", "u2netp"), ("u2net.onnx", None), ("mine.pth", None)]
)
def test_folds_start_from_the_official_weights_that_are_there_now(
    there: str, init: str | None, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC would take those of a time before, as `Weights` in its copy has none of them."""
    monkeypatch.chdir(project.folder)
    Path("params.yaml").write_text(FULL.format(epochs=1, keep="last", fold="null"))
    write_pairs(Path("dataset/Image"), Path("dataset/Mask"), 2)
    Path("Weights").mkdir(exist_ok=True)
    Path("Weights", there).touch()
    project.commit("photos")
    queued: list[str] = []
    monkeypatch.setattr("carseg.crossval.run_dvc", lambda *words: queued.extend(words))
    with pytest.raises(CarsegError, match=r"^crossval-fold-0: did not run to its end"):
        crossval(["params.yaml:epochs=2"], Path("crossval"))
    assert queued.count("params.yaml:epochs=2") == 2
    assert [word for word in queued if word.startswith("init=")] == (
        [f"init={init}"] * 2 if init else []
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs 3\nseed: 1\n", r"^params\.yaml: not valid YAML: "),
        ("- seed\n", r"^params\.yaml: expected lines of the form 'name: value'$"),
        (b"seed: 1 # \xff\n", r"^params\.yaml: not valid YAML: "),
        ("epochs: 1\nepochs: 2\nkeep: best\npatience: null\n", r"^params\.yaml: .*key .epochs."),
    ],
)
def test_settings_that_cannot_be_read_are_told_of_in_a_line(
    text: str | bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("carseg.crossval.run_dvc", pytest.fail)
    Path("params.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(CarsegError, match=said) as caught:
        crossval([], Path("crossval"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.usefixtures("project")
def test_a_fold_that_failed_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(Path("dataset/Image"), Path("dataset/Mask"), 2)
    monkeypatch.setattr("carseg.crossval.run_dvc", lambda *_: None)
    said = "^crossval-fold-0: did not run to its end; see dvc queue logs crossval-fold-0$"
    with pytest.raises(CarsegError, match=said):
        crossval([], Path("crossval"))


@pytest.mark.usefixtures("repository")
def test_a_failure_of_dvc_ends_it() -> None:
    with pytest.raises(CarsegError, match=r"^dvc repro failed; its message is above$"):
        run_dvc("repro")


def test_what_dvc_starts_is_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, sys; sys.exit(not os.environ['PATH'].startswith(sys.argv[1] + os.pathsep))"
    monkeypatch.setattr("carseg.crossval.DVC", (sys.executable, "-c", code))
    monkeypatch.setenv("PATH", "/usr/bin")
    run_dvc(str(Path(sys.executable).parent))


@pytest.mark.usefixtures("project")
def test_who_interrupts_it_is_told_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(Path("dataset/Image"), Path("dataset/Mask"), 2)

    def run(*words: str) -> None:
        if "--run-all" in words:
            raise KeyboardInterrupt

    monkeypatch.setattr("carseg.crossval.run_dvc", run)
    with pytest.raises(KeyboardInterrupt):
        crossval([], Path("crossval"))
    assert "dvc queue stop --kill ends it" in capsys.readouterr().err


def test_options_of_a_cross_validation_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr("carseg.crossval.crossval", lambda *words: given.extend(words))
    run_carseg("crossval", "--set-param", "epochs=2", "-S", "seed=1", "--out", "made")
    assert given == [["epochs=2", "seed=1"], Path("made")]


def test_too_few_pairs_are_told_of_before_anything_is_trained(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("params.yaml").write_text("split: {val_size: 5, fold: null}\nkeep: best\npatience: null\n")
    project.commit("settings")
    write_pairs(Path("dataset/Image"), Path("dataset/Mask"), 5)

    def run(*words: str) -> None:
        assert words == ("repro", "dataset")

    monkeypatch.setattr("carseg.crossval.run_dvc", run)
    with pytest.raises(CarsegError, match=r"^params\.yaml: split\.val_size is 5 but there are 5"):
        crossval([], Path("crossval"))


@pytest.mark.slow
def test_a_run_judges_every_photo_once_and_goes_on_where_it_was(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    write_pairs(project.folder / "Image", project.folder / "Mask", 5)
    project.set({"split": {"val_size": 2, "fold": None}, "patience": 1})
    project.make_shallow()
    project.set({"keep": "best"})
    project.commit("best")
    files = project.user_files()
    command = (*(sys.executable, "-m", "carseg", "crossval"), *("-S", "epochs=1"))
    first = project.run(*command)
    assert first.count("Running stage 'train_") == 4
    assert re.search(r"dice d4 +0\.\d+ +0\.\d+ +0\.\d+ to 0\.\d+ +0\.\d+", first)
    table = project.bytes_of("crossval/scores.csv")
    rows = (project.folder / "crossval/scores.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [str(i) for i in range(5)]
    (ref,) = project.git(
        "for-each-ref", "--format=%(refname)", "refs/exps/*/*/crossval-fold-0"
    ).split()
    settings = yaml.safe_load(project.git("show", f"{ref}:params.yaml"))
    assert (settings["keep"], settings["patience"]) == ("last", None), "they choose no epoch"
    # As if it had been cut off in the last fold, before DVC remembered any training of it.
    (last,) = project.git(
        "for-each-ref", "--format=%(refname)", "refs/exps/*/*/crossval-fold-1"
    ).split()
    stages = yaml.safe_load(project.git("show", f"{last}:dvc.lock"))["stages"]
    (fold,) = (out["md5"] for out in stages["split"]["outs"])
    remembered = [*(project.folder / ".dvc/cache/runs").glob("*/*/*")]
    of_last = [path for path in remembered if fold in path.read_text()]
    assert 3 <= len(of_last) < len(remembered)
    for path in of_last:
        shutil.rmtree(path.parent, ignore_errors=True)
    again = project.run(*command)
    assert again.count("Running stage 'train_") == 2, "the other fold is not trained again"
    assert project.bytes_of("crossval/scores.csv") == table
    assert project.user_files() == files
    changed = set(project.git("status", "--porcelain").splitlines())
    assert changed == {"?? crossval/", "?? dvc.lock"}


class Interrupted(subprocess.Popen[bytes]):
    """A process that Ctrl-C, pressed twice, reaches along with who waits for it."""

    presses = 2

    def wait(self, timeout: float | None = None) -> int:
        if self.presses:
            self.presses -= 1
            self.send_signal(signal.SIGINT)
            raise KeyboardInterrupt
        return super().wait(timeout)


def test_dvc_is_given_the_time_to_set_back_what_it_has_stashed_away(tmp_path: Path) -> None:
    code = """
import signal, sys, time
from pathlib import Path

def stop(*_):
    time.sleep(0.6)
    Path("set_back").touch()
    sys.exit(3)

signal.signal(signal.SIGINT, stop)
print(flush=True)
time.sleep(60)
"""
    process = Interrupted([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout
    with process.stdout as output:
        output.readline()  # it heeds signals from here on
        with pytest.raises(KeyboardInterrupt):
            wait_for(process)
    assert (tmp_path / "set_back").exists()
    assert process.returncode == 3
    assert wait_for(subprocess.Popen([sys.executable, "-c", "exit(4)"])) == 4
