"""Bad input of every kind through the stages and commands: lines with name, fault and remedy.

`python tests/test_bad_input.py` prints each input with what is said about it.
"""

import importlib
import io
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import LONG, SHORT, contents, oriented, write_manifests, write_pairs
from PIL import Image

from carseg.errors import run
from carseg.u2net import U2Net

PHOTO, MASK = Path("Image/0.jpg"), Path("Mask/0.png")
BCE = Path("u2net_segmentation.pth")


class Case(NamedTuple):
    """An input, what is run on it, and what must be said."""

    name: str
    spoil: Callable[[], object]
    said: str  # a pattern for the line
    command: str = "dataset"  # a stage, or words after `carseg`
    lines: int = 1


def jpeg(**options: object) -> bytes:
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (SHORT, LONG, 3), dtype=np.uint8)
    Image.fromarray(noise).save(content, "JPEG", **options)
    return content.getvalue()


def levels(*values: int, mode: str = "L") -> Image.Image:
    """A mask of vertical stripes."""
    row = np.repeat(np.array(values, np.uint8), LONG // len(values) + 1)[:LONG]
    return Image.fromarray(np.tile(row, (SHORT, 1))).convert(mode)


def turned(path: Path, orientation: int) -> None:
    with Image.open(path) as image:
        image.save(path, exif=oriented(orientation))


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def only(count: int) -> None:
    for path in (*Path("Image").iterdir(), *Path("Mask").iterdir()):
        if int(path.stem) >= count:
            path.unlink()


def params(text: str) -> None:
    Path("params.yaml").write_text(text)


def split(text: str) -> None:
    """A manifest of the user's own making."""
    write_manifests(Path(), train=2, val=1)
    Path("pretrained").mkdir()
    Path("split/train.csv").write_text(text)


class Bomb:
    """Its pickle makes a file when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("exploded",)


def weights(content: bytes | object) -> None:
    write_manifests(Path(), train=2, val=1)
    Path("pretrained").mkdir()
    if isinstance(content, bytes):
        BCE.write_bytes(content)
    else:
        torch.save(content, BCE)


def lite() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        net = U2Net("u2netp")
    return {key: torch.zeros(value.shape) for key, value in net.state_dict().items()}


def without_a_tensor() -> dict[str, torch.Tensor]:
    state = lite()
    state.pop("outconv.weight")
    return state


def trained() -> None:
    torch.save(lite(), "u2net_segmentation_dice_loss.pth")


def whole_file(state: object) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


NO_SUCH = r"there is no such file"
UNREADABLE = r"cannot be read as an image.*; save it anew"
CASES = [
    # the folders
    Case("photo without mask", MASK.unlink, r"Image/0\.jpg: has no mask; add Mask/0\.png"),
    Case("mask without photo", PHOTO.unlink, r"Mask/0\.png: has no photo; add Image/0\.jpg"),
    Case("two photos of one name", lambda: Path("Image/0.jpeg").write_bytes(jpeg()),
         r"Image/0\.jpg: shares its name with Image/0\.jpeg; remove or rename one"),
    Case("two masks of one name", lambda: levels(0, 255).save("Mask/0.PNG"),
         r"Mask/0\.png: shares its name with Mask/0\.PNG; remove or rename one"),
    Case("one name written in two ways", lambda: [Path(f"Image/{n}.jpg").write_bytes(jpeg())
         for n in ("\u00e9", "e\u0301")], r"shares its name with|has no mask", lines=2),
    Case("a PNG among the photos", lambda: levels(9).save("Image/9.png"),
         r"Image/9\.png: is not a \.jpg file; convert it \(docs/photos\.md\) or move it away"),
    Case("a JPEG among the masks", lambda: levels(9).save("Mask/9.jpg"),
         r"Mask/9\.jpg: is not a \.png file; convert it \(docs/photos\.md\) or move it away"),
    Case("notes among the photos", lambda: Path("Image/notes.txt").touch(),
         r"Image/notes\.txt: is not a \.jpg file"),
    Case("annotations", lambda: Path("Image/9.json").write_text("{}"),
         r"Image/9\.json: is no photo or mask; move it away \(carseg masks import takes"),
    Case("a folder among the photos", lambda: Path("Image/more").mkdir(),
         r"Image/more: is a folder; move what"),
    Case("a folder that ends in .jpg", lambda: Path("Image/more.jpg").mkdir(),
         r"Image/more\.jpg: is a folder; move what"),
    Case("a pipe among the photos", lambda: os.mkfifo("Image/9.jpg"),
         r"Image/9\.jpg: is not a \.jpg file"),
    Case("a link to a file that is gone", lambda: link(PHOTO, "gone.jpg"),
         r"Image/0\.jpg: is a link to a file that is gone; put the file here"),
    Case("a link to itself", lambda: link(PHOTO, "0.jpg"), r"Image/0\.jpg: is a link"),
    Case("a link to a folder", lambda: link(PHOTO, "../Mask"), r"is a folder"),
    Case("a line break in a name", lambda: Path("Image/a\nb.jpg").write_bytes(jpeg()),
         r"'Image/a\\nb\.jpg': its name holds a character that is no text; rename it"),
    Case("a name in a broken encoding", lambda: os.close(os.open(b"Image/\xff.jpg", os.O_CREAT)),
         r"'Image/\\udcff\.jpg': its name holds a character that is no text; rename it"),
    Case("a name that is too long", lambda: Path(f"Image/{'a' * 191}.jpg").write_bytes(jpeg()),
         r"a\.jpg: its name has 191 bytes, 190 are the most; rename it"),
    Case("no photo at all, but masks", lambda: [p.unlink() for p in Path("Image").iterdir()],
         r"Mask/\d\.png: has no photo", lines=4),
    Case("a file in place of the folder", lambda: [[p.unlink() for p in Path("Image").iterdir()],
         Path("Image").rmdir(), Path("Image").touch()], r"Mask/\d\.png: has no photo", lines=4),
    # what is in the files
    Case("an empty photo", lambda: PHOTO.write_bytes(b""), rf"{PHOTO}: {UNREADABLE}"),
    Case("an empty mask", lambda: MASK.write_bytes(b""), rf"{MASK}: .* it is empty; save it anew"),
    Case("a photo cut short", lambda: PHOTO.write_bytes(jpeg()[:900]), rf"{PHOTO}: {UNREADABLE}"),
    Case("a mask cut short", lambda: MASK.write_bytes(MASK.read_bytes()[:60]),
         rf"{MASK}: {UNREADABLE}"),
    Case("a photo of its first bytes", lambda: PHOTO.write_bytes(jpeg()[:3]), UNREADABLE),
    Case("a page in place of a photo", lambda: PHOTO.write_text("<html>404</html>"),
         rf"{PHOTO}: cannot be read as an image, it is of no known format; save it anew"),
    Case("bits of a mask flipped", lambda: MASK.write_bytes(MASK.read_bytes()[:45] + bytes(20) +
         MASK.read_bytes()[65:]), rf"{MASK}: {UNREADABLE}"),
    Case("photo and mask both broken", lambda: [p.write_bytes(b"") for p in (PHOTO, MASK)],
         UNREADABLE, lines=2),
    Case("far too many pixels", lambda: PHOTO.write_bytes(jpeg()[:163] + b"\xff\xff\xff\xff" +
         jpeg()[167:]), rf"{PHOTO}: has too many pixels .*; scale it down$"),
    Case("a smaller mask", lambda: levels(0, 255).resize((44, 30)).save(MASK),
         rf"{MASK}: is 44x30 but {PHOTO} is {LONG}x{SHORT}; give both one size"),
    Case("a mask turned by hand", lambda: levels(0, 255).transpose(
         Image.Transpose.ROTATE_90).save(MASK),
         rf"{MASK}: is {SHORT}x{LONG} but .* turn the wrong one"),
    Case("a photo turned by its EXIF tag", lambda: turned(PHOTO, 6),
         rf"{PHOTO} is {SHORT}x{LONG}; one of them is turned, by its EXIF tag or by hand"),
    Case("a mask turned by its EXIF tag", lambda: turned(MASK, 8),
         r"turn the wrong one, or give the mask its photo's tag \(docs/photos\.md\)"),
    Case("a black mask", lambda: levels(0).save(MASK),
         rf"{MASK}: has nothing white in it, its brightest level is 0 of 255; paint the car white"),
    Case("a mask of classes 0 and 1", lambda: levels(0, 1).save(MASK),
         r"holds the levels 0 to 1 alone, as label maps do"),
    Case("a dark red car on black", lambda: Image.merge("RGB", [levels(0, 128), levels(0),
         levels(0)]).save(MASK), r"its brightest level is 38 of 255; paint the car white"),
    Case("a transparent mask", lambda: Image.merge("LA", [levels(255), levels(0)]).save(MASK),
         r"has nothing white in it"),
    Case("a white mask", lambda: levels(255).save(MASK),
         rf"{MASK}: is white all over; paint what is no car black"),
    Case("a white mask of 16 bits", lambda: Image.fromarray(
         np.full((SHORT, LONG), 65535, np.uint16)).save(MASK), r"is white all over"),
    Case("a white mask of 1 bit", lambda: levels(255, mode="1").save(MASK), r"is white all over"),
    Case("a photo in place of a mask", lambda: Image.open(PHOTO).save(MASK),
         rf"{MASK}: is (neither black nor white in \d+%|black)"),
    Case("a car cut out of its photo", lambda: levels(0, 0, 0, 0, 90, 230, 0, 0).save(MASK),
         rf"{MASK}: has \d+% as many dark grey pixels, .* save a mask, all of the car white"),
    Case("a grey mask", lambda: levels(0, 140).save(MASK),
         rf"{MASK}: is neither black nor white in 49% of its pixels; save a mask, white car"),
    Case("several faults at once", lambda: [PHOTO.write_bytes(b""), levels(0).save("Mask/1.png"),
         Path("Mask/2.png").unlink()], r"(Image/0\.jpg|Mask/1\.png|Image/2\.jpg): ", lines=3),
    # parameters; tests/test_params.py has every wrong value of each
    Case("no params.yaml", lambda: Path("params.yaml").unlink(),
         r"params\.yaml: No such file or directory; get it back: git checkout", "split"),
    Case("params.yaml is no YAML", lambda: params("seed: [1"), r"not valid YAML", "split"),
    Case("params.yaml in a broken encoding", lambda: Path("params.yaml").write_bytes(b"\xff\xfe:"),
         r"params\.yaml: not valid YAML", "split"),
    Case("params.yaml is a list", lambda: params("- seed"), r"expected lines of the form", "split"),
    Case("no epochs", lambda: params("epochs: 0"), r"epochs is 0; it must be a whole", "train_bce"),
    Case("a number in words", lambda: params("epochs: ten"), r"epochs is 'ten'", "train_bce"),
    Case("a rate that is no number", lambda: params("learning_rate: .nan"), r"nan", "train_bce"),
    Case("a size between", lambda: params("image_size: 300"), r"a multiple of 32", "evaluate"),
    Case("a key misspelt", lambda: params("epoch: 3"), r"did you mean epochs\?", "train_dice"),
    Case("as many to validate as there are", lambda: [snapshot(), params("split: {val_size: 4}")],
         r"split\.val_size is 4 but there are 4 pairs; lower it or add pairs", "split"),
    Case("no such fold", lambda: [snapshot(), params("split: {val_size: 2, fold: 2}")],
         r"split\.fold is 2 but 4 pairs make 2 folds; it must be null or", "split"),
    Case("a single pair", lambda: [only(1), snapshot()], r"there are 1 pairs", "split"),
    # weights
    Case("a start that is not there", lambda: params("init: gone.pth"),
         r"init is 'gone\.pth' but there is no such file; put it there", "weights"),
    Case("a start of another kind", lambda: params("init: net.tar"), r"init is 'net\.tar'",
         "weights"),
    Case("the official file changed", lambda: [Path("Weights").mkdir(), params("init: u2netp"),
         Path("Weights/u2netp.onnx").write_bytes(b"changed")], r"is not the official file",
         "weights"),
    Case("no weights of task 1", lambda: [weights(b""), BCE.unlink()], rf"{BCE}: {NO_SUCH}",
         "train_dice"),
    Case("weights cut short", lambda: weights(whole_file(lite())[:100_000]),
         rf"{BCE}: is not a whole PyTorch checkpoint", "train_dice"),
    Case("empty weights", lambda: weights(b""), r"is not a whole PyTorch", "train_dice"),
    Case("weights of another network", lambda: weights({"a": torch.zeros(1)}),
         rf"{BCE}: its .* tensors are not those of a U²-Net", "train_dice"),
    Case("weights that lack a tensor", lambda: weights(without_a_tensor()),
         r"tensors are not those of a U²-Net", "train_dice"),
    Case("weights of the lite net", lambda: weights(lite()), r"holds another network", "evaluate"),
    Case("weights that are no dict", lambda: weights([1, 2]), r"is not a state dict", "train_dice"),
    Case("weights that would run code", lambda: weights({"a": Bomb()}),
         r"is not a whole PyTorch checkpoint of tensors alone", "train_dice"),
    Case("a pickle that would run code", lambda: weights(pickle.dumps(Bomb())),
         r"is not a whole PyTorch checkpoint of tensors alone", "train_dice"),
    # manifests
    Case("no start weights", lambda: None, r"pretrained: there is no such folder", "train_bce"),
    Case("no manifest", lambda: Path("pretrained").mkdir(),
         r"split/train\.csv: expected the columns", "train_bce"),
    Case("an empty manifest", lambda: split(""), r"train\.csv: expected", "train_bce"),
    Case("a manifest of other columns", lambda: split("a,b\n1,2\n"), r"photo,mask", "train_bce"),
    Case("a manifest in a broken encoding", lambda: [split(""),
         Path("split/train.csv").write_bytes(b"photo,mask\n\xff,\xff\n")],
         r"photo,mask", "train_bce"),
    Case("a photo in the manifest that is gone", lambda: split("photo,mask\nx.jpg,x.png\n"),
         rf"x\.jpg: {NO_SUCH}; put it back", "train_bce"),
    Case("no renderings", lambda: [split("photo,mask\ndataset/Image/0.jpg,dataset/Mask/0.png\n"),
         params("init: scratch\nmodel: u2netp\nimage_size: 64\nrenderings: 1\n")],
         r"renderings/pairs\.csv: expected the columns .* run dvc repro", "train_bce"),
    Case("a row too short", lambda: split("photo,mask\nx.jpg\n"), r"train\.csv: ", "train_bce"),
    # commands
    Case("predict: no such photo", trained, rf"gone\.jpg: {NO_SUCH}", "predict gone.jpg"),
    Case("predict: no photo in a folder", lambda: [trained(), Path("empty").mkdir()],
         r"empty: holds no photo; name another folder, or add --recursive", "predict empty"),
    Case("predict: no weights", lambda: None, rf"pth: {NO_SUCH}", "predict Image"),
    Case("predict: a threshold above 1", lambda: None, r"--threshold 2\.0: give a number from 0",
         "predict Image --threshold 2"),
    Case("predict: no threads", lambda: None, r"--jobs 0: give", "predict Image --jobs 0"),
    Case("crossval: a parameter it sets itself", lambda: None, r"keep is always last here",
         "crossval -S keep=best"),
]  # fmt: skip


def snapshot() -> None:
    """Run the stage before the one that is to fail."""
    from carseg import dataset

    dataset.snapshot(Path(), Path("dataset"))


def outcome(case: Case) -> tuple[object, list[str]]:
    """Run a case in the folder that this is: its exit code and what is said."""
    errors = io.StringIO()
    words = ["carseg", *case.command.split()]
    stage = len(words) == 2
    name = f"stages.{words[1]}" if stage else "carseg.__main__"
    main = importlib.import_module(name).main
    code: object = 0
    with redirect_stderr(errors), redirect_stdout(io.StringIO()), patch.object(sys, "argv", words):
        try:
            if stage:
                run(main)
            else:
                main()
        except SystemExit as end:
            code = end.code
    if isinstance(code, str):  # Python prints it and exits with 1
        return 1, [*errors.getvalue().splitlines(), *code.splitlines()]
    return code, errors.getvalue().splitlines()


def prepare() -> None:
    """Four good pairs, tiny settings, in the folder that this is."""
    write_pairs(Path("Image"), Path("Mask"), 4)
    params("init: scratch\nimage_size: 64\nprecision: float32\nsplit: {val_size: 1}\n")


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_named_and_nothing_is_changed(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare()
    case.spoil()
    before = contents(Path())
    code, lines = outcome(case)
    assert code == 1
    assert len(lines) == case.lines, lines
    for line in lines:
        assert re.search(f"^carseg: .*(?:{case.said})", line), line
    assert contents(Path()) == before
    assert not Path("exploded").exists()


def test_there_are_enough_cases_of_different_names() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 50


if __name__ == "__main__":
    print("| input | what is said |\n|---|---|")
    for each in CASES:
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            prepare()
            each.spoil()
            said = " ⏎ ".join(outcome(each)[1]).replace("|", "\\|")
            print(f"| {each.name} | {said} |")
