"""Exported files compute what torch does, say what they are, and replace nothing."""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import yaml
from conftest import photo, run_carseg, uneven
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

from carseg import export, formats, weights
from carseg.card import Card, card
from carseg.errors import CarsegError, import_optional
from carseg.files import write_csv, write_json
from carseg.formats import TOLERANCE, WRITERS, Probability, compare, quiet
from carseg.model import WORTH_COMPILING, load
from carseg.tensors import photo_tensor
from carseg.u2net import U2Net

SIZE = 64
WEIGHTS = Path("u2net_segmentation_dice_loss.pth")
SCORES = {"dice": 0.9, "iou": 0.8, "boundary_iou": 0.7, "hd95": 3.0}


@pytest.fixture(scope="module")
def net(shallow: None) -> U2Net:
    return uneven(U2Net("u2netp"), 5)


@pytest.fixture(scope="module")
def project(net: U2Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after a run, its weights exported in all formats to `exported`."""
    root = tmp_path_factory.mktemp("project")
    weights.save(net, root / WEIGHTS)
    (root / "params.yaml").write_text(f"image_size: {SIZE}\nmodel: u2netp\nepochs: 7\n")
    write_json(root / "metrics.json", {"untrained": {"plain": SCORES}, "dice": {"plain": SCORES}})
    for part, count in (("train", 3), ("val", 2)):
        rows = [(f"{i}.jpg", f"{i}.png") for i in range(count)]
        write_csv(root / f"split/{part}.csv", ("photo", "mask"), rows)
    write_json(root / "provenance/train_dice.json", {"processor": "abacus"})
    (root / "dvc.lock").write_text("stages: {dataset: {outs: [{path: dataset, md5: 123.dir}]}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_carseg("export")
    return root


def photos(count: int) -> NDArray[np.float32]:
    """Photos as the net takes them, smooth enough that it sees something in them."""
    random = np.random.default_rng(1)
    coarse = [random.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in range(count)]
    return np.stack([photo_tensor(x.repeat(16, 0).repeat(16, 1)).numpy() for x in coarse])


def expected(net: U2Net, count: int) -> NDArray[np.float32]:
    with torch.inference_mode():
        return torch.sigmoid(net(torch.from_numpy(photos(count)))[:, :1]).numpy()


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_computes_what_torch_does_for_any_number_of_photos(
    count: int, net: U2Net, project: Path
) -> None:
    path = project / "exported/model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"photo": photos(count)})
    assert found.shape == (count, 1, SIZE, SIZE)
    assert np.ptp(found) > 0.3, "all alike would prove nothing"
    np.testing.assert_allclose(found, expected(net, count), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("count", [1, 3])
def test_openvino_computes_what_torch_does(count: int, net: U2Net, project: Path) -> None:
    compiled = openvino.compile_model(
        project / "exported/model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    found = compiled(photos(count))[0]
    np.testing.assert_allclose(found, expected(net, count), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("file", ["model.onnx", "model.xml"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90)])
def test_exported_files_predict_as_the_weights_do(
    file: str, size: tuple[int, int], project: Path
) -> None:
    picture = photo(*size)
    weights = load(project / WEIGHTS, SIZE, precision="float32")
    exported = load(project / "exported" / file, precision="float32")
    assert exported.size == SIZE
    for d4 in (False, True):
        found, expected = (net.predict(picture, d4=d4) for net in (exported, weights))
        assert np.ptp(expected) > 0.2
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    once = exported.look(picture)
    np.testing.assert_allclose(once, weights.look(picture), atol=TOLERANCE, rtol=0)
    lies = size == (60, 90)
    assert (np.abs(once - exported.predict(picture)).max() > 0.1) == lies, "else one look is all"


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_exported_files_tell_the_settings_of_then_wherever_they_lie(
    format: str, net: U2Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "project" / WEIGHTS
    weights.save(net, source)
    source.with_name("params.yaml").write_text("threshold: 0.4\ncleanup: true\n")
    out = tmp_path / "elsewhere/exported"
    written = export.export(source, out, [format], SIZE, None, False)
    source.with_name("params.yaml").write_text("threshold: 0.9\n")
    (tmp_path / "elsewhere/params.yaml").write_text("lr: 0.1\n")  # of who knows what
    model = load(written[0])
    assert (model.size, model.threshold, model.cleanup) == (SIZE, 0.4, True)
    given: list[object] = []
    monkeypatch.setattr(
        "carseg.batch.predict",
        lambda paths, out, load, kinds, **_: (
            kinds.settle(load().threshold, load().cleanup)
            or given.extend((kinds.threshold, kinds.cleanup))
        ),
    )
    words = ["predict", "photos", "--weights", str(written[0])]
    for more, expected in (([], [0.4, True]), (["--threshold", "0", "--no-cleanup"], [0, False])):
        given.clear()
        run_carseg(*words, *more)
        assert given == expected


def test_lack_of_memory_in_an_export_names_its_own_options(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        monkeypatch.setattr("carseg.export.export", MagicMock(side_effect=error))
        with pytest.raises(SystemExit, match=r"^carseg: memory ran out; lower --batch or --"):
            run_carseg("export", "--out", "other")
    monkeypatch.setattr("carseg.export.export", MagicMock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run_carseg("export", "--out", "other")


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_what_was_not_exported_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CarsegError, match=r"there is no such file; run carseg export"):
        load(tmp_path / name)
    (tmp_path / name).write_text("nothing of the kind")
    (tmp_path / "model.bin").touch()
    with pytest.raises(CarsegError, match=r"cannot be opened as .* writes \(.+\); export it"):
        load(tmp_path / name)


def test_half_of_a_network_in_two_files_is_told_of(project: Path, tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes((project / "exported/model.xml").read_bytes())
    with pytest.raises(CarsegError, match=r"model\.bin: there is no such file; copy it along with"):
        load(tmp_path / "model.xml")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model.onnx", "this ONNX Runtime has none; take cpu"),
        ("model.xml", r"OpenVINO has none; take cpu, or the \.onnx file"),
        (f"../{WEIGHTS}", "torch finds no GPU here; leave it out, or take cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, why: str, project: Path) -> None:
    with pytest.raises(CarsegError, match=f"^device cuda: {why}$"):
        load(project / "exported" / name, device="cuda")


@pytest.mark.parametrize("works", [True, False])
def test_a_gpu_computes_in_whole_float32_or_is_told_of(
    works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for ONNX Runtime's session, as there may be no GPU."""
    gpu, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    session = MagicMock()
    session.get_providers.return_value = [gpu, cpu] if works else [cpu]
    session.get_modelmeta.return_value.custom_metadata_map = {"image_size": "64"}
    given: list[object] = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [gpu, cpu])
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda _, providers: given.append(providers) or session
    )
    (tmp_path / "model.onnx").touch()
    assert load(tmp_path / "model.onnx").size == 64
    assert given == [[(gpu, {"use_tf32": 0}), (cpu, {})]]
    if works:
        assert load(tmp_path / "model.onnx", device="cuda").size == 64
        return
    with pytest.raises(CarsegError, match=r"^device cuda: ONNX Runtime cannot start on it; .*cpu"):
        load(tmp_path / "model.onnx", device="cuda")


def test_safetensors_hold_the_weights_to_the_bit(net: U2Net, project: Path) -> None:
    with safe_open(project / "exported/model.safetensors", "pt") as file:
        assert set(file.keys()) == set(net.state_dict())
        assert all(torch.equal(file.get_tensor(k), v) for k, v in net.state_dict().items())
        assert file.metadata()["network"] == "u2netp"


def test_onnx_is_one_file_that_says_what_it_is(project: Path) -> None:
    model = onnx.load(str(project / "exported/model.onnx"), load_external_data=False)
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["classes"]) == ["background", "car"]
    assert told["image_size"] == str(SIZE)
    assert json.loads(told["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(told["std"]) == [0.229, 0.224, 0.225]
    assert json.loads(told["metrics"]) == {"plain": SCORES}
    assert told["data"] == "123.dir"
    assert str(Path(export.__file__).parent).encode() not in model.SerializeToString()


def test_the_card_tells_what_is_known(project: Path) -> None:
    text = (project / "exported/MODEL_CARD.md").read_text()
    for words in (
        "from `u2net_segmentation_dice_loss.pth`", "any number of photos", "(N, 3, 64, 64)",
        "| trained | plain | 0.9000 | 0.8000 | 0.7000 | 3.0000 |", "| untrained start | plain |",
        "Means over 2 validation photos", "3 to train, 2 to validate", "| epochs | 7 of each loss",
        "`model.onnx`, `model.xml`, `model.bin`, `model.safetensors`", "holds the weights alone",
        "| data, MD5 in DVC | 123.dir |", "| optimiser | Adam, learning rate 0.0001 |",
        "| processor | abacus |", "cut at 0.5",
    ):  # fmt: skip
        assert words in text, words


def test_the_card_tells_only_of_its_files_and_of_the_rate_that_was_taken(project: Path) -> None:
    about = Card.of(project / WEIGHTS, "u2netp", SIZE)
    assert about.trained.params is not None
    params = about.trained.params.model_copy(update={"learning_rate": 0.002})
    fast = about.trained._replace(params=params)
    text = card(about._replace(trained=fast), ["model.onnx"], 1)
    assert "| epochs | 7 |" in card(about._replace(task="bce"), ["model.onnx"], 1)
    assert "cut at 0.4." in card(about._replace(threshold=0.4), ["model.onnx"], 1)
    assert "cut at 0.5; carseg then" in card(about._replace(cleanup=True), ["model.onnx"], 1)
    assert "safetensors" not in text
    assert "| optimiser | Adam, learning rate 0.002, 0.0005 for the Dice loss |" in text
    assert "0.002 |" in card(about._replace(trained=fast, task="bce"), ["model.onnx"], 1)


def test_weights_alone_have_a_card_too(net: U2Net, tmp_path: Path) -> None:
    weights.save(net, tmp_path / "net.pth")
    export.export(tmp_path / "net.pth", tmp_path / "out", ["safetensors"], SIZE, None, False)
    assert (tmp_path / "out/MODEL_CARD.md").read_text().count("Not known") == 2
    assert "metrics" not in Card.of(tmp_path / "net.pth", "u2netp", SIZE).metadata()


@pytest.fixture
def run(net: U2Net, project: Path, tmp_path: Path) -> Path:
    """A copy of the project in which DVC has recorded all of its run."""
    root = tmp_path / "run"
    shutil.copytree(project, root, ignore=shutil.ignore_patterns("exported"))

    def content(path: str) -> dict[str, str]:
        with (root / path).open("rb") as file:
            return {"path": path, "md5": hashlib.file_digest(file, "md5").hexdigest()}

    kept = {"params.yaml": {"image_size": SIZE, "epochs": 5, "learning_rate": 0.0003}}
    stages = {
        "dataset": {"outs": [{"path": "dataset", "md5": "124.dir"}]},
        "train_dice": {
            "deps": [{"path": "dataset", "md5": "123.dir"}],
            "params": kept,
            "outs": [content(WEIGHTS.name)],
        },
        "evaluate": {
            "deps": [content(WEIGHTS.name)],
            "params": {"params.yaml": {"image_size": SIZE}},
            "outs": [content("metrics.json")],
        },
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return root


def test_settings_and_data_are_those_that_the_weights_were_trained_with(run: Path) -> None:
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    text = card(about, ["model.onnx"], 1)
    for words in ("| epochs | 5 of each loss", "learning rate 0.0003 |", "| 123.dir |"):
        assert words in text, "params.yaml and dataset may have been changed since"
    assert json.loads(about.metadata()["metrics"]) == {"plain": SCORES}


def test_numbers_of_photos_of_another_split_are_not_told(run: Path) -> None:
    lock = yaml.safe_load((run / "dvc.lock").read_text())
    split = {"path": "split", "md5": "5.dir"}
    lock["stages"]["split"] = {"outs": [split]}
    for stage in ("train_dice", "evaluate"):
        lock["stages"][stage]["deps"].append(split)
    (run / "dvc.lock").write_text(yaml.safe_dump(lock))
    told = "Means over 2 validation photos", "3 to train, 2 to validate"
    text = card(Card.of(run / WEIGHTS, "u2netp", SIZE), ["model.onnx"], 1)
    assert all(words in text for words in told)
    lock["stages"]["split"]["outs"][0] = {"path": "split", "md5": "6.dir"}
    (run / "dvc.lock").write_text(yaml.safe_dump(lock))
    text = card(Card.of(run / WEIGHTS, "u2netp", SIZE), ["model.onnx"], 1)
    assert "Means over the validation photos" in text
    assert "to validate" not in text


def test_other_weights_than_those_of_the_run_get_neither_its_scores_nor_its_settings(
    run: Path,
) -> None:
    with (run / WEIGHTS).open("ab") as file:
        file.write(b"trained once more")
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    text = card(about, ["model.onnx"], 1)
    assert "Not known: the last evaluation was of other weights." in text
    assert "Not known: no file beside the weights tells of their training." in text
    assert not {"metrics", "data"} & about.metadata().keys()


@pytest.mark.parametrize("name", ["fast.pth", f"{Path(WEIGHTS).stem}.bak"])
def test_weights_by_another_name_are_not_told_to_be_of_the_run(name: str, run: Path) -> None:
    shutil.copyfile(run / WEIGHTS, run / name)
    other_size = card(Card.of(run / name, "u2netp", SIZE + 32), ["model.onnx"], 1)
    assert "Not known: no `metrics.json`" in other_size
    about = Card.of(run / name, "u2netp", SIZE)
    assert "no file beside the weights tells of their training" in card(about, ["model.onnx"], 1)
    assert not {"metrics", "data"} & about.metadata().keys()


def test_files_of_another_project_tell_nothing_of_the_weights(run: Path) -> None:
    (run / "dvc.yaml").write_text("stages: {train: {cmd: python train.py}}")
    (run / "params.yaml").write_text("lr: 0.1\n")
    (run / "metrics.json").write_text('{"accuracy": 0.9}')
    (run / "dvc.lock").write_text("<<<<<<< HEAD")
    (run / "split/train.csv").write_text("\xe9", encoding="latin-1")
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    assert "no file beside the weights tells of their training" in card(about, ["model.onnx"], 1)
    assert "no `metrics.json`" in card(about, ["model.onnx"], 1)
    assert not {"metrics", "data"} & about.metadata().keys()


def test_scores_of_another_evaluation_or_at_another_size_are_not_told(run: Path) -> None:
    about = Card.of(run / WEIGHTS, "u2netp", 96)
    line = "Not known with this `image_size`: the last evaluation was with 64."
    assert line in card(about, ["model.onnx"], 1)
    assert "metrics" not in about.metadata()
    (run / "metrics.json").write_text((run / "metrics.json").read_text() + "\n")
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    assert "the last evaluation was of other weights" in card(about, ["model.onnx"], 1)
    assert "metrics" not in about.metadata()


def judged_with(run: Path, setting: str) -> None:
    """Let the last evaluation have had a setting."""
    text = (run / "dvc.lock").read_text()
    lock = yaml.safe_load(text)
    lock["stages"]["evaluate"]["params"]["params.yaml"] |= yaml.safe_load(setting)
    (run / "dvc.lock").write_text(yaml.safe_dump(lock))


def test_scores_at_another_threshold_are_not_told(run: Path) -> None:
    judged_with(run, "threshold: 0.25")
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    line = "Not known with this `threshold`: the last evaluation was with 0.25."
    assert line in card(about, ["model.onnx"], 1)
    assert "metrics" not in about.metadata()
    with (run / "params.yaml").open("a") as file:
        file.write("threshold: 0.25\n")
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    assert "Not known" not in card(about, ["model.onnx"], 1)


def test_scores_of_cleaned_masks_are_told_to_be_that(run: Path) -> None:
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    assert "cleaned up" not in card(about, ["model.onnx"], 1)
    assert "metrics_cleaned_up" not in about.metadata()
    judged_with(run, "cleanup: true")
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    assert "Masks were cleaned up before, as `cleanup` says" in card(about, ["model.onnx"], 1)
    assert about.metadata()["metrics_cleaned_up"] == "true"


def test_renderings_that_trained_along_are_told_of(run: Path) -> None:
    with (run / "params.yaml").open("a") as file:
        file.write("renderings: 10\n")
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    assert "renderings" not in card(about, ["model.onnx"], 1), "a run from before there were any"
    text = (run / "dvc.lock").read_text()
    (run / "dvc.lock").write_text(text.replace("epochs: 5", "epochs: 5\n        renderings: 7"))
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    assert "| renderings | 7 trained along |" in card(about, ["model.onnx"], 1)


def test_a_small_learning_rate_is_read_as_dvc_writes_it(run: Path) -> None:
    text = (run / "dvc.lock").read_text()
    assert "0.0003" in text
    (run / "dvc.lock").write_text(text.replace("0.0003", "5e-05"))  # in YAML 1.1 that is no number
    about = Card.of(run / WEIGHTS, "u2netp", SIZE)
    assert "learning rate 5e-05 |" in card(about, ["model.onnx"], 1)


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("order", ["abc", "cab"])
def test_files_that_cannot_all_be_replaced_are_all_left(
    order: str, at: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, out = tmp_path / "fresh", tmp_path / "out"
    for folder, names in ((fresh, "abc"), (out, "ab")):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    replace, done = os.replace, []

    def fail(one: Path, other: Path) -> None:
        done.append(one)
        if len(done) == at:
            raise error
        replace(one, other)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        export.replace_all(fresh, out, [*order])
    left = {path.name: path.read_text() for path in out.iterdir()}
    assert left == {"a": "out", "b": "out"}


def test_a_network_in_two_files_is_never_of_two_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, out = tmp_path / "fresh", tmp_path / "out"
    for folder in (fresh, out):
        folder.mkdir()
        for name in ("model.xml", "model.bin"):
            (folder / name).write_text(folder.name)
    replace = os.replace

    def watched(one: Path, other: Path) -> None:
        replace(one, other)
        assert len({path.read_text() for path in out.iterdir()}) < 2

    monkeypatch.setattr(os, "replace", watched)
    export.replace_all(fresh, out, ["model.xml", "model.bin"])
    assert {path.read_text() for path in out.iterdir()} == {"fresh"}


@pytest.mark.parametrize(
    ("error", "seen"),
    [(Exception("Failed to allocate memory for requested buffer of size 9"), MemoryError),
     (Exception("CUDA failure 2: out of memory"), MemoryError),
     (RuntimeError("std::bad_alloc"), MemoryError), (RuntimeError("a bug"), RuntimeError)],
)  # fmt: skip
def test_an_engines_lack_of_memory_is_known_as_that(
    error: Exception, seen: type[Exception], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = MagicMock()
    session.get_modelmeta.return_value.custom_metadata_map = {"image_size": "64"}
    session.run.side_effect = error
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    model = load(project / "exported/model.onnx")
    with pytest.raises(seen, match=re.escape(str(error))):
        model.predict(Image.new("RGB", (64, 64)))
    monkeypatch.setattr(onnxruntime, "InferenceSession", MagicMock(side_effect=error))
    with pytest.raises(seen if seen is MemoryError else CarsegError):
        load(project / "exported/model.onnx")
    # Here, too, where a file is compared with torch before it is kept.
    with pytest.raises(seen, match=re.escape(str(error))):
        export.export(project / WEIGHTS, project / "again", ["onnx"], SIZE, None, False)


def test_another_programs_openvino_network_is_told_from_ours(project: Path) -> None:
    network = openvino.Core().read_model(project / "exported/model.onnx")
    openvino.save_model(network, project / "other.xml")
    with pytest.raises(CarsegError, match=r"other\.xml: is a network, but not of carseg export; "):
        load(project / "other.xml")


def test_openvino_gives_many_photos_a_core_each(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = MagicMock(wraps=openvino.Core())
    monkeypatch.setattr(openvino, "Core", lambda: core)
    monkeypatch.setattr("carseg.model.cores", lambda: 2)
    model = load(project / "exported/model.xml")

    def streams() -> list[int]:
        return [call.args[2]["NUM_STREAMS"] for call in core.compile_model.call_args_list]

    random = np.random.default_rng(0)
    photos = [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(8)]
    expected = [model.predict(photo) for photo in photos]
    for jobs, count in ((2, WORTH_COMPILING - 1), (1, WORTH_COMPILING)):
        with model.among(jobs, count):
            model.predict(photos[0])
    assert streams() == [1], "compiling once more would take longer than it saves"
    with model.among(4, WORTH_COMPILING), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.predict, photos))
    assert streams() == [1, 2], "threads beyond the cores wait"
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    with model.among(2, WORTH_COMPILING):
        model.predict(photos[0])
    model.predict(photos[0])
    assert streams() == [1, 2], "what is compiled is kept"


@pytest.mark.parametrize(
    ("name", "content"),
    [("metrics.json", "<<<<<<< HEAD"), ("metrics.json", "[]"), ("metrics.json", '{"dice": 0.9}'),
     ("provenance/train_dice.json", "1"), ("dvc.lock", ""), ("dvc.lock", "stages: {dataset: 3}"),
     ("dvc.lock", "<<<<<<< HEAD\n- {"), ("dvc.lock", "a: 2026-99-99"), ("dvc.lock", "\xe9"),
     ("metrics.json", '{"dice": {"plain": {"dice": 0.9, "iou": 0.8}}}'), ("metrics.json", "\xe9"),
     ("split/train.csv", "photo,mask\n\xe9,\xe9\n"), ("split/val.csv", "a\n" + "b" * 200_000)],
)  # fmt: skip
def test_a_broken_file_beside_the_weights_is_one_line(
    name: str, content: str, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content, encoding="latin-1")  # as no letter of it is UTF-8
    with pytest.raises(CarsegError, match=rf"/{name}: (is not what|expected) .*; run dvc repro$"):
        Card.of(tmp_path / WEIGHTS, "u2netp", SIZE)


def test_a_card_without_manifests_tells_of_no_photos(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("epochs: 7\n")
    text = card(Card.of(tmp_path / WEIGHTS, "u2netp", SIZE), ["model.onnx"], 1)
    assert "7 of each loss" in text
    assert "to train" not in text
    assert "no `metrics.json`" in text


def test_more_photos_than_memory_has_room_for_are_refused() -> None:
    with pytest.raises(SystemExit, match="carseg: --batch 65: give a number from 1 to 64"):
        run_carseg("export", "--batch", "65")


@pytest.mark.parametrize("count", [1, 2])
def test_a_number_of_photos_can_be_fixed(count: int, net: U2Net, tmp_path: Path) -> None:
    weights.save(net, tmp_path / "net.pth")
    export.export(tmp_path / "net.pth", tmp_path, ["onnx", "onnx"], SIZE, count, False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert session.get_inputs()[0].shape == [count, 3, SIZE, SIZE]
    if count == 1:
        assert load(tmp_path / "model.onnx").size == SIZE
        return
    with pytest.raises(CarsegError, match=r"model\.onnx: takes 2 photos at once.* without --batch"):
        load(tmp_path / "model.onnx")


@pytest.mark.parametrize("count", [1, 2])
def test_an_openvino_file_for_one_photo_is_taken_and_one_for_more_refused(
    count: int, project: Path, tmp_path: Path
) -> None:
    model = openvino.Core().read_model(project / "exported/model.xml")
    model.reshape([count, 3, SIZE, SIZE])
    openvino.save_model(model, tmp_path / "model.xml")
    if count == 1:
        assert load(tmp_path / "model.xml").size == SIZE
        return
    with pytest.raises(CarsegError, match=r"model\.xml: takes 2 photos at once.* without --batch"):
        load(tmp_path / "model.xml")


def test_weights_without_a_network_are_refused(project: Path) -> None:
    with pytest.raises(CarsegError, match=r"holds weights alone; take the \.pth, "):
        load(project / "exported/model.safetensors")


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.safetensors"])
def test_what_is_exported_is_not_exported_again(name: str, project: Path) -> None:
    with pytest.raises(SystemExit, match=rf"/{name}: is exported already; name the \.pth it was"):
        run_carseg("export", "--weights", str(project / "exported" / name))


def test_an_exported_network_has_one_size(project: Path) -> None:
    assert load(project / "exported/model.onnx", SIZE).size == SIZE
    with pytest.raises(CarsegError, match=rf"onnx: is exported for an image size of {SIZE}, not 9"):
        load(project / "exported/model.onnx", 96)


def test_a_file_that_was_made_meanwhile_is_left(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export.WRITERS["safetensors"]

    def slow(*given: Any) -> None:
        (tmp_path / "model.safetensors").write_text("mine")
        write(*given)

    monkeypatch.setitem(export.WRITERS, "safetensors", slow)
    with pytest.raises(CarsegError, match=r"model\.safetensors: exists already; add --force"):
        export.export(project / WEIGHTS, tmp_path, ["safetensors"], SIZE, None, False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.safetensors": "mine"
    }


def test_a_folder_that_takes_no_files_is_told_of_before_photos_are_read(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.Calibration, "of", MagicMock(side_effect=AssertionError))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        export.export(
            project / WEIGHTS, tmp_path / "file", ["onnx"], SIZE, None, False, [Path("a.jpg")]
        )
    assert caught.value.filename == str(tmp_path / "file")


def test_files_are_replaced_only_when_forced(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    (tmp_path / "other").write_text("mine, too")
    with pytest.raises(CarsegError, match=r"model\.safetensors: exists already; add --force"):
        export.export(project / WEIGHTS, tmp_path, ["safetensors"], SIZE, None, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "other"]
    export.export(project / WEIGHTS, tmp_path, ["safetensors"], SIZE, None, True)
    assert (tmp_path / "model.safetensors").stat().st_size > 20_000
    assert (tmp_path / "other").read_text() == "mine, too"


def test_a_link_to_nothing_is_replaced_only_when_forced(project: Path, tmp_path: Path) -> None:
    link = tmp_path / "model.safetensors"
    link.symlink_to("/nowhere/at/all")
    with pytest.raises(CarsegError, match=r"model\.safetensors: exists already; add --force"):
        export.export(project / WEIGHTS, tmp_path, ["safetensors"], SIZE, None, False)
    assert link.is_symlink()


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_in_place_of_a_file_is_told_of_before_any_is_replaced(
    force: bool, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "MODEL_CARD.md").mkdir()
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(CarsegError, match=r"MODEL_CARD\.md: is a folder where a file is to be"):
        export.export(project / WEIGHTS, tmp_path, ["safetensors"], SIZE, None, force)
    assert (tmp_path / "model.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("onnx", r"model\.onnx"),
        ("openvino", r"model\.xml"),
        ("safetensors", r"model\.safetensors"),
    ],
)
def test_what_computes_something_else_is_not_kept(
    form: str, file: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in ("run_onnx", "run_openvino"):
        monkeypatch.setattr(formats, engine, lambda _: lambda photos: photos[:, :1] * 0)
    monkeypatch.setattr(formats, "net_of", lambda *_: uneven(U2Net("u2netp"), 9))
    with pytest.raises(CarsegError, match=rf"^{file}: differs from torch by 0\.\d+"):
        export.export(project / WEIGHTS, tmp_path, [form], SIZE, None, False)
    assert list(tmp_path.iterdir()) == []


def test_no_number_is_no_agreement(net: U2Net) -> None:
    with pytest.raises(CarsegError, match="differs from torch by nan"):
        compare(Probability(net), lambda p: p[:, :1] * np.float32("nan"), SIZE, 1, "it")


def test_a_missing_package_is_told_of_before_anything_is_exported(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setitem(WRITERS, "onnx", lambda *_: written.append("onnx"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(CarsegError, match=r"^openvino: .*openvino"):
        export.export(project / WEIGHTS, tmp_path, ["onnx", "openvino"], SIZE, None, False)
    assert not written


def test_a_missing_package_is_named() -> None:
    line = r"needs the package nowhere; run pip install -e '\.\[export\]' in the project's folder"
    with pytest.raises(CarsegError, match=line):
        import_optional("nowhere.at_all", "onnx")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ImportError('libtbb.so.12:\\n cannot open')", "libtbb.so.12: cannot open"),
        ("import nowhere_else", "No module named 'nowhere_else'"),
    ],
)
def test_a_package_that_is_there_but_broken_is_told_from_one_that_is_not(
    code: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_engine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CarsegError) as error:
        import_optional("broken_engine", "onnx")
    line = f"onnx: the package broken_engine cannot be loaded ({why}); install it anew"
    assert str(error.value) == line


def test_openvino_on_a_full_disk_is_a_line(
    net: U2Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object, **__: object) -> None:
        raise RuntimeError("basic_ios::clear:\niostream error")

    monkeypatch.setattr(openvino, "save_model", save)
    monkeypatch.setattr(openvino, "convert_model", lambda *_, **__: MagicMock())
    line = r"^model\.xml: could not be written \(basic_ios::clear: iostream error\); make room"
    weights.save(net, tmp_path / "net.pth")
    with pytest.raises(CarsegError, match=line):
        export.export(tmp_path / "net.pth", tmp_path / "out", ["openvino"], SIZE, None, False)
    assert list((tmp_path / "out").iterdir()) == []


def test_loggers_speak_again_after_an_error() -> None:
    logger = logging.getLogger("torch.onnx.tested")
    logger.setLevel(logging.INFO)
    with pytest.raises(ZeroDivisionError), quiet("torch.onnx"):
        1 / (logger.level - logging.ERROR)
    assert logger.level == logging.INFO
