"""The ranks of a run: how many processes share its batches, and what they tell each other.

Plain torch, as torchrun starts it. What is exchanged here are small numbers on the CPU, so that no GPU waits for
them; gradients are DistributedDataParallel's business.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ossicle.errors import ConfigError, OssicleError

_PATIENCE = timedelta(hours=2)
"""One rank may index a source or write a checkpoint while the others wait; a lost one is noticed by torchrun."""
_NETWORKS = ("gloo", "Gloo", "NCCL", "Connection")
"""What names itself in an error about other ranks; not all of them have a class of their own."""
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run."""

    rank: int = 0
    n_ranks: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is anybody else."""
        return self.n_ranks > 1

    def all_reduce(self, numbers: Sequence[float | int]) -> list[float | int]:
        """The numbers of all ranks added up, the same on each."""
        if not self.is_distributed:
            return list(numbers)
        total = torch.tensor(list(numbers), dtype=torch.float64)
        with self.report_lost_ranks():
            dist.all_reduce(total)
        return total.tolist()

    def all_union(self, ids: torch.Tensor, n: int) -> torch.Tensor:
        """The ids below n that any rank has, once, in ascending order, on the ids' own device."""
        if not self.is_distributed:
            return ids.unique()
        is_there = torch.zeros(n, dtype=torch.uint8)
        is_there[ids.cpu()] = 1
        with self.report_lost_ranks():
            dist.all_reduce(is_there, op=dist.ReduceOp.MAX)
        return is_there.nonzero()[:, 0].to(ids.device)

    def all_gather(self, thing: Kind) -> list[Kind]:
        """What each rank has, in their order, the same list on each."""
        if not self.is_distributed:
            return [thing]
        things: list[Any] = [None] * self.n_ranks
        with self.report_lost_ranks():
            dist.all_gather_object(things, thing)
        return things

    def check_equal(self, thing: object, what: str) -> None:
        """Refuses to go on where ranks see different things, by which they would wait for each other for ever.

        Raises:
            OssicleError: naming what they see
        """
        seen = self.all_gather(thing)
        differ = next((rank for rank, other in enumerate(seen) if other != seen[0]), None)
        if differ is not None:
            raise OssicleError(
                f"rank {differ} sees {what} otherwise than rank 0: expected the same files on all nodes; give a folder"
                " on storage that all of them share"
            )

    def report_lost_ranks(self) -> contextlib.AbstractContextManager[None]:
        """Tells in one line of another rank that is gone, which torch does in whatever it exchanges just then.

        Raises:
            OssicleError: another rank was lost
        """
        return _others_may_be_lost() if self.is_distributed else contextlib.nullcontext()

    @contextlib.contextmanager
    def sync_errors(self) -> Generator[None]:
        """What one rank cannot do ends all of them: a user's mistake raised on one of them is raised on each."""
        error: OssicleError | None = None
        try:
            yield
        except OssicleError as raised:
            error = raised
        errors = [other for other in self.all_gather(error) if other is not None]
        if error is not None:
            raise error
        if errors:
            raise errors[0]


def current_ranks() -> Ranks:
    """The ranks of the process group that was joined; this process alone without one."""
    if not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def join_process_group() -> Generator[Ranks]:
    """The process group that torchrun set up, left again at the end; this process alone without torchrun.

    Raises:
        ConfigError: fewer GPUs than processes on this machine
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield current_ranks()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started process {local + 1} on this machine, which has {torch.cuda.device_count()}"
                " GPUs: expected --nproc-per-node to be at most that"
            )
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _others_may_be_lost():
        store, rank, n_ranks = next(iter(rendezvous("env://", timeout=_PATIENCE)))
        store = dist.PrefixStore(agree_on_group_name(store, rank, n_ranks), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=n_ranks, timeout=_PATIENCE)
    try:
        yield current_ranks()
    finally:
        dist.destroy_process_group()


def agree_on_group_name(store: dist.Store, rank: int, n_ranks: int) -> str:
    """A name for this group of processes that no earlier one had, the same on each of them.

    torchrun keeps one store through all its restarts: without a name of its own, a group reads addresses that were
    left there by processes that are gone, and fails or waits for ever.

    Raises:
        DistError: another process has not come
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", mine)
        name = store.get(f"welcome/{mine}").decode()
        store.set(f"{name}/{rank}", "here")
        return name
    deadline = time.monotonic() + _PATIENCE.total_seconds()
    for other in range(1, n_ranks):
        # What is read of another may still be the hello of one that is gone, so it is answered until one comes.
        while not store.check([f"{mine}/{other}"]):
            if time.monotonic() > deadline:
                raise dist.DistStoreError(f"Connection to rank {other} timed out")
            store.set(f"welcome/{store.get(f'hello/{other}').decode()}", mine)
            time.sleep(0.02)
    return mine


@contextlib.contextmanager
def _others_may_be_lost() -> Generator[None]:
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        if not isinstance(error, dist.DistError) and not any(name in str(error) for name in _NETWORKS):
            raise
        reason = str(error).strip().split("\n", 1)[0].split(". ", 1)[0]
        raise OssicleError(
            f"rank {os.environ.get('RANK', '0')} lost the others ({reason}); start the same command again, on"
            " any number of ranks: it goes on from the state saved last"
        ) from error
