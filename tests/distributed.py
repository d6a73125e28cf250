"""Two real processes (gloo, CPU) for tests of what is gathered over ranks."""
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _rank(rank: int, world: int, folder: str, fn: Callable, args: tuple):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        torch.save(fn(rank, world, *args), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_two_ranks(fn: Callable, *args) -> list:
    """[fn(0, 2, *args), fn(1, 2, *args)], each from a process of its own with torch.distributed initialized.

    `fn` must be defined at the top of a module (it is pickled by name) and return tensors, numbers, dicts or
    lists of them. Starting two processes costs about 5 s of torch imports: check many objectives in one call.
    """
    # A machine without a resolvable host name would make gloo fail; the loopback device is always there.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (2, folder, fn, args), nprocs=2)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def average_gradients(module: torch.nn.Module):
    "What DistributedDataParallel does: every parameter's gradient becomes its mean over ranks."
    for p in module.parameters():
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
