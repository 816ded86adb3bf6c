"""Trained weights as a function: image in, probability out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from carseg import weights
from carseg.ahead import MOST, cores
from carseg.closer import look_closer
from carseg.device import Device
from carseg.engine import load_exported
from carseg.errors import CarsegError, as_memory_error
from carseg.fuse import fuse_batch_norm
from carseg.official import OFFICIAL, fetch, suiting
from carseg.photos import as_rgb, read_photo, turned_by_tag
from carseg.predict import Look, find, probability
from carseg.settings import DEVICES, EXPORTED, SIZES, settings_of
from carseg.u2net import VARIANTS, U2Net
from carseg.upright import find_upright
from carseg.views import AS_HELD, D4, TURNED

# Photos in progress where forward passes take turns: one in the net, one read, one written.
IN_TURN = 3
# Photos from which compiling a network once more, for several threads, saves more than it takes.
WORTH_COMPILING = 16

PRECISIONS = ("auto", "float32", "bfloat16")

# Makes a look for so many threads at once, for as long as the context lasts.
Divide = Callable[[int], AbstractContextManager[Look]]
Picture = Image.Image | str | Path | NDArray[np.uint8]


class Model:
    """A trained net that takes any image; several threads may use it.

    Attributes:
        size: side of the net's square input, in pixels; should be that of its training.
        threshold: probability from which a pixel is car, by the settings of the weights.
        cleanup: whether these want masks reduced to their largest piece, without holes.
    """

    def __init__(
        self,
        look: Look,
        size: int = 320,
        divide: Divide | None = None,
        *,
        divide_from: int = 1,
        threshold: float = 0.5,
        cleanup: bool = False,
    ) -> None:
        """Wrap a prediction function; `load` and `of` provide it.

        Args:
            look: maps photos (N, 3, S, S) to probabilities (N, 1, S, S).
            size: S.
            divide: makes a `look` that several threads call at once, each on its share of the
                cores; `None`: they take turns.
            divide_from: photos from which that is worthwhile.
            threshold: what the attribute of that name is to be.
            cleanup: likewise.
        """
        self._look = look
        self._one_at_a_time: AbstractContextManager[object] = Lock()
        self._divide = divide
        self._divide_from = divide_from
        self.size = size
        self.threshold = threshold
        self.cleanup = cleanup

    @classmethod
    def of(
        cls,
        net: U2Net,
        size: int = 320,
        device: Device | None = None,
        *,
        threshold: float = 0.5,
        cleanup: bool = False,
    ) -> Model:
        """Make a model of a copy of a net, on the device, without batch norms."""
        place = device or Device(repeatable=False)
        folded = place.place_net(fuse_batch_norm(net)).to(place.dtype)

        def look(photos: Tensor) -> Tensor:
            return probability(folded, photos, place)

        divide = partial(_on_fewer_threads, look) if place.torch.type == "cpu" else None
        return cls(look, size, divide, threshold=threshold, cleanup=cleanup)

    def predict(
        self, picture: Picture, *, d4: bool = False, closer: bool = False
    ) -> NDArray[np.float32]:
        """Return each pixel's probability of being car, (H, W), float32, 0…1, at picture size.

        Without `d4`, where the car lies on its side, the picture turned by a quarter is predicted,
        too, and averaged.

        Args:
            picture: a file, a PIL image of any mode (levels 0…255, in modes I 0…65535, in mode
                F also 0…1), or an
                array (H, W, 3), uint8, RGB. Files and PIL images are turned upright where their
                EXIF tag says how the camera was held.
            d4: average over all eight right-angle turns and flips.
            closer: then predict the car's box alone, in the two turns in which the car stands (with
                `d4`, flipped, too), and average: two (four) more forward passes. Where it is about
                as long as high, or none is found, in all turns: four (eight) more.

        Raises:
            CarsegError: the file cannot be read as an image.
            MemoryError: there is too little memory.
            ValueError: an array of another shape or type.
        """
        photo, look, size = as_photo(picture), self._look_alone, self.size
        found = find(look, photo, D4, size) if d4 else find_upright(look, photo, size)
        return look_closer(look, photo, found, D4 if d4 else TURNED, size) if closer else found

    def look(self, picture: Picture) -> NDArray[np.float32]:
        """Predict the picture as it is held, in one forward pass; return as `predict` does."""
        return find(self._look_alone, as_photo(picture), AS_HELD, self.size)

    def jobs_for(self, photos: int) -> int:
        """Return how many of that many photos to process at once, each in a thread."""
        jobs = jobs_on(torch.get_num_threads()) if self._divides(photos) else IN_TURN
        return min(jobs, photos)

    @contextmanager
    def among(self, jobs: int, photos: int) -> Iterator[None]:
        """Divide the cores among the `jobs` threads that start inside this context.

        Each then processes one of all `photos` without waiting, whereas cores that share a forward
        pass wait for each other in every layer. ONNX Runtime and GPUs are not divided, nor is
        OpenVINO for few photos. Where torch computes, it meanwhile has fewer threads in the whole
        process, so one context at a time.
        """
        if self._divide is None or jobs < 2 or not self._divides(photos):
            yield
            return
        look, lock = self._look, self._one_at_a_time
        with self._divide(jobs) as divided:
            self._look, self._one_at_a_time = divided, nullcontext()
            try:
                yield
            finally:
                self._look, self._one_at_a_time = look, lock

    def _divides(self, photos: int) -> bool:
        return self._divide is not None and photos >= self._divide_from

    def _look_alone(self, photos: Tensor) -> Tensor:
        """Predict; a call takes all cores, so threads take turns, and scale photos meanwhile."""
        with self._one_at_a_time, as_memory_error():
            return self._look(photos)


def load(
    path: str | Path, size: int | None = None, precision: str = "auto", device: str = "auto"
) -> Model:
    """Load weights that a training saved, of either network, or a file of `carseg export`.

    On a CPU under Linux, where torch or OpenVINO computes, the process keeps memory that forward
    passes have used, for the next ones. On a GPU, in float32, convolutions round their inputs to 10
    bits (TF32) unless `torch.backends.cudnn.allow_tf32` is False, as it is where scores are made.

    Args:
        path: a .pth file; or an .onnx or .xml file, which runs on the engine of its format.
        size: side of the net's square input, 32 to 4096; `None`: the `image_size` in `dvc.lock`, or
            else `params.yaml`, next to the weights, else 320. Exported files have their own.
        precision: auto, float32 or bfloat16; .onnx files always run in float32, and files in 8-bit
            integers (`carseg export --int8`) in those, with the rest in float32.
        device: auto, cpu or cuda.

    Raises:
        CarsegError: the file is missing, broken, holds no U²-Net or one for several photos at once,
            its engine is not installed, there is no such device, an option has another value, or
            the settings beside the weights are at fault.
        MemoryError: there is too little memory.
        OSError: a file may not be read.
    """
    _check_options(size, precision, device)
    path = Path(path)
    kind = path.suffix.lower()
    if kind in EXPORTED:
        exported = load_exported(path, device, precision)
        if size not in (None, exported.size):
            raise CarsegError(
                f"{path}: is exported for an image size of {exported.size}, not {size}; export it "
                "anew with --image-size"
            )
        return Model(
            exported.look,
            exported.size,
            partial(_compiled_for, exported.divided) if exported.divided else None,
            divide_from=WORTH_COMPILING,
            threshold=exported.threshold,
            cleanup=exported.cleanup,
        )
    if kind == ".safetensors":
        raise CarsegError(f"{path}: holds weights alone; take the .pth, .onnx or .xml file")
    settings = settings_of(path)
    with as_memory_error():
        net = weights.read(path)
        size = settings.image_size if size is None else int(size)
        place = Device(precision, device, repeatable=False)
        return Model.of(net, size, place, threshold=settings.threshold, cleanup=settings.cleanup)


def untrained(
    size: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    model: str = "u2net",
) -> Model:
    """Give the network with its official weights, before any training of one's own.

    It finds what stands out in a photo, be it a car or not. The file is that in `Weights/`, else it
    is fetched once and kept in the user's cache folder: 176 MB, or 4.6 MB of the small network. If
    the small one's is in `Weights/` alone, it is taken for either.

    Args:
        size: side of the net's square input, 32 to 4096; `None`: 320.
        precision: auto, float32 or bfloat16.
        device: auto, cpu or cuda.
        model: u2net, or u2netp, the small one, which is faster.

    Raises:
        CarsegError: it cannot be fetched, is not the official one, there is no such device, or an
            option has another value.
        MemoryError: there is too little memory.
        OSError: the file may not be read.
    """
    _check_options(size, precision, device)
    _check_choice("model", model, tuple(VARIANTS))
    own = Path("Weights")
    name = suiting(model, own)
    with as_memory_error():
        state = weights.read_onnx(Path(OFFICIAL[name].file), fetch(name, own))
        net = weights.net_of(state, name)
        size = 320 if size is None else int(size)
        return Model.of(net, size, Device(precision, device, repeatable=False))


def jobs_on(threads: int) -> int:
    """Return how many jobs, up to `MOST`, to divide threads among, so that few of them idle."""
    if threads <= MOST:
        return threads
    return max(range(MOST // 2 + 1, MOST + 1), key=lambda jobs: (threads // jobs * jobs, jobs))


@contextmanager
def _on_fewer_threads(look: Look, jobs: int) -> Iterator[Look]:
    """Divide torch's threads among those that call it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // jobs))
    try:
        yield look
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _compiled_for(divided: Callable[[int], Look], jobs: int) -> Iterator[Look]:
    """Compile a network once more, for as many threads as there are cores for."""
    try:
        with as_memory_error():
            look = divided(min(jobs, cores()))
    except MemoryError as error:
        raise CarsegError(
            "memory ran out as the network was compiled for several photos at once; add --jobs 1"
        ) from error
    yield look


def _check_options(size: int | None, precision: str, device: str) -> None:
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("device", device, DEVICES)
    if size is not None and size not in SIZES:
        raise CarsegError(f"size {size}: give a whole number from {SIZES[0]} to {SIZES[-1]}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise CarsegError(f"{name} {value}: give {', '.join(choices[:-1])} or {choices[-1]}")


def as_photo(picture: Picture) -> Image.Image:
    """Convert a picture of any kind to an upright RGB image; one already so is not copied.

    Raises:
        CarsegError: the file cannot be read as an image.
        ValueError: an array of another shape or type.
    """
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(
                f"expected an array (H, W, 3) of uint8, got {picture.shape} of {picture.dtype}"
            )
        if not picture.size:
            raise ValueError(f"expected an array (H, W, 3) with pixels, got {picture.shape}")
        return Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        return read_photo(Path(picture))
    try:
        picture.load()  # PIL reads pixels only now
        photo = as_rgb(turned_by_tag(picture))
    except MemoryError:  # of which the picture is not to blame
        raise
    except Exception as error:  # Pillow has no common base for what a broken file may raise
        why = " ".join(str(error).split())
        raise CarsegError(f"the picture cannot be read ({why}); save it anew") from error
    if 0 in photo.size:
        raise CarsegError("the picture has no pixels; give one that is not empty")
    return photo
