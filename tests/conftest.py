"""What several tests need: tiny photos, masks hard and soft, uneven nets, official weights."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import hypothesis
import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import ExifTags, Image
from project import ROOT, SHALLOW, Project
from torch import nn

from carseg import __main__
from carseg.files import write_csv
from carseg.official import provide
from carseg.params import Params
from carseg.u2net import VARIANTS, U2Net

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several nets' threads on the same cores mostly wait for each other: tenfold the time.
    os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start
    torch.set_num_threads(1)


# Tests, and what they start, compute on the processor.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# The same examples in each run, however busy the machine is.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=2, help="how often test_kill.py kills a run [2]; more: slower"
    )


PAIRS = 6  # of a project that has been run
LONG, SHORT = 88, 60  # neither is a multiple of 32, nor is one a multiple of the other


def ellipse(height: int, width: int, seed: int) -> NDArray[np.bool_]:
    """A filled ellipse off the centre, (height, width), True inside."""
    random = np.random.default_rng(seed)
    y, x = np.ogrid[:height, :width]
    top, left = random.uniform(0.4, 0.6, 2) * (height, width)
    high, wide = random.uniform(0.2, 0.32, 2) * (height, width)
    return ((y - top) / high) ** 2 + ((x - left) / wide) ** 2 < 1


def photo(width: int = 90, height: int = 60, grain: int = 10, seed: int = 0) -> Image.Image:
    """A photo of smooth noise, in which nets see something; it changes every `grain` pixels."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // grain, width // grain, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_pairs(images: Path, masks: Path, count: int) -> list[str]:
    """Write `count` photos of a bright "car" on dark noise, and their masks; give the names.

    Every other photo stands upright. The same call writes the same bytes.
    """
    names = [str(i) for i in range(count)]
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        height, width = (SHORT, LONG) if i % 2 == 0 else (LONG, SHORT)
        car = ellipse(height, width, seed=i)
        photo = np.random.default_rng(i).integers(0, 110, (height, width, 3), dtype=np.uint8)
        photo[car] += np.array([130, 120, 90], np.uint8)
        Image.fromarray(photo).save(images / f"{name}.jpg", quality=95)
        Image.fromarray(np.where(car, 255, 0).astype(np.uint8)).save(masks / f"{name}.png")
    return names


def oriented(orientation: int) -> Image.Exif:
    """EXIF data that say how a picture is turned to be seen, as the standard numbers it, 1…8."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def write_manifests(root: Path, train: int, val: int) -> None:
    """Write pairs into `root`'s dataset and list the first ones for training, the rest not."""
    names = write_pairs(root / "dataset/Image", root / "dataset/Mask", train + val)
    for part, chosen in (("train", names[:train]), ("val", names[train:])):
        rows = [(f"dataset/Image/{name}.jpg", f"dataset/Mask/{name}.png") for name in chosen]
        write_csv(root / f"split/{part}.csv", ("photo", "mask"), rows)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, by their names relative to it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def crumbs() -> NDArray[np.float32]:
    """A car with a hole and a soft edge, and a piece beside it with one; (30, 40)."""
    found = np.full((30, 40), 0.02, np.float32)
    found[4:21, 3:24], found[5:20, 4:23] = 0.3, 0.9
    found[10:13, 9:12] = 0.2
    found[23:29, 27:36], found[24:28, 28:35] = 0.3, 0.8
    return found


def uneven(net: U2Net, seed: int = 0) -> U2Net:
    """Give every weight and statistic a random value, in eval mode; signals keep their size."""
    random = torch.Generator().manual_seed(seed)

    def uniform(x: torch.Tensor, low: float, high: float) -> None:
        x.copy_(torch.empty(x.shape).uniform_(low, high, generator=random))

    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                spread = (3 / layer.weight[0].numel()) ** 0.5
                uniform(layer.weight, -spread, spread)
                assert layer.bias is not None
                uniform(layer.bias, -0.3, 0.3)
            elif isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                uniform(layer.weight, 0.7, 1.5)
                uniform(layer.bias, -0.3, 0.3)
                uniform(layer.running_mean, -0.3, 0.3)
                uniform(layer.running_var, 0.4, 1.6)
    return net.eval()


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal values, the same in each run and apart from torch's own generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run_carseg(*words: str) -> None:
    """Run `carseg` with these words in this process, parts of which a test may have replaced."""
    with patch.object(sys, "argv", ["carseg", *words]):
        __main__.main()


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """Let `u2netp` be `SHALLOW`, where it is not the network that is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "u2netp", SHALLOW)
        yield


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the official u2netp.onnx, as the stage `weights` leaves it."""
    root = of_all_workers(tmp_path_factory)
    with FileLock(root / "official.lock"):
        if not (root / "pretrained").exists():
            (root / "Weights").mkdir(exist_ok=True)
            for folder in ("Weights", "pretrained"):  # from here it is not fetched
                if (ROOT / folder / "u2netp.onnx").is_file():
                    shutil.copy(ROOT / folder / "u2netp.onnx", root / "Weights")
            provide(Params(init="u2netp"), root / "Weights", root / "pretrained")
    return root / "pretrained"


def of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder that workers share what takes long in."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


class Run(NamedTuple):
    """A project that has been run once, for tests to copy, and how long that took."""

    project: Project
    seconds: float


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = of_all_workers(tmp_path_factory)
    folder, took = root / "ran with a space", root / "ran.json"
    with FileLock(root / "ran.lock"):
        if not took.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker where it failed
            project = Project(folder)
            project.make_shallow()
            write_pairs(folder / "Image", folder / "Mask", PAIRS)
            began = time.monotonic()
            project.dvc("repro")
            took.write_text(json.dumps(time.monotonic() - began))
    return Run(Project.at(folder), json.loads(took.read_text()))


@pytest.fixture
def elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Go on in a copy such as DVC makes; gives what makes folders in the project it is of."""
    home = tmp_path_factory.mktemp("home")
    copy = home / ".dvc/tmp/exps/copy"
    shutil.copytree(".", copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(home))

    def make(name: str) -> Path:
        (home / name).mkdir(parents=True)
        return home / name

    return make


@pytest.fixture(autouse=True)
def _nothing_goes_on_in_the_background() -> Iterator[None]:
    """End what a test that failed has left running, or stopped."""
    yield
    while Project.started:
        process = Project.started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(autouse=True)
def _no_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as outside of DVC, even where these tests are started by it."""
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture(autouse=True)
def _no_git_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as outside of git, whose hooks name the repository that they run for."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave the user's DVC out: its caches, and its settings; and a proxy, of local servers.

    What torchrun and torch's compiler leave behind goes where pytest cleans up.
    """
    with pytest.MonkeyPatch.context() as patch:
        for level in ("GLOBAL", "SYSTEM"):
            folder = tmp_path_factory.mktemp(level.lower())
            patch.setenv(f"DVC_{level}_CONFIG_DIR", str(folder))
        for name in ("DVC_SITE_CACHE_DIR", "PET_LOG_DIR", "TORCHINDUCTOR_CACHE_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        for name in ("DVC_STUDIO_TOKEN", "DVC_EXP_AUTO_PUSH"):
            patch.delenv(name, raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost")
        yield


class Trap:
    """Its pickle runs code when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return Path.touch, (self.marker,)
