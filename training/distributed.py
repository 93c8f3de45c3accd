"""The ranks of a distributed run, started by torchrun: their number, their collectives, FSDP and DDP."""

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

# FSDP2 finds the tensors in a module's inputs and outputs by torch's registry of containers.
register_dataclass(Streams)
register_dataclass(Fork)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes that train together, as seen by one of them; by default a single process."""

    device: torch.device
    """The device of this rank."""
    rank: int = 0
    """The number of this rank; rank 0 writes logs and checkpoints."""
    world_size: int = 1
    """The number of ranks."""
    saving: dist.ProcessGroup | None = None
    """The group of the threads that save, so that their collectives do not interleave with those of training."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def first_of_node(self) -> bool:
        """Whether this is the first rank of its machine."""
        return self.world_size == 1 or os.environ.get("LOCAL_RANK", "0") == "0"

    def any(self, value: bool) -> bool:
        """Return on all ranks whether `value` is true on any. Exchanged over the CPU, without waiting for a device."""
        if self.world_size == 1:
            return value
        flag = torch.tensor(int(value))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of `values`, of any shape, over the ranks. For a CPU tensor, no device is waited for."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def share(self, size: int) -> int:
        """Return this rank's part of a batch of `size`. Raise `ValueError` if it cannot be divided evenly."""
        if size % self.world_size:
            raise ValueError(f"batch_size must be a multiple of the {self.world_size} ranks, not {size}")
        return size // self.world_size


@contextmanager
def join(device: str) -> Iterator[Ranks]:
    """Yield the ranks that torchrun started, or a single one; with torchrun, `device` is a device type.

    Raises `ValueError` if this process cannot use its device.
    """
    if "WORLD_SIZE" not in os.environ:
        check_device(device)
        yield Ranks(device=torch.device(device))
        return
    if device.partition(":")[0] == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    check_device(device)
    own = torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    try:
        saving = dist.new_group(backend="gloo")
        yield Ranks(device=own, rank=dist.get_rank(), world_size=dist.get_world_size(), saving=saving)
    finally:
        dist.destroy_process_group()


def shard(model: Thoughtbubbles, ranks: Ranks) -> None:
    """Shard the model in place with FSDP2: each block separately, the rest (embedding, last norm) as the root.

    A block's fork runs before its forward, so `fork` gathers the block's weights too. Weights are gathered in float32,
    and autocast rounds them for matrix products only, as on one device: norms and fork scores are computed in float32.
    """
    # A fork returns views, which nothing changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))  # by default torch would use any GPU it finds
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
        if isinstance(block, ForkingBlock):
            register_fsdp_forward_method(block, "fork")
    fully_shard(model, mesh=mesh)


def replicate(module: nn.Module, ranks: Ranks) -> nn.Module:
    """Return `module` wrapped in DDP, or the module itself if there is only one rank."""
    if ranks.world_size == 1:
        return module
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
