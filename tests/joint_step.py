"""Run by torchrun: a training step of all processes is that of one with the whole batch.

In float64: in float32 two orders of adding up already differ by several percent in the gradients
of a net with random weights. Arguments: the sizes of two batches, which shares may not fill.
"""

import sys

import torch
from conftest import noise
from project import SHALLOW
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from carseg.device import Device
from carseg.learner import train_step
from carseg.losses import BCEWithLogitsLoss, DiceLoss
from carseg.processes import ALONE, Processes, together
from carseg.u2net import VARIANTS, U2Net

CPU = Device("float32", "cpu")
VARIANTS["u2netp"] = SHALLOW


def after_a_step(
    size: int, criterion: nn.Module, processes: Processes
) -> tuple[float, U2Net, dict[str, Tensor]]:
    """Give the loss, the net and its gradients."""
    photos = noise(size, 3, 64, 64, dtype=torch.float64)
    masks = (noise(size, 1, 64, 64, seed=1) > 0).double()
    torch.manual_seed(0)
    net = CPU.place_net(U2Net("u2netp").double())
    joint = processes.wrap_ddp(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    mine = photos[processes.mine]
    share = len(mine) * processes.world_size / size
    loss = train_step(joint, criterion, optimizer, CPU, mine, masks[processes.mine], share)
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(net.parameters()))
    # What batch norms keep is to agree after another pass, too.
    update_bn([mine, mine.flip(-1)], net)
    return processes.sum(loss) / processes.world_size, net, gradients


with together() as processes:
    assert processes.world_size > 1
    for size, criterion in zip(
        map(int, sys.argv[1:]), (BCEWithLogitsLoss(), DiceLoss()), strict=True
    ):
        loss, net, gradients = after_a_step(size, criterion, processes)
        expected, alone, wanted = after_a_step(size, criterion, ALONE)
        assert abs(loss - expected) < 1e-6, (size, loss, expected)
        whole = sum(float(g.norm()) ** 2 for g in wanted.values()) ** 0.5
        for name, gradient in gradients.items():
            assert float((gradient - wanted[name]).norm()) < 1e-9 * whole, (size, name)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(value, alone.state_dict()[name], msg=f"{size} {name}")
        processes.say("agrees")
    torch.manual_seed(1 + processes.rank)
    net = CPU.place_net(U2Net("u2netp"))
    processes.equalise(net)
    torch.manual_seed(1)
    for name, value in U2Net("u2netp").state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    items = list(range(10 * processes.world_size + 1))
    assert processes.all_gather(items[processes.mine]) == items
    assert processes.all_gather([][processes.mine]) == []
    assert processes.broadcast(processes.rank) == 0
