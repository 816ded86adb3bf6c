"""What the documents tell readers to type does what they say."""

import json
import re
import shlex
import subprocess
import sys
from itertools import dropwhile, takewhile
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from conftest import oriented, uneven, write_pairs
from dvc.cli import parse_args
from PIL import Image
from project import ROOT

from carseg import weights
from carseg.__main__ import command_line
from carseg.augment import ALTERED
from carseg.data import P_BEHIND, P_CAMOUFLAGE, P_CROP, P_ELSEWHERE, P_RECOLOUR
from carseg.dataset import BYTES, FILES
from carseg.formats import TOLERANCE, Probability, write_onnx
from carseg.learner import EMA_SHARE, MAX_DICE_RATE, WARM_UP
from carseg.lock import parse_lock
from carseg.model import load
from carseg.photos import read_photo, read_truth
from carseg.quantize import AGREEMENT, MOST
from carseg.report import SHOWN
from carseg.train import TASK_1_SHARE, UNTRAINED_SHARE
from carseg.u2net import U2Net

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))),
    *(f"{folder}/README.md" for folder in ("Image", "Mask", "Weights")),
]


def blocks(document: str) -> list[str]:
    """What a document has for the shell, in blocks."""
    found = re.findall(r"^ *```sh\n(.*?)^ *```$", (ROOT / document).read_text(), re.M | re.S)
    return [dedent(block) for block in found]


def commands(document: str, start: str) -> list[str]:
    """A document's lines for the shell that begin with a word."""
    return re.findall(rf"^{start} .*$", "".join(blocks(document)), re.M)


@pytest.mark.parametrize("document", ["README.md", "docs/use.md"])
def test_every_command_has_the_options_that_there_are(document: str) -> None:
    lines = commands(document, "carseg")
    for words in (shlex.split(line, comments=True)[1:] for line in lines):
        command_line().parse_args(words[: words.index("<")] if "<" in words else words)
    assert len(lines) > 2


def anchors(document: Path) -> set[str]:
    """What GitHub calls the headings of a document, none of which comes twice."""
    outside = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", outside, re.M)
    found = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    assert len(set(found)) == len(found)
    return set(found)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not link.startswith(("https://", "http://")):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_table_has_a_header_and_rows_of_its_width(document: str) -> None:
    text = re.sub(r"`[^`\n]*`", "", (ROOT / document).read_text())
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        header, rule, *rows = table.splitlines()
        assert re.fullmatch(r"[|\-:]+", rule), header
        assert {row.count("|") for row in rows} == {header.count("|")}, header


@pytest.mark.parametrize("document", ["README.md", "docs/use.md"])
def test_every_version_is_the_one_that_is_pinned(document: str) -> None:
    text = (ROOT / document).read_text()
    pinned = (ROOT / "pyproject.toml").read_text()
    told = re.findall(r"[`' ]([a-z]+)(?:\[[a-z,]+\])?==([\d.]+)", text)
    assert told
    for name, version in told:
        assert re.search(rf'"{name}(\[[a-z,]+\])?=={re.escape(version)}"', pinned), name


@pytest.mark.filterwarnings("ignore")  # of DVC's own imports
@pytest.mark.parametrize("document", ["README.md", "docs/scale.md"])
def test_dvc_knows_every_option_that_is_told_of(document: str) -> None:
    lines = commands(document, "dvc")
    assert len(lines) > 3
    for line in lines:
        parse_args(shlex.split(line.split(" && ")[0], comments=True)[1:])


def test_numbers_that_documents_tell_are_those_of_the_code() -> None:
    assert (WARM_UP, EMA_SHARE, ALTERED) == (0.2, 0.2, 0.7)  # which are told in words
    learnt = 1 - UNTRAINED_SHARE - TASK_1_SHARE
    for document, phrases in {
        "README.md": [
            f"{learnt:.0%} its own, {TASK_1_SHARE:.0%} task 1's, {UNTRAINED_SHARE:.0%} the start's",
            f"in task 2 at most {MAX_DICE_RATE}",
            f"the validation photos ({SHOWN} at most)",
        ],
        "docs/use.md": [
            f"must agree with torch within {TOLERANCE}",
            f"less than IoU {AGREEMENT} in the mean",
            f"{MOST // 2} at most, calibrate it",
        ],
        "docs/recipe.md": [
            f"another background {P_ELSEWHERE}, another car behind {P_BEHIND}, "
            f"recoloured {P_RECOLOUR}, camouflage {P_CAMOUFLAGE}, cropped to the car {P_CROP}",
            f"the mean of {UNTRAINED_SHARE:.0%} untrained weights, {TASK_1_SHARE:.0%} of task 1's "
            f"and {learnt:.0%} of its own",
        ],
        "CHANGELOG.md": [
            f"keeps {TASK_1_SHARE:.0%} of task 1's and {UNTRAINED_SHARE:.0%} of the untrained"
        ],
    }.items():
        text = " ".join((ROOT / document).read_text().split())
        for phrase in phrases:
            assert phrase.replace("%", " %") in text, document


@pytest.mark.usefixtures("shallow")
def test_what_the_readme_does_in_python_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights.save(U2Net("u2netp"), Path("u2net_segmentation_dice_loss.pth"))
    Image.new("RGB", (60, 40), "red").save("car.jpg")
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(block, names)
    for name in ("probability", "better"):
        assert (names[name].shape, names[name].dtype) == ((40, 60), np.float32)
    assert (names["mask"].shape, names["mask"].dtype) == ((40, 60), np.bool_)


@pytest.mark.usefixtures("shallow")
def test_an_exported_network_is_run_without_carseg_as_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = Probability(uneven(U2Net("u2netp"))).eval()
    write_onnx(net, tmp_path, 320, None, {"image_size": "320"})
    (name,) = write_pairs(tmp_path / "Image", tmp_path / "Mask", 1)
    Image.open(f"Image/{name}.jpg").resize((480, 360)).save("car.jpg", exif=oriented(6))
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/use.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(block, names)
    expected = load("model.onnx").look("car.jpg")
    found = np.asarray(names["scaled"])
    assert names["mask"].shape == found.shape == expected.shape == (480, 360)
    assert np.std(expected) > 0.02, "a car or none would be alike otherwise"
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (names["mask"] == (found >= 0.5)).all()


def test_the_sample_is_removed_without_anything_of_the_users(tmp_path: Path) -> None:
    for name in map("{:02}".format, range(31)):
        for folder, ending in (("Image", "jpg"), ("Mask", "png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.{ending}").touch()
    for command in commands("README.md", "rm -f"):
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    left = ["00", *map(str, range(21, 31))]
    for folder in ("Image", "Mask"):
        assert sorted(path.stem for path in (tmp_path / folder).iterdir()) == left


def test_contributors_find_every_module() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")]
    named = [name for line in table for name in re.findall(r"`(\w+)`", line)]
    modules = [path for path in (ROOT / "carseg").iterdir() if path.suffix in ("", ".py")]
    assert sorted(named) == sorted(p.stem for p in modules if not p.stem.startswith("__"))


COLUMNS = {  # headers of tables, and what of metrics.json is below
    "one look: `plain`": ("plain", "iou"),
    "as `carseg predict`: `upright`": ("upright", "iou"),
    "with `--closer`": ("closer", "iou"),
    "Dice, upright": ("upright", "dice"),
    "IoU, plain": ("plain", "iou"),
    "IoU, upright": ("upright", "iou"),
    "IoU, closer": ("closer", "iou"),
    "IoU, D4": ("d4", "iou"),
    "IoU, D4, closer": ("d4_closer", "iou"),
}


def committed(name: str) -> str:
    """A file of the last commit: the one at hand is of the user's last run."""
    return subprocess.check_output(["git", "show", f"HEAD:{name}"], cwd=ROOT, text=True)


VALIDATED = {f"plots/overlays/{number}_dice.jpg" for number in ("01", "02", "09", "16", "18")}


def overlays() -> set[str]:
    """Those of the last commit, by which photos are the sample's, whatever their size."""
    told = ["git", "ls-tree", "--name-only", "HEAD", "plots/overlays/"]
    return {*subprocess.check_output(told, cwd=ROOT, text=True).splitlines()}


@pytest.mark.parametrize(
    ("document", "before"),
    [("README.md", "On the rendered sample, "), ("docs/results.md", "## The rendered sample")],
)
def test_the_sample_has_the_scores_that_a_fresh_clone_shows(document: str, before: str) -> None:
    dataset = parse_lock(committed("dvc.lock")).of("dataset").output("dataset")
    if dataset is None or dataset.nfiles != FILES or VALIDATED - overlays():
        pytest.skip("the last commit is of other photos")
    assert dataset.size == pytest.approx(BYTES, rel=0.01), "carseg no longer knows its sample"
    scores = json.loads(committed("metrics.json"))
    after = (ROOT / document).read_text().split(before)[1].splitlines()
    table = takewhile(lambda line: line, dropwhile(lambda line: not line.startswith("|"), after))
    (_, *headers), _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table
    )
    assert len(rows) == len(scores) == 3
    for (_, *cells), views in zip(rows, scores.values(), strict=True):
        told = [views[view][score] for view, score in (COLUMNS[header] for header in headers)]
        assert cells == [f"{value:.3f}" for value in told]


def run_on(command: list[str], folder: Path, files: list[Path]) -> str:
    """Run a command of docs/photos.md in a folder on files of one's own; what it complains of."""
    done = subprocess.run(
        [sys.executable, *command[1:3], *map(str, files)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.stderr


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    for name in ("Image", "Mask"):
        (tmp_path / name).mkdir()
    return tmp_path


OF_PHOTOS, OF_MASKS, OF_TAGS = map(shlex.split, blocks("docs/photos.md"))
LABELS = np.zeros((60, 40), np.uint8)
LABELS[20:30, 5:35] = 1


def test_photos_are_converted_as_they_stand(empty: Path) -> None:
    photo = empty / "a photo.webp"
    Image.new("RGB", (60, 40), (10, 200, 30)).save(photo, exif=oriented(6))
    assert run_on(OF_PHOTOS, empty, [photo]) == ""
    assert run_on(OF_PHOTOS, empty, [photo]) == "Image/a photo.jpg: exists already\n"
    with Image.open(empty / "Image/a photo.jpg") as turned:
        assert (turned.size, turned.getexif().get(0x0112)) == ((40, 60), None)


def test_masks_are_converted_to_white_and_black(empty: Path) -> None:
    masks = empty / "masks"
    masks.mkdir()
    Image.fromarray(LABELS).save(masks / "numbered.tif")
    colour = np.array([128, 0, 0], np.uint8)
    Image.fromarray(LABELS[..., None] * colour).save(masks / "coloured.bmp")
    Image.fromarray(LABELS[::-1, ::-1]).save(masks / "held.png", exif=oriented(3))
    palette = Image.fromarray(LABELS).convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 128])
    palette.save(masks / "palette.png")
    files = [*masks.iterdir()]
    assert run_on(OF_MASKS, empty, files) == ""
    for name in ("numbered", "coloured", "palette", "held"):
        with Image.open(empty / f"Mask/{name}.png") as mask:
            assert (np.asarray(mask) == 255 * LABELS).all(), name
    assert run_on(OF_MASKS, empty, files).endswith(".png: exists already\n")


@pytest.mark.parametrize(
    ("written", "instead", "levels", "name"),
    [
        ("level > 0", "level >= 128", 200 * LABELS + 20, "a"),
        ("level > 0", "level < 128", 255 - 255 * LABELS, "a"),
        ("Path(file).stem", "Path(file).stem.removesuffix('_mask')", LABELS, "a_mask"),
    ],
)
def test_other_masks_are_converted_by_what_the_table_tells(
    empty: Path, written: str, instead: str, levels: Any, name: str
) -> None:
    assert f"`{written}` | `{instead}` |" in (ROOT / "docs/photos.md").read_text()
    python, option, code, *_ = OF_MASKS
    assert code.count(written) == 1
    file = empty / f"{name}.png"
    Image.fromarray(levels).save(file)
    assert run_on([python, option, code.replace(written, instead)], empty, [file]) == ""
    with Image.open(empty / "Mask/a.png") as mask:
        assert (np.asarray(mask) == 255 * LABELS).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_get_the_tags_of_their_photos(empty: Path, orientation: int) -> None:
    photo, mask = empty / "Image/a photo.jpg", empty / "Mask/a photo.png"
    stored = 255 * LABELS
    Image.fromarray(stored).save(photo, quality=95, exif=oriented(orientation))
    Image.fromarray(stored).save(mask)
    alone = empty / "Image/alone.jpg"  # without a mask, as yet
    alone.write_bytes(photo.read_bytes())
    assert run_on(OF_TAGS, empty, [alone, photo]) == ""
    shown = np.asarray(read_photo(photo).convert("L"))
    assert ((shown >= 128) == read_truth(mask)).all()
