"""The ranks of a run: how many processes share its batches, and what they exchange.

Plain torch, as torchrun starts it. What is exchanged here are small numbers on the CPU, so that no GPU waits for
them; gradients are exchanged by DistributedDataParallel.
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

_TIMEOUT = timedelta(hours=2)
"""One rank may index a source or write a checkpoint while the others wait; torchrun notices a lost one."""
_NETWORK_ERRORS = ("gloo", "Gloo", "NCCL", "Connection")
"""Words that mark a message as an error of communication: not all of these errors have a class of their own."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run."""

    rank: int = 0
    n_ranks: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of which there is one."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are other ranks."""
        return self.n_ranks > 1

    def all_reduce(self, numbers: Sequence[float | int]) -> list[float | int]:
        """Returns the sums of the numbers over all ranks, the same on each."""
        if not self.is_distributed:
            return list(numbers)
        total = torch.tensor(list(numbers), dtype=torch.float64)
        with self.report_lost_ranks():
            dist.all_reduce(total)
        return total.tolist()

    def all_union(self, ids: torch.Tensor, n: int) -> torch.Tensor:
        """Returns the ids that any rank has, each once, in ascending order, on the device of `ids`.

        Args:
            n: all ids are below it
        """
        if not self.is_distributed:
            return ids.unique()
        is_present = torch.zeros(n, dtype=torch.uint8)
        is_present[ids.cpu()] = 1
        with self.report_lost_ranks():
            dist.all_reduce(is_present, op=dist.ReduceOp.MAX)
        return is_present.nonzero()[:, 0].to(ids.device)

    def all_gather(self, value: Value) -> list[Value]:
        """Returns the values of all ranks in their order, the same list on each."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.n_ranks
        with self.report_lost_ranks():
            dist.all_gather_object(values, value)
        return values

    def check_equal(self, value: object, name: str) -> None:
        """Checks that all ranks have the same value: with different ones, they would wait for each other forever.

        Args:
            name: what the value was read from, for the message

        Raises:
            OssicleError: the values differ
        """
        values = self.all_gather(value)
        different = next((rank for rank, other in enumerate(values) if other != values[0]), None)
        if different is not None:
            raise OssicleError(
                f"rank {different} does not see the same {name} as rank 0: expected the same files on all nodes;"
                " give a folder on storage that all of them share"
            )

    def report_lost_ranks(self) -> contextlib.AbstractContextManager[None]:
        """Turns the error of any exchange with a rank that is gone into one of a single line.

        Raises:
            OssicleError: another rank was lost
        """
        return _report_lost_ranks() if self.is_distributed else contextlib.nullcontext()

    @contextlib.contextmanager
    def sync_errors(self) -> Generator[None]:
        """Ends all ranks where one fails: an OssicleError that the block raises on one of them is raised on each."""
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
    """Returns the ranks of the process group; without one, this process alone."""
    if not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def join_process_group() -> Generator[Ranks]:
    """Joins the process group that torchrun set up, and leaves it at the end; without torchrun, there is one rank.

    Raises:
        ConfigError: fewer GPUs than processes on this machine
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield current_ranks()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started process {local_rank + 1} on this machine, which has {torch.cuda.device_count()}"
                " GPUs: expected --nproc-per-node to be at most that"
            )
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _report_lost_ranks():
        store, rank, n_ranks = next(iter(rendezvous("env://", timeout=_TIMEOUT)))
        store = dist.PrefixStore(agree_on_group_name(store, rank, n_ranks), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=n_ranks, timeout=_TIMEOUT)
    try:
        yield current_ranks()
    finally:
        dist.destroy_process_group()


def agree_on_group_name(store: dist.Store, rank: int, n_ranks: int) -> str:
    """Returns a name for this process group that no earlier one had, the same on each rank.

    torchrun keeps one store through all its restarts: without a name of its own, a group reads addresses that dead
    processes left there, and fails or waits forever.

    Raises:
        DistError: another process did not come
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", own)
        name = store.get(f"welcome/{own}").decode()
        store.set(f"{name}/{rank}", "here")
        return name
    deadline = time.monotonic() + _TIMEOUT.total_seconds()
    for other in range(1, n_ranks):
        # The hello that is read may be left from a dead process, so it is answered again until the rank is here.
        while not store.check([f"{own}/{other}"]):
            if time.monotonic() > deadline:
                raise dist.DistStoreError(f"Connection to rank {other} timed out")
            store.set(f"welcome/{store.get(f'hello/{other}').decode()}", own)
            time.sleep(0.02)
    return own


@contextlib.contextmanager
def _report_lost_ranks() -> Generator[None]:
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in _NETWORK_ERRORS):
            raise
        reason = str(error).strip().split("\n", 1)[0].split(". ", 1)[0]
        raise OssicleError(
            f"rank {os.environ.get('RANK', '0')} lost the other ranks ({reason}); run the same command again, with"
            " any number of ranks: it resumes from the last saved state"
        ) from error
