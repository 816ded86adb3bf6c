"""The exported file in rembg, the background remover, as its users run it."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carseg import weights
from carseg.export import export
from carseg.metrics import count, iou
from carseg.model import load
from carseg.sample import render_sample

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what rembg brings along, not ours
    import rembg

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sample")
    for name in ("Image", "Mask"):
        (folder / name).mkdir()
    render_sample(folder / "Image", folder / "Mask", count=3, long_side=480)
    return sorted((folder / "Image").iterdir())


def test_rembg_finds_the_same_cars(
    photos: list[Path], official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = tmp_path / "net.pth"
    weights.save(weights.start("u2netp", official, 0), trained)
    # It takes models from its own folder alone.
    monkeypatch.setenv("REMBG_HOME", str(tmp_path / "rembg"))
    (path, _) = export(trained, tmp_path / "rembg", ["onnx"], 320, None, False)
    session = rembg.new_session("u2net_custom", model_path=str(path))
    model = load(trained, precision="float32")
    for photo in photos:
        with Image.open(photo) as image:
            theirs = np.asarray(rembg.remove(image, session=session, only_mask=True)) >= 128
        ours = model.look(photo) >= 0.5
        assert 0.02 < ours.mean() < 0.9, "there is a car, or agreement would prove nothing"
        assert iou(count(theirs, ours)) >= 0.99, photo.name
