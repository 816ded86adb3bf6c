"""The pipeline as its user runs it: real DVC, in a fresh repository, with tiny pictures."""

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from conftest import PAIRS, Run, write_pairs
from project import ROOT, TINY, Project

from carseg.card import Card
from carseg.columns import TASKS
from carseg.settings import settings_of

CHANGES = ("--set-param", "epochs=1", "--set-param", "learning_rate=3e-4")
# As README has it: back to the last commit.
(BACK,) = re.findall(r"^(git checkout \. && .*?)  ", (ROOT / "README.md").read_text(), re.M)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def committed(ran: Run, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = ran.project.copy(tmp_path_factory.mktemp("pipeline") / "with a space")
    project.commit("run")
    return project


@pytest.fixture
def finished(committed: Project) -> Iterator[Project]:
    """A project that has been run once and committed, left as it was by each test."""
    yield committed
    for name in ("Image/new.jpg", "Mask/new.png"):  # which git ignores
        (committed.folder / name).unlink(missing_ok=True)
    if committed.git("status", "--porcelain"):
        committed.git("checkout", "--quiet", "--", ".")
        committed.git("clean", "-fdq", "plots")
        committed.dvc("checkout", "--force")


def test_repro_makes_every_result(finished: Project) -> None:
    tasks = finished.bytes_of("u2net_segmentation.pth", "u2net_segmentation_dice_loss.pth")
    assert len(set(tasks.values())) == 2, "task 2 learns, too"
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    assert list(metrics) == ["untrained", "bce", "dice"]
    for task in ("bce", "dice"):
        rows = (finished.folder / f"plots/{task}.csv").read_text().splitlines()
        assert len(rows) == 1 + 1 + TINY["epochs"]
    assert (finished.folder / "report.html").stat().st_size > 10_000
    for stage in ("train_bce", "train_dice", "evaluate"):
        told = json.loads((finished.folder / f"provenance/{stage}.json").read_text())
        assert told["precision"] == TINY["precision"]
    overlays = {path.name for path in (finished.folder / "plots/overlays").iterdir()}
    validated = re.findall(r"Image/(\d+)\.jpg", (finished.folder / "split/val.csv").read_text())
    assert overlays == {f"{name}_{task}.jpg" for name in validated for task in ("bce", "dice")}


def test_weights_of_a_run_are_known_by_what_dvc_recorded(finished: Project) -> None:
    file = finished.folder / "u2net_segmentation_dice_loss.pth"
    trained, judged = Card.of(file, "u2netp", 64)[-2:]
    assert trained.params is not None
    assert trained.params.epochs == TINY["epochs"]
    assert trained.data is not None
    assert trained.data.endswith(".dir")
    assert not isinstance(judged.scores, str)
    assert (trained.train, judged.validation) == (PAIRS - 1, 1)
    finished.set({"image_size": 96})
    assert settings_of(file).image_size == 64


@pytest.mark.parametrize(("module", "code"), [("carseg.train", 1), ("elsewhere", 0)])
def test_a_warning_about_the_projects_code_ends_a_run(
    module: str, code: int, finished: Project
) -> None:
    warning = f"import warnings; warnings.warn_explicit('old', FutureWarning, '', 1, {module!r})"
    finished.run(sys.executable, "-c", warning, expect=code)


def test_what_a_run_trained_predicts_and_is_exported(finished: Project) -> None:
    names = {path.stem for path in (finished.folder / "Image").glob("*.jpg")}
    for i, weights in enumerate(((), ("--weights", "u2net_segmentation.pth"))):
        out = finished.folder.with_name(f"masks{i}")
        finished.carseg("predict", "Image", *weights, "--out", str(out))
        assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in names}
    finished.carseg("export", "--format", "onnx", "--out", "../exported")
    assert (finished.folder.with_name("exported") / "model.onnx").is_file()
    finished.carseg("predict", "Image")
    finished.carseg("export", "--format", "safetensors")
    for name in ("predicted", "exported"):  # which git is to leave out, as README says
        assert any((finished.folder / name).iterdir())
    assert finished.git("status", "--porcelain") == ""
    for name in ("predicted", "exported"):
        shutil.rmtree(finished.folder / name)
    assert "untrained" in finished.carseg("scores")


@pytest.mark.parametrize(
    ("file", "change", "command", "said"),
    [
        ("params.yaml", ("epochs: ", "epochs "), ["repro"], "YAML file structure is corrupted"),
        ("params.yaml", ("", ""), ["exp", "run", "-S", "epoch=3"], "is not in struct"),
        ("params.yaml", ("patience: ", "p: "), ["repro"], "are missing from 'params.yaml'"),
        ("dvc.lock", ("size: ", "size: many"), ["repro"], "'./dvc.lock' validation failed"),
    ],
)
def test_what_dvc_says_of_a_spoilt_file_is_found_in_the_troubleshooting(
    file: str, change: tuple[str, str], command: Sequence[str], said: str, ran: Run, tmp_path: Path
) -> None:
    project = ran.project.copy(tmp_path / "spoilt")
    path = project.folder / file
    path.write_text(path.read_text().replace(*change, 1))
    assert said in " ".join(project.dvc(*command, expect=255).split())
    assert said in (ROOT / "docs/troubleshooting.md").read_text()


def test_a_commit_names_and_shows_validation_photos_alone(ran: Run, tmp_path: Path) -> None:
    project = ran.project.copy(tmp_path / "named")
    for path in [*project.folder.glob("Image/*.jpg"), *project.folder.glob("Mask/*.png")]:
        path.rename(path.with_stem(f"secret{path.stem}"))
    project.dvc("repro")
    project.git("add", "-A")
    project.git("commit", "--quiet", "-m", "My photos")
    told = re.findall(r"secret\d+", project.git("show"))
    validated = re.findall(r"secret\d+", (project.folder / "split/val.csv").read_text())
    assert set(told) == set(validated), "as README promises"
    # The sample's overlays, which came with the project, are deleted.
    made = project.git("show", "--name-only", "--diff-filter=d", "--format=").splitlines()
    overlays = {f"plots/overlays/{name}_{task}.jpg" for name in validated for task in TASKS}
    curves = {f"plots/{name}.csv" for name in ("scores", *TASKS)}
    assert {*made} == {"dvc.lock", "metrics.json", *curves, *overlays}


def test_a_second_repro_has_nothing_to_do(finished: Project) -> None:
    assert "Data and pipelines are up to date." in finished.dvc("repro")
    assert finished.git("status", "--porcelain") == ""


def test_an_experiment_can_be_run_compared_and_left(finished: Project) -> None:
    files = finished.user_files()
    finished.dvc("exp", "run", *CHANGES)
    rows = finished.dvc("params", "diff")
    assert re.search(r"epochs\s+2\s+1\b", rows)
    assert "Data and pipelines are up to date." in finished.dvc("repro")
    shown, changed = finished.dvc("metrics", "show"), finished.dvc("metrics", "diff")
    assert "dice.plain.iou" in shown
    assert re.search(r"metrics\.json\s+dice\.plain\.iou\s+0\.\d+\s+0\.\d+\s+-?0\.\d+", changed)
    finished.dvc("plots", "diff", "HEAD", "workspace")
    page = (finished.folder / "dvc_plots/index.html").read_text()
    assert page.count("vegaEmbed('#") >= 3
    assert "HEAD_plots_overlays" in page
    assert not re.search(r"<script[^>]+src=", page), "the page must open offline"
    assert finished.user_files() == files
    finished.run("bash", "-ec", BACK)
    assert "Data and pipelines are up to date." in finished.dvc("repro")
    assert finished.git("status", "--porcelain", "plots") == ""
    assert finished.user_files() == files


def test_renderings_train_along_where_they_are_asked_for(finished: Project) -> None:
    told = finished.dvc("exp", "run", "--set-param", "renderings=1", "--set-param", "epochs=1")
    assert told.count("photos and 1 renderings") == 2, "in both tasks"
    assert len((finished.folder / "renderings/pairs.csv").read_text().splitlines()) == 1 + 1
    assert "photos and 1 renderings trained" in (finished.folder / "report.html").read_text()


def test_the_users_files_survive_experiments_elsewhere(finished: Project) -> None:
    files = finished.user_files()
    # What the experiment before has made comes out of the cache, also there.
    finished.dvc("exp", "run", "--temp", "--name", "elsewhere", *CHANGES)
    assert finished.user_files() == files
    finished.dvc("exp", "apply", "elsewhere")
    assert finished.user_files() == files
    assert "Data and pipelines are up to date." in finished.dvc("repro")
    assert len((finished.folder / "plots/bce.csv").read_text().splitlines()) == 1 + 1 + 1
    finished.git("checkout", "--quiet", "--", ".")
    finished.dvc("checkout", "--force")
    assert finished.user_files() == files, "nor does the way back touch them"


def test_an_experiment_elsewhere_starts_from_the_users_weights_as_they_are(tmp_path: Path) -> None:
    project = Project(tmp_path / "own")
    write_pairs(project.folder / "Image", project.folder / "Mask", 2)
    project.set({"init": "Weights/mine.pth"})
    project.commit("own weights")
    found = []
    for name in ("one", "other"):
        (project.folder / "Weights/mine.pth").write_text(name)
        project.dvc("exp", "run", "--temp", "--name", name, "weights")
        (ref,) = project.git("for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").split()
        lock = yaml.safe_load(project.git("show", f"{ref}:dvc.lock"))
        found.append(lock["stages"]["weights"]["outs"][0]["md5"])
    assert len(set(found)) == len(found)


def test_a_clone_without_photos_still_shows_scores(finished: Project, tmp_path: Path) -> None:
    finished.git("clone", "--quiet", str(finished.folder), str(tmp_path / "clone"))
    clone = Project.at(tmp_path / "clone")
    assert "dice.plain.iou" in clone.dvc("metrics", "show")
    assert clone.dvc("metrics", "diff").strip() == ""
    clone.dvc("plots", "show")
    assert "overlays" in (clone.folder / "dvc_plots/index.html").read_text()


def test_a_new_pair_reruns_the_pipeline_and_a_bad_one_stops_it(finished: Project) -> None:
    photo, mask = finished.folder / "Image/new.jpg", finished.folder / "Mask/new.png"
    photo.write_bytes((finished.folder / "Image/0.jpg").read_bytes())
    files = finished.user_files()
    message = finished.dvc("repro", expect=255)
    assert "carseg: Image/new.jpg: has no mask; add Mask/new.png or remove the photo" in message
    assert "Traceback" not in message
    assert finished.user_files() == files
    mask.write_bytes((finished.folder / "Mask/0.png").read_bytes())
    finished.dvc("repro", "split")
    listed = [(finished.folder / f"split/{part}.csv").read_text() for part in ("train", "val")]
    assert "dataset/Image/new.jpg,dataset/Mask/new.png" in "".join(listed)
    photo.unlink()
    mask.unlink()
    finished.dvc("repro", "split")
    assert finished.git("status", "--porcelain") == ""


def test_a_wrong_parameter_is_one_line(finished: Project) -> None:
    message = finished.dvc("exp", "run", "--set-param", "epochs=0", expect=255)
    assert "carseg: params.yaml: epochs is 0; it must be a whole number from 1" in message
    assert "Traceback" not in message


def test_a_second_run_is_refused_and_the_first_one_killed_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    # Two threads, as nets are trained with: sums must not depend on which one comes first. They
    # sleep while they wait, as other tests may need the cores.
    project = Project(tmp_path / "killed", OMP_NUM_THREADS="2", GOMP_SPINCOUNT="0")
    project.set({"epochs": 3})
    project.save_every_epoch()
    write_pairs(project.folder / "Image", project.folder / "Mask", 5)
    files = project.user_files()
    first = project.start(sys.executable, "-m", "dvc", "repro", "train_bce")
    while not list(project.folder.glob(".checkpoints/bce-*.pt")):
        assert first.poll() is None, "it ended too early"
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGSTOP)  # that it does not end meanwhile
    try:
        message = project.dvc("repro", "train_bce", expect=255)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert re.search(r"is busy|Unable to acquire lock", message), message
    assert "Traceback" not in message
    assert project.user_files() == files
    assert re.search(r"bce: goes on after epoch \d", project.dvc("repro", "train_bce"))
    names = ("dvc.lock", "plots/bce.csv", "u2net_segmentation.pth")
    after = project.bytes_of(*names)
    assert project.git("status", "--porcelain", ".checkpoints") == ""
    project.dvc("repro", "--force", "--single-item", "train_bce")
    assert project.bytes_of(*names) == after
    assert project.user_files() == files


def test_the_sample_is_rendered_into_empty_folders_and_kept(tmp_path: Path) -> None:
    project = Project(tmp_path / "empty")
    code = project.folder / "carseg/sample/__init__.py"
    whole = code.read_text()
    code.write_text(whole.replace("long_side: int = 960", "long_side: int = 96"))
    assert code.read_text() != whole, "full size takes two minutes"
    project.commit("small pictures")
    project.dvc("repro", "dataset")
    files = project.user_files()
    photos = [name for name in files if re.fullmatch(r"Image/.*\.jpg", name)]
    assert len(photos) == 20
    assert {name.replace("Image", "Mask").replace("jpg", "png") for name in photos} <= set(files)
    assert project.git("status", "--porcelain") == "?? dvc.lock\n"
    project.dvc("repro", "--force", "dataset")
    assert project.user_files() == files
