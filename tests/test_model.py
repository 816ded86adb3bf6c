"""The trained net as a function of any image."""

import hashlib
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from conftest import oriented, photo, uneven, write_pairs
from PIL import Image
from project import ROOT
from torch import Tensor

import carseg
from carseg import weights
from carseg.closer import look_closer
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.formats import Probability, write_onnx
from carseg.fuse import fuse_batch_norm
from carseg.model import IN_TURN, MOST, Model, as_photo
from carseg.photos import squared_photo
from carseg.predict import at_size, combine, combine_two, predict_views, probability
from carseg.tensors import photo_tensor
from carseg.u2net import U2Net
from carseg.views import D4, TURNED, View

CPU = Device("float32", "cpu")


@pytest.fixture(scope="module")
def net() -> U2Net:
    return uneven(U2Net("u2netp"), 3)


@pytest.fixture(scope="module")
def model(net: U2Net) -> Model:
    return Model.of(net, 64, CPU)


def test_predictions_have_the_pictures_size_and_agree_with_the_pipeline(
    model: Model, net: U2Net
) -> None:
    found = model.predict(photo())
    assert (found.shape, found.dtype) == ((60, 90), np.float32)
    assert 0 <= found.min() < 0.5 < found.max() <= 1, "both sides occur, or this proves nothing"
    square = photo_tensor(squared_photo(photo(), 64))
    expected = at_size(probability(net, square[None], CPU)[0], (60, 90)) >= 0.5
    assert np.array_equal(found >= 0.5, expected)
    sides = predict_views(lambda photos: probability(net, photos, CPU), square)
    views = at_size(combine(sides), (60, 90)) >= 0.5
    assert np.array_equal(model.predict(photo(), d4=True) >= 0.5, views)
    assert not np.array_equal(views, expected)


def test_a_model_in_bfloat16_finds_nearly_the_same(model: Model, net: U2Net) -> None:
    found, exact = Model.of(net, 64, Device("bfloat16")).look(photo()), model.look(photo())
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.03)
    assert not np.array_equal(found, exact)


def test_a_car_on_its_side_is_looked_at_twice_and_by_look_once(model: Model, net: U2Net) -> None:
    tall = photo(50, 100)
    square = photo_tensor(squared_photo(tall, 64))

    def look(photos: Tensor) -> Tensor:
        return probability(net, photos, CPU)

    once, twice = look(square[None]), predict_views(look, square, (D4[0], D4[3]))
    np.testing.assert_allclose(model.look(tall), at_size(once[0], (100, 50)), atol=1e-4)
    found = model.predict(tall)
    np.testing.assert_allclose(found, at_size(combine_two(twice), (100, 50)), atol=1e-4)
    assert np.abs(found - model.look(tall)).max() > 0.1
    assert np.array_equal(model.predict(photo()), model.look(photo())), "the car stands"


@pytest.mark.parametrize(("d4", "sides"), [(False, TURNED), (True, D4)])
def test_a_closer_look_starts_from_what_the_whole_photo_shows(
    model: Model, net: U2Net, d4: bool, sides: Sequence[View]
) -> None:
    first = model.predict(photo(), d4=d4)
    expected = look_closer(lambda photos: probability(net, photos, CPU), photo(), first, sides, 64)
    found = model.predict(photo(), d4=d4, closer=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - first).max() > 0.1


def test_a_file_an_image_and_an_array_give_the_same(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo().save(path)
    expected = model.predict(photo())
    for picture in (path, str(path), np.asarray(photo())):
        assert np.array_equal(model.predict(picture), expected)


def test_threads_take_turns_at_looking_and_find_the_same(model: Model) -> None:
    looking, most = 0, 0

    def look(photos: Tensor) -> Tensor:
        nonlocal looking, most
        looking += 1
        most = max(most, looking)
        time.sleep(0.01)
        looking -= 1
        return model._look(photos)

    shared = Model(look, 64)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: shared.predict(photo()), range(8)))
    assert most == 1
    expected = model.predict(photo())
    assert all(np.array_equal(one, expected) for one in found)


def test_threads_divide_the_cores_and_give_them_back(model: Model) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        with model.among(2, 2), ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
            found = pool.submit(model.predict, photo()).result()
        with Model(model._look, 64).among(2, 2):  # an engine's own threads are not torch's
            assert torch.get_num_threads() == 6
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found, model.predict(photo()), atol=1e-5)


@pytest.mark.parametrize(
    ("threads", "jobs"), [(1, 1), (2, 2), (8, 8), (9, 8), (11, 5), (12, 6), (14, 7), (64, MOST)]
)
def test_a_model_knows_how_many_photos_to_have_in_work(
    threads: int, jobs: int, net: U2Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = Model.of(net, 64, CPU)
    assert (model.jobs_for(100), model.jobs_for(1)) == (jobs, 1)
    assert Model(lambda photos: photos, 64).jobs_for(100) == IN_TURN
    engine = Model(model._look, 64, lambda jobs: nullcontext(model._look), divide_from=16)
    assert (engine.jobs_for(15), engine.jobs_for(16)) == (IN_TURN, jobs)


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "CMYK", "1", "YCbCr", "F"])
def test_images_of_every_mode_are_taken(mode: str, model: Model) -> None:
    converted = photo().convert(mode if mode != "LA" else "L").convert(mode)
    assert as_photo(converted).mode == "RGB"
    assert model.predict(converted).shape == (60, 90)


@pytest.mark.parametrize("kind", ["I;16", "I"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    image = Image.fromarray(deep if kind == "I;16" else deep.astype(np.int32))
    assert image.mode == kind
    assert np.asarray(as_photo(image))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_an_upright_photo_is_taken_as_it_is() -> None:
    upright = photo()
    before = upright.tobytes()
    assert as_photo(upright) is upright, "large photos take long to copy"
    exif = upright.getexif()
    exif[0x0112] = 3  # upside down
    assert as_photo(upright).tobytes() == upright.transpose(Image.Transpose.ROTATE_180).tobytes()
    assert upright.tobytes() == before


def test_a_camera_held_sideways_is_heeded(model: Model, tmp_path: Path) -> None:
    sideways = photo().transpose(Image.Transpose.ROTATE_90)
    sideways.save(tmp_path / "turned.png", exif=oriented(6))
    expected = model.predict(photo())
    assert np.array_equal(model.predict(tmp_path / "turned.png"), expected)
    with Image.open(tmp_path / "turned.png") as image:
        assert np.array_equal(model.predict(image), expected)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, model: Model) -> None:
    with pytest.raises(ValueError, match=r"expected an array \(H, W, 3\) of uint8, got \(8, 8"):
        model.predict(array)


def test_a_picture_without_pixels_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match=r"with pixels, got \(0, 5, 3\)"):
        model.predict(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(CarsegError, match=r"^the picture has no pixels; give one that is not"):
        model.predict(photo().crop((5, 5, 5, 9)))


def test_a_mode_that_pillow_does_not_convert_is_an_error_of_ours(model: Model) -> None:
    with pytest.raises(CarsegError, match=r"^the picture cannot be read \(.*La"):
        model.predict(Image.new("La", (9, 9)))


def test_what_is_no_image_is_named(model: Model, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(CarsegError, match=r"text\.jpg: cannot be read as an image"):
        model.predict(tmp_path / "text.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")  # in several chunks
    content = (tmp_path / "cut.png").read_bytes()
    at = content.rindex(b"IDAT")
    for broken in (content[: len(content) // 2], content[:at] + b"\1\2\3\4" + content[at + 4 :]):
        (tmp_path / "cut.png").write_bytes(broken)
        with (
            Image.open(tmp_path / "cut.png") as image,
            pytest.raises(CarsegError, match="the picture cannot be read"),
        ):
            model.predict(image)


@pytest.mark.parametrize("variant", ["u2netp", "u2net"])
def test_load_tells_the_network_by_its_weights(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.manual_seed(0)
    trained = U2Net(variant)
    weights.save(trained, path)
    model = carseg.load(str(path), size=64, precision="float32")
    expected = Model.of(trained, 64, CPU).predict(photo())
    assert np.array_equal(model.predict(photo()), expected)


def test_load_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CarsegError, match=r"none\.pth: there is no such file"):
        carseg.load(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"precision": "bf16"}, "precision bf16: give auto, float32 or bfloat16"),
        ({"device": "gpu"}, "device gpu: give auto, cpu or cuda"),
        ({"size": 0}, "size 0: give a whole number from 32 to 4096"),
        ({"size": 320.5}, r"size 320\.5: give a whole number"),
        ({"size": "320"}, "size 320: give a whole number"),
    ],
)
@pytest.mark.parametrize("name", ["net.pth", "model.onnx"])
def test_load_refuses_options_of_other_values(
    name: str, option: dict[str, Any], line: str, net: U2Net, tmp_path: Path
) -> None:
    weights.save(net, tmp_path / name)
    with pytest.raises(CarsegError, match=f"^{line}"):
        carseg.load(tmp_path / name, **option)


def test_a_stray_key_of_transparency_changes_nothing() -> None:
    """As on pictures that were made of another one, of another mode."""
    picture = Image.new("RGB", (4, 3), (9, 8, 7))
    for key in ("of mine", b"abc", 9):
        picture.info["transparency"] = key
        assert np.asarray(as_photo(picture))[0, 0].tolist() == [9, 8, 7]


def test_numbers_of_numpy_are_sizes_too(net: U2Net, tmp_path: Path) -> None:
    weights.save(net, tmp_path / "net.pth")
    assert carseg.load(tmp_path / "net.pth", size=np.int64(64)).size == 64  # type: ignore[arg-type]


def test_load_takes_the_image_size_of_the_settings_beside_the_weights(
    net: U2Net, tmp_path: Path
) -> None:
    weights.save(net, tmp_path / "net.pth")
    assert carseg.load(tmp_path / "net.pth").size == 320
    (tmp_path / "params.yaml").write_text("image_size: 64\n")
    assert carseg.load(tmp_path / "net.pth").size == 64
    assert carseg.load(tmp_path / "net.pth", size=96).size == 96
    (tmp_path / "params.yaml").write_text("image_size: 65\n")
    with pytest.raises(CarsegError, match=r"params\.yaml: image_size is 65; it must be a multiple"):
        carseg.load(tmp_path / "net.pth")


def test_load_takes_the_image_size_of_the_training_where_it_is_recorded(
    net: U2Net, tmp_path: Path
) -> None:
    file = tmp_path / "net.pth"
    weights.save(net, file)
    known = {"path": file.name, "md5": hashlib.md5(file.read_bytes()).hexdigest()}
    run = {"outs": [known], "params": {"params.yaml": {"image_size": 64}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": {"train_bce": run}}))
    (tmp_path / "params.yaml").write_text("image_size: 1024\n")  # of a run that did not end
    assert carseg.load(file).size == 64
    file.rename(tmp_path / "other.pth")
    assert carseg.load(tmp_path / "other.pth").size == 1024
    (tmp_path / "other.pth").rename(file)
    lock = (tmp_path / "dvc.lock").read_text()
    for broken in (lock.replace(known["md5"], "1"), lock.replace(": 64", ": '64'"), "<<<<<<< HEAD"):
        (tmp_path / "dvc.lock").write_text(broken)
        assert carseg.load(file).size == 1024


def test_settings_of_another_project_are_not_of_the_weights(net: U2Net, tmp_path: Path) -> None:
    weights.save(net, tmp_path / "net.pth")
    (tmp_path / "params.yaml").write_text("image_size: 64\n")
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: python train.py}}")
    assert carseg.load(tmp_path / "net.pth").size == 320
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    assert carseg.load(tmp_path / "net.pth").size == 64


def test_settings_of_another_program_are_told_of_and_left(
    net: U2Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights.save(net, tmp_path / "net.pth")
    settings = tmp_path / "params.yaml"
    settings.write_text("image_size: 64\nlr: 0.1\n")
    assert carseg.load(tmp_path / "net.pth").size == 320
    line = f"{settings}: lr is no setting of carseg; nothing is taken from there\n"
    assert capsys.readouterr().err == f"carseg: warning: {line}"
    settings.write_text("image_size: 8\n")
    with pytest.raises(CarsegError, match="image_size is 8"):
        carseg.load(tmp_path / "net.pth")
    settings.write_text("image_size: 64\nlr: 0.1\n")
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    with pytest.raises(CarsegError, match="lr is not a parameter"):
        carseg.load(tmp_path / "net.pth")


def test_load_knows_endings_in_capitals(official: Path, tmp_path: Path) -> None:
    shutil.copyfile(official / "u2netp.onnx", tmp_path / "M.ONNX")
    with pytest.raises(
        CarsegError, match=r"M\.ONNX: is a network, but .* carseg predict --untrained"
    ):
        carseg.load(tmp_path / "M.ONNX")
    (tmp_path / "M.SAFETENSORS").touch()
    with pytest.raises(CarsegError, match="holds weights alone"):
        carseg.load(tmp_path / "M.SAFETENSORS")


def test_the_untrained_net_finds_what_the_official_file_does(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("carseg.official.pooch.os_cache", lambda _: official)
    write_pairs(tmp_path / "Image", tmp_path / "Mask", 1)
    picture = Image.open(tmp_path / "Image/0.jpg").resize((320, 240))
    found = carseg.untrained(precision="float32", model="u2netp").look(picture)
    session = onnxruntime.InferenceSession(str(official / "u2netp.onnx"))
    square = photo_tensor(squared_photo(picture, 320))[None].numpy()
    (theirs, *_) = session.run(None, {session.get_inputs()[0].name: square})
    assert theirs.min() < 0.1 < 0.9 < theirs.max(), "or agreement would prove nothing"
    wanted = at_size(torch.from_numpy(theirs[0]), (240, 320))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_untrained_has_the_options_of_load(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no `Weights/`
    monkeypatch.setattr("carseg.official.pooch.os_cache", lambda _: official)
    model = carseg.untrained(96, model="u2netp")
    assert (model.size, model.threshold, model.cleanup) == (96, 0.5, False)
    assert carseg.untrained(None, model="u2netp").size == 320
    for options in ({"size": 31}, {"precision": "half"}, {"device": "tpu"}, {"model": "isnet"}):
        with pytest.raises(CarsegError, match=next(iter(options))):
            carseg.untrained(**options)


def test_untrained_is_the_full_net_unless_the_user_has_the_small_one_alone(
    official: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    fetched: list[str] = []

    def fetch(name: str, own: Path) -> bytes:
        fetched.append(name)
        return (official / "u2netp.onnx").read_bytes()

    monkeypatch.setattr("carseg.model.fetch", fetch)
    with pytest.raises(RuntimeError, match="size mismatch"):
        carseg.untrained()
    Path("Weights").mkdir()
    Path("Weights/u2netp.onnx").touch()
    carseg.untrained()
    assert fetched == ["u2net", "u2netp"]


@pytest.mark.slow
def test_the_full_net_is_read_from_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The published one is a folded export, too, but takes a fetch of 176 MB."""
    monkeypatch.chdir(tmp_path)
    net = uneven(U2Net("u2net"))
    expected = probability(net, square := photo_tensor(squared_photo(photo(), 64))[None], CPU)
    write_onnx(Probability(fuse_batch_norm(net)).eval(), tmp_path, 64, None, {})
    monkeypatch.setattr("carseg.model.fetch", lambda *_: (tmp_path / "model.onnx").read_bytes())
    found = carseg.untrained(64, precision="float32")
    np.testing.assert_allclose(found.look(photo()), at_size(expected[0], (60, 90)), atol=1e-4)
    started = probability(weights.start("u2net", tmp_path, seed=1).eval(), square, CPU)
    torch.testing.assert_close(started, expected, rtol=0, atol=1e-4)
    assert expected.std() > 1e-3, "or agreement would prove nothing"


@pytest.mark.parametrize(
    ("ways", "looks"),
    [({}, 1), ({"closer": True}, 5), ({"d4": True}, 8), ({"d4": True, "closer": True}, 16)],
)
def test_looks_at_a_photo_without_a_car_are_as_many_as_documented(
    ways: dict[str, bool], looks: int
) -> None:
    seen: list[Tensor] = []

    def nothing(photos: Tensor) -> Tensor:
        seen.extend(photos)
        return torch.full((len(photos), 1, 64, 64), 0.2)

    found = Model(nothing, 64).predict(photo(), **ways)
    assert found.max() == pytest.approx(0.2)
    assert len(seen) == looks


def test_the_package_offers_what_its_users_need() -> None:
    assert {"CarsegError", "load", "untrained", "Model"} <= set(dir(carseg))
    with pytest.raises(carseg.CarsegError, match="no such file"):
        carseg.load("none.pth")


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        carseg.unknown  # noqa: B018
