"""Timings of two sides in turn, what noise alone gives, and where the time and memory go."""

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

_PHASES = ("data", "forward", "backward", "rest")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PhaseClock:
    """Adds up seconds by phase; the device has finished its queue at every mark."""

    def __init__(self, device: torch.device) -> None:
        """Start now."""
        self._device = device
        self.seconds = dict.fromkeys(_PHASES, 0.0)
        self._last = self._now()

    def mark(self, phase: str) -> None:
        """What went by since the last mark belongs to `phase`."""
        now = self._now()
        self.seconds[phase] += now - self._last
        self._last = now

    def shares(self) -> dict[str, float]:
        """Phase to its share of the whole."""
        total = sum(self.seconds.values())
        return {name: value / total for name, value in self.seconds.items()}

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()


class Tap:
    """Stands in for a loader, and tells a clock when a batch has come.

    Attributes:
        dataset: The view that the loader reads.
    """

    def __init__(self, loader: Any, dataset: Any) -> None:
        """Wrap a loader, or a list of batches, over `dataset`."""
        self.loader, self.dataset = loader, dataset
        self.clock: PhaseClock | None = None

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Yield the loader's batches."""
        if self.clock is None:
            yield from self.loader
            return
        batches = iter(self.loader)
        while True:
            self.clock.mark("rest")
            batch = next(batches, None)
            self.clock.mark("data")
            if batch is None:
                return
            yield batch


@dataclass
class Side:
    """One of the two things that are compared.

    Attributes:
        run: One timing.
        images: Images in it.
        model: What computes, where phases and memory are measured.
        optimizer: Its optimiser, None where nothing is learnt.
        tap: Its loader.
    """

    run: Callable[[], object]
    images: int
    model: nn.Module | None = None
    optimizer: Optimizer | None = None
    tap: Tap | None = None


@dataclass
class Comparison:
    """What was measured; seconds are those of one timing.

    Attributes:
        name: What was compared.
        sides: Name of each side to what is known of it: `seconds`, `images_per_second`,
            `peak_memory_gib`, `shares` of the phases.
        ratios: Time of the second side over the mean of the first side's before and after it.
        noise: Time of the first side over that of itself.
    """

    name: str
    sides: dict[str, dict[str, Any]] = field(default_factory=dict)
    ratios: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Medians and spread: quartiles of the ratio, 5 to 95 % of the noise."""
        return {
            "name": self.name,
            "pairs": len(self.ratios),
            "ratio": statistics.median(self.ratios),
            "ratio_quartiles": np.percentile(self.ratios, [25, 75]).tolist(),
            "noise": statistics.median(self.noise),
            "noise_5_95": np.percentile(self.noise, [5, 95]).tolist(),
            "sides": self.sides,
        }


def compare(
    name: str,
    first: Side,
    second: Side,
    pairs: int,
    device: torch.device,
    names: tuple[str, str] = ("bare", "ours"),
) -> Comparison:
    """Time first, second, first in turn, so that a machine that slows down slows both."""
    found = Comparison(name)
    for side in (first, second):
        side.run()
    seconds: list[list[float]] = [[], []]
    for _ in range(pairs):
        before, own, after = (_timed(side.run, device) for side in (first, second, first))
        found.ratios.append(2 * own / (before + after))
        found.noise.append(after / before)
        seconds[0] += [before, after]
        seconds[1].append(own)
    for label, side, taken in zip(names, (first, second), seconds, strict=True):
        median = statistics.median(taken)
        found.sides[label] = {"seconds": median, "images_per_second": side.images / median}
        if side.model is not None:
            found.sides[label]["peak_memory_gib"] = _peak_memory(side, device)
            found.sides[label]["shares"] = _shares(side, device)
    return found


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def _shares(side: Side, device: torch.device) -> dict[str, float]:
    """Shares of data, forward, backward and rest in one more run, which waits at each mark."""
    assert side.model is not None and side.tap is not None
    clock = PhaseClock(device)
    with _attached(clock, side):
        side.run()
        clock.mark("rest")
    return clock.shares()


@contextmanager
def _attached(clock: PhaseClock, side: Side) -> Iterator[None]:
    """Let the clock hear of batches, passes of the model and steps of the optimiser."""
    assert side.model is not None and side.tap is not None
    hooks = [
        side.model.register_forward_pre_hook(lambda *_: clock.mark("rest")),
        side.model.register_forward_hook(lambda *_: clock.mark("forward")),
    ]
    if side.optimizer is not None:
        hooks.append(side.optimizer.register_step_pre_hook(lambda *_: clock.mark("backward")))
    side.tap.clock = clock
    try:
        yield
    finally:
        side.tap.clock = None
        for hook in hooks:
            hook.remove()


def _peak_memory(side: Side, device: torch.device) -> float | None:
    """GiB of the side's own tensors and of what one more run adds at its peak.

    On a CPU it is the process's memory, which Linux alone tells; None elsewhere.
    """
    own = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(side))
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        side.run()
        synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before + own) / 2**30
    try:
        # Freed memory that the allocator keeps would hide what the run takes.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        # Sets the peak back to what is held now.
        _CLEAR.write_text("5")
        before = _resident("VmRSS")
        side.run()
        return (_resident("VmHWM") - before + own) / 2**30
    except OSError:
        return None


def _tensors(side: Side) -> Iterator[torch.Tensor]:
    """Weights, gradients, buffers and optimiser state."""
    assert side.model is not None
    for parameter in side.model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from side.model.buffers()
    if side.optimizer is not None:
        for state in side.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _resident(name: str) -> int:
    """A line of the process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024
