"""What is computed on, and in which precision."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor, nn

from carseg.errors import CarsegError

Net = TypeVar("Net", bound=nn.Module)

# Of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


class Device:
    """The processor, or the GPU where there is one, with its fast number format.

    Attributes:
        torch: the torch device.
        dtype: of convolutions: bfloat16 or float32. Weights that learn and scores are always
            float32.
    """

    def __init__(
        self, precision: str = "auto", name: str = "auto", repeatable: bool = True
    ) -> None:
        """Pick the device.

        Args:
            precision: auto, float32 or bfloat16. auto takes bfloat16 where the hardware computes
                with it at least twice as fast as with float32.
            name: auto, cpu or cuda. auto takes the GPU where there is one.
            repeatable: make a GPU deterministic, and its convolutions compute without TF32. These
                are settings of the whole process; False leaves them as they are.

        Raises:
            CarsegError: cuda is asked for and there is none.
        """
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        elif name == "cuda" and not torch.cuda.is_available():
            raise CarsegError("device cuda: torch finds no GPU here; leave it out, or take cpu")
        # By its number, as other threads have another current one.
        self.torch = torch.device(name if name == "cpu" else f"cuda:{torch.cuda.current_device()}")
        if self.torch.type == "cuda":
            if repeatable:
                # cuBLAS wants its workspace fixed for that.
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                torch.use_deterministic_algorithms(True)
                # Nothing here reads memory that it has not written.
                torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
                # Else convolutions round to 10 bits, also in layers that are exact for a reason.
                torch.backends.cudnn.allow_tf32 = False
        else:
            keep_freed_memory()
        if precision == "auto":
            precision = "bfloat16" if self._has_fast_bfloat16() else "float32"
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32

    def __str__(self) -> str:
        return f"{self.torch.type} in {self.dtype}".replace("torch.", "")

    def _has_fast_bfloat16(self) -> bool:
        if self.torch.type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        features = torch.cpu.get_capabilities()
        if features.get("amx_bf16"):
            return True
        # Intel's processors with AMX also have avx512_fp16. Where a virtual machine hides their
        # AMX, AVX-512 multiplies bfloat16 at half the rate of float32.
        intel = "Intel" in str(features.get("cpu_name"))
        hidden = intel and features.get("avx512_fp16")
        return bool(features.get("avx512_bf16")) and not hidden

    def autocast(self) -> AbstractContextManager[object]:
        """Compute in `dtype` inside this context."""
        return torch.autocast(self.torch.type, self.dtype, enabled=self.dtype != torch.float32)

    def place(self, x: Tensor) -> Tensor:
        """Move a batch (N, C, H, W) there, channels last, as convolutions read it fastest."""
        return x.to(self.torch, memory_format=torch.channels_last, non_blocking=True)

    def place_net(self, net: Net) -> Net:
        """Move a network there, its weights laid out as batches are."""
        return net.to(  # type: ignore[call-overload, no-any-return]
            self.torch, memory_format=torch.channels_last
        )


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for the next step, which asks for the same sizes.

    The system, to which it would return them, gives them back page by page, zeroed: 4 % of a
    training step. Without glibc this does nothing.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
