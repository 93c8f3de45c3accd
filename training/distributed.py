"""Several processes that train one model, started by torchrun: who this one is, and what they agree on."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.utils._pytree import register_dataclass

from thoughtbubbles.model import Fork, ForkingBlock, Streams, Thoughtbubbles
from thoughtbubbles.model.checkpoint.checks import check_device

# FSDP2 finds the tensors that go into and out of a module by torch's registry of containers.
register_dataclass(Streams)
register_dataclass(Fork)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes that train together, as one of them sees it; one alone by default."""

    device: torch.device
    """Where this one computes."""
    rank: int = 0
    """Its number. The first one writes what is written once."""
    world_size: int = 1
    """How many there are."""
    saving: dist.ProcessGroup | None = None
    """What the threads that save talk over, so that they never mix with the training's own talk."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes logs and checkpoints."""
        return self.rank == 0

    @property
    def first_of_node(self) -> bool:
        """Whether this is the one of its machine that does what is done once on each."""
        return self.world_size == 1 or os.environ.get("LOCAL_RANK", "0") == "0"

    def any(self, asked: bool) -> bool:
        """Whether any rank says so: all get the same answer, over the CPU, so that no device is waited for."""
        if self.world_size == 1:
            return asked
        flag = torch.tensor(int(asked))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def total(self, values: Tensor) -> Tensor:
        """The sum over the ranks of `values`, any shape, on the device or on the CPU, whose sum waits for no device."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def share(self, size: int) -> int:
        """How many of `size` sequences are this one's. `ValueError` when they cannot be shared out evenly."""
        if size % self.world_size:
            raise ValueError(f"batch_size must be a multiple of the {self.world_size} ranks, not {size}")
        return size // self.world_size


@contextmanager
def join(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun started, or one alone; `device` is a kind (with torchrun) or one device.

    `ValueError` for one alone whose device cannot be used.
    """
    if "WORLD_SIZE" not in os.environ:
        check_device(device)
        yield Ranks(device=torch.device(device))
        return
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    try:
        saving = dist.new_group(backend="gloo")
        yield Ranks(device=own, rank=dist.get_rank(), world_size=dist.get_world_size(), saving=saving)
    finally:
        dist.destroy_process_group()


def shard(model: Thoughtbubbles, ranks: Ranks) -> None:
    """FSDP2: every block by itself, and what is left (embedding, last norm) as the root.

    A block's fork runs before its forward, so it gathers the block's weights too. They travel in float32 and autocast
    rounds them for the matrix products alone, as for one device: norms and fork scores are computed in float32.
    """
    # A fork returns views, which nobody changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))  # unasked, torch takes devices where there are any
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
        if isinstance(block, ForkingBlock):
            register_fsdp_forward_method(block, "fork")
    fully_shard(model, mesh=mesh)


def replicate(module: nn.Module, ranks: Ranks) -> nn.Module:
    """DDP around `module`; the module itself for one alone."""
    if ranks.world_size == 1:
        return module
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
