"""The processes that train together where torchrun starts several; else the one that runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from carseg.ahead import cores
from carseg.errors import CarsegError
from carseg.sync_bn import synchronise

Item = TypeVar("Item")

# Processes wait for each other while photos are read, hours with a million of them; torchrun itself
# notices those that die.
TIMEOUT = timedelta(days=1)
GONE = ("closed by peer", "reset by peer")  # what gloo says of one that has ended


@dataclass(frozen=True)
class Processes:
    """The processes of a training, as seen by one of them; by default it is the only one.

    Results depend on their number only by the order of sums.
    """

    rank: int = 0  # of this process, from 0
    world_size: int = 1  # number of processes
    local_rank: int = 0  # of this process on its machine, from 0
    local_world_size: int = 1  # number of processes on its machine

    @property
    def first(self) -> bool:
        """Return whether this is the one that writes and prints."""
        return self.rank == 0

    def say(self, line: str) -> None:
        """Print a line, once for all."""
        if self.first:
            print(line, flush=True)

    @property
    def mine(self) -> slice:
        """Return this process's slice of a batch; slices partition it, and some may be empty."""
        return slice(self.rank, None, self.world_size)

    @property
    def machine(self) -> slice:
        """Return the ranks of this process's machine."""
        first = self.rank - self.local_rank
        return slice(first, first + self.local_world_size)

    def all_gather(self, share: Sequence[Item]) -> list[Item]:
        """Return the slices (`mine`) of all processes as one list, in the original order."""
        if self.world_size == 1:
            return list(share)
        shares: list[Any] = [None] * self.world_size
        distributed.all_gather_object(shares, share)
        whole = [None] * sum(map(len, shares))
        for rank, part in enumerate(shares):
            whole[rank :: self.world_size] = part
        return whole  # type: ignore[return-value]

    def broadcast(self, value: Item) -> Item:
        """Return the first process's value."""
        return self.all_gather([value])[0]

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        self.all_gather([None])

    def sum(self, value: float) -> float:
        """Add up everyone's number."""
        if self.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.item()

    def equalise(self, net: nn.Module) -> None:
        """Give the net the first process's weights: other machines' may differ in a last digit."""
        if self.world_size > 1:
            for value in net.state_dict().values():
                whole = value.contiguous()  # and not channels last, which is not sent
                distributed.broadcast(whole, 0)
                value.copy_(whole)

    def wrap_ddp(self, net: nn.Module) -> nn.Module:
        """Return the net to train with; batch norms of `net` itself then span all processes.

        Gradients are means over processes.
        """
        if self.world_size == 1:
            return net
        synchronise(net)
        # Batch norm buffers are equal in all processes; there is nothing to broadcast.
        joint = DistributedDataParallel(
            net, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
        # DDP rebuilds its buckets after the first backward pass, which changes the order of sums.
        # Done here, on a blank: a resumed training would do it at a later step and end differently.
        blank = next(net.parameters()).new_zeros(1, 3, 32, 32)
        joint.eval()(blank).sum().backward()
        joint.zero_grad(set_to_none=True)
        return joint


ALONE = Processes()


@contextmanager
def together() -> Iterator[Processes]:
    """Join the processes that torchrun started; without torchrun there is one.

    The processor's cores are divided among the processes of a machine: each would take all.

    Raises:
        CarsegError: the machine has GPUs, but fewer than processes; or another process has ended
            with an error of its own.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(max(1, cores() // local_world_size))
    if torch.cuda.is_available():
        if local_world_size > (gpus := torch.cuda.device_count()):
            raise CarsegError(
                f"launcher: starts {local_world_size} processes on this machine, which has {gpus} "
                "GPUs; lower --nproc-per-node"
            )
        torch.cuda.set_device(local_rank)
    nccl = torch.cuda.is_available() and distributed.is_nccl_available()  # Windows has none
    # Objects go through memory: a machine without a GPU is told of, where NCCL alone would wait.
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    try:
        yield Processes(rank, world_size, local_rank, local_world_size)
    except RuntimeError as error:
        if any(words in str(error) for words in GONE):
            raise CarsegError(
                f"process {rank}: another process of this training has ended; its own lines, or "
                "torchrun's, say why"
            ) from error
        raise
    # Not after an error: with NCCL it waits for the others, which wait for this one, and torchrun,
    # which would end all of them, sees them all alive.
    distributed.destroy_process_group()
