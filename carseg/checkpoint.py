"""Checkpoints of a training, saved now and then, from which an interrupted run resumes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.serialization import config

from carseg.ahead import on_cores
from carseg.device import Device
from carseg.errors import CarsegError, is_lack_of_memory, warn
from carseg.pairs import Pair
from carseg.params import Params
from carseg.processes import ALONE, Processes
from carseg.provenance import PACKAGES, provenance
from carseg.u2net import U2Net

FOLDER = Path(".checkpoints")
SHARE = 0.01  # of the time, at most, goes into writing states
RATE = 400e6  # bytes that a disk writes in a second, until it has shown its own speed
# Parameters that change no training, or only through what else is in the fingerprint.
INDIFFERENT = {"workers", "launcher", "cleanup", "split"}
# Packages that read the start weights and make the split, both of which are in there themselves.
ELSEWHERE = {"onnx", "scikit-learn"}
DEPENDS_ON = "parameters, photos, weights, code, packages, machine, processes or threads"


class Stateful(Protocol):
    """A net, optimiser or curve, whose state can be saved and restored."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take the state back."""


class Checkpoint:
    """The file that holds one training's state.

    Its name contains the fingerprint, so no other training resumes from it. Files of the task with
    another fingerprint are removed when this training saves its first state, or ends, not before:
    hours of work should not be lost to a mistyped parameter. One that torchrun has restarted
    removes none.
    """

    def __init__(self, task: str, fingerprint: str, processes: Processes = ALONE) -> None:
        """Name the file, which belongs to all processes.

        Args:
            task: bce or dice.
            fingerprint: of all that the training depends on; only the first process's is used, as
                machines may differ.
            processes: who trains; each calls this.
        """
        fingerprint = processes.broadcast(fingerprint)
        self._task = task
        self._path = FOLDER / f"{task}-{fingerprint}.pt"
        self._unwritable = False
        self._made = time.monotonic()
        self._next: float | None = None  # when a state is written again, by the same clock
        # A restart by torchrun, which the user did not ask for, may find other parameters. Only the
        # machine of the process that died counts it.
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        again = any(count != "0" for count in processes.all_gather([restarts]))
        self._leaves_others = again
        # All go on from a state, or none.
        self._found = processes.broadcast(self._path.is_file())
        others = [path for path in FOLDER.glob(f"{task}-*.pt") if path != self._path]
        if processes.first and others and not (self._found or again):
            warn(
                f"{others[0]}: is the state of a training of other {DEPENDS_ON}; this one does not "
                "go on from it, and removes it when it saves a state or ends; to go on from it, "
                "interrupt this training and change them back"
            )

    def save(self, parts: Mapping[str, Stateful]) -> None:
        """Save the state, if writing takes at most `SHARE` of the time since the last save.

        The first save comes after half the interval that the state's size implies at `RATE`. A disk
        that is full or not writable is reported once; training goes on.
        """
        if self._unwritable:
            return
        began = time.monotonic()
        states = {name: part.state_dict() for name, part in parts.items()}
        if self._next is None:
            self._next = self._made + nbytes(states) / RATE / SHARE / 2
        if began < self._next:
            return
        fresh = self._path.with_suffix(".part")
        try:
            FOLDER.mkdir(exist_ok=True)
            # Checksums take as long as the rest of the write, and torch reads without them.
            with config.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
                torch.save(states, fresh)
            os.replace(fresh, self._path)
            self._remove_others()
            written = time.monotonic()
            self._next = written + (written - began) / SHARE
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            self._unwritable = True
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            warn(
                f"{self._path}: cannot be written ({error}), nor will any other be; training goes "
                "on, but an interruption will take it back to the last state that was, or to its "
                "start; if that matters, make room and start it again"
            )

    def restore(self, parts: Mapping[str, Stateful], device: Device) -> bool:
        """Restore `parts` from the saved state, if there is one; return whether there was.

        Raises:
            CarsegError: the file is broken.
            OSError, MemoryError, RuntimeError: the disk fails, or there is too little memory.
        """
        if not self._found:
            return False
        try:
            state: dict[str, dict[str, Any]] = torch.load(
                self._path, map_location=device.torch, weights_only=True
            )
        except OSError:  # the disk's fault, not the content's
            raise
        except Exception as error:  # torch has no common base for what a broken file may raise
            if is_lack_of_memory(error):
                raise
            raise CarsegError(f"{self._path}: is broken; remove it to train anew") from error
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return True

    def remove(self) -> None:
        """Remove the states of a training that has ended; what cannot be removed stays."""
        self._remove_others()
        with suppress(OSError):  # its results are there, and what stays does no harm
            self._path.unlink(missing_ok=True)
            FOLDER.rmdir()  # which fails for a link, a mount, and where another state is in it

    def _remove_others(self) -> None:
        """Remove the task's other states, once, and say so."""
        if self._leaves_others:
            return
        self._leaves_others = True
        removed = False
        for path in FOLDER.glob(f"{self._task}-*"):
            if path == self._path:
                continue
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                warn(f"{path}: cannot be removed ({error.strerror}); remove it by hand")
            else:
                removed |= path.stem != self._path.stem  # else it is its own, half written
        if removed:
            print(f"{self._task}: the state of a training of other {DEPENDS_ON} is removed")


def nbytes(state: object) -> int:
    """Return the bytes of all tensors in a state: a tensor, or a mapping of states to any depth."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    return sum(map(nbytes, state.values())) if isinstance(state, Mapping) else 0


def fingerprint(
    params: Params,
    device: Device,
    world_size: int,
    parts: Iterable[Sequence[Pair]],
    nets: Iterable[U2Net],
    code: Mapping[str, str],
) -> str:
    """Return the hash of what a training depends on: 32 hexadecimal digits.

    That is the parameters, the pairs in their parts, the nets that it starts from, the `code` of
    `Recorded`, and what `provenance` has: packages, but for those `ELSEWHERE`, the machine, the
    number of processes and of threads.

    Raises:
        OSError: a photo or mask cannot be read.
    """
    settings = params.model_dump(exclude=INDIFFERENT)
    packages = [name for name in PACKAGES if name not in ELSEWHERE]
    told = (settings, provenance(device, world_size, packages), sorted(code.items()))
    digest = hashlib.sha256(repr(told).encode())
    for part, pairs in enumerate(parts):
        for pair, content in zip(pairs, on_cores(Pair.digest, pairs), strict=True):
            digest.update(repr((part, *pair)).encode() + content)
    for net in nets:
        for value in net.state_dict().values():
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
