"""The processes of a run that torchrun started; a run of one process is the same with one rank.

Rank 0 leads: it alone writes files of the run, logs and shows progress. The others compute what it
tells them.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from med_sslal.utils.errors import DeviceError, UserError
from med_sslal.utils.interrupt import Interrupted, StopRequest

T = TypeVar("T")

# What a process waits for the others: rank 0 selects and measures alone meanwhile. The death of a
# process does not need it, because its connections close.
TIMEOUT = timedelta(hours=1)
# What an ending process waits for torchrun.
FAREWELL = timedelta(seconds=5)
# What the errors of a lost connection have in common; torch raises plain RuntimeErrors for gloo's.
_LOST = ("gloo", "NCCL", "onnection closed by peer", "onnection reset by peer")


@dataclass(frozen=True)
class World:
    """The processes of a run; every method but `share` is a step that ALL of them take together."""

    rank: int = 0  # This process among all.
    size: int = 1
    local_rank: int = 0  # This process among those of its machine.
    local_size: int = 1
    launched: bool = False  # Whether torchrun started the process, be it a single one.

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "World":
        """What torchrun has put into the environment; one process where there is no RANK."""
        if "RANK" not in environment:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        needed = (*names, "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in needed if name not in environment]:
            raise DeviceError(
                f"RANK is in the environment, but not {', '.join(missing)}: start several "
                "processes with torchrun, or unset RANK for one"
            )
        rank, size, local_rank, local_size = (int(environment[name]) for name in names)
        return cls(rank, size, local_rank, local_size, launched=True)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that leads."""
        return self.rank == 0

    @contextmanager
    def joined(self, *, gpus: bool) -> Iterator[None]:
        """Connect the processes for the time of the context; UserError where one is lost."""
        if self.size == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if gpus and torch.cuda.is_available() else "gloo"
        with naming_lost_peers():
            dist.init_process_group(backend, timeout=TIMEOUT)
            yield
            # In an error the connections close with the process: that is how the others learn.
            dist.destroy_process_group()

    def share(self, n: int) -> range:
        """The positions of `n` images that this process looks at: each in one process only."""
        return range(self.rank, n, self.size)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, in every process."""
        if self.size == 1:
            return value
        box = [_packed(value) if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        return value if self.is_main else _unpacked(box[0])

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in rank 0, the only process that calls it."""
        return self.broadcast(make() if self.is_main else None)

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, in rank 0; the others get an empty list."""
        if self.size == 1:
            return [value]
        boxes: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(_packed(value), boxes, dst=0)
        return [_unpacked(box) for box in boxes or ()]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes; one process gets its tensor back."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def check(self, stop: StopRequest) -> None:
        """Raise Interrupted in all processes at the same step, where any of them was asked to."""
        if self.size == 1:
            stop.check()
        elif signal_number := self.largest(stop.signal or 0)[0]:
            raise Interrupted(signal_number)

    def watch(self, steps: Iterable[T], stop: StopRequest) -> Iterator[T]:
        """Look for a stop before each step; with several processes `merged` does it."""
        for step in steps:
            if self.size == 1:
                stop.check()
            yield step

    def merged(self, items: Iterable[T], stop: StopRequest) -> Iterator[T]:
        """Yield what all processes make, one of each at a time, in rank 0; or raise Interrupted.

        The others must be run to their end too: they yield nothing. The processes may have
        different numbers of items.
        """
        if self.size == 1:
            yield from items
            return
        own = iter(items)
        while True:
            found = list(islice(own, 1))
            signal_number, more = self.largest(stop.signal or 0, len(found))
            if signal_number:
                raise Interrupted(signal_number)
            if not more:
                return
            for part in self.gather(found):
                yield from part

    def local_first(self, make: Callable[[], T]) -> T:
        """Call `make` in one process of each machine before the others: it may write files."""
        made = [make()] if self.local_rank == 0 else []
        self.largest(0)
        return made[0] if made else make()


ALONE = World()


@contextmanager
def naming_lost_peers() -> Iterator[None]:
    """Turn the errors of a lost connection into a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(s in str(error) for s in _LOST):
            raise
        raise UserError(
            "another process of this run was killed or cannot be reached: torchrun says which; "
            "what is on disk is good, and --resume goes on from it"
        ) from error


def is_first_to_fail() -> bool:
    """Whether this process is the first of its run to end in an error: it alone tells of it.

    The others end because of it, or meet the same error. torchrun keeps count; without it, or
    where it has gone, each process tells.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=FAREWELL)
        return store.add(f"failed/{os.environ['TORCHELASTIC_RESTART_COUNT']}", 1) == 1
    except dist.DistError:
        return True


def _packed(value: Any) -> bytes:
    """Bytes of a value; unlike pickle's, a view of a tensor does not bring its base many times."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(content: Any) -> Any:
    """What `_packed` packed, on the CPU: it comes from a process of this very run."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
