"""The parts of a benchmark in turn, as lines and as one JSON file."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.checks import (
    drift_check,
    precision_check,
    refined_comparison,
    student_comparisons,
    switch_comparisons,
    trained,
)
from benchmarks.loading import loader_comparisons
from benchmarks.metrics import coco_comparison, froc_comparisons
from benchmarks.options import Options
from benchmarks.sides import (
    Workload,
    evaluation_sides,
    scoring_sides,
    training_sides,
    workload,
)
from benchmarks.timing import Comparison, Side, compare
from med_sslal.cli.running import environment
from med_sslal.utils.util import write_json

FORMAT_VERSION = 1
_STEPS: dict[str, tuple[str, Callable[[Workload], tuple[Side, Side]]]] = {
    "training": ("training step", training_sides),
    "evaluation": ("evaluation step", evaluation_sides),
    "scoring": ("scoring pass", scoring_sides),
}


def benchmark(options: Options, parts: Sequence[str], out: Path | None) -> int:
    """Run the parts, print what they found, and write it to `out`; returns the exit code.

    Raises:
        UserError: An option does not fit, or `out` cannot be written.
    """
    comparisons: list[Comparison] = []
    checks: dict[str, Any] = {}

    def note(found: Sequence[Comparison]) -> None:
        comparisons.extend(found)
        _say(*(line for comparison in found for line in lines(comparison)))

    with workload(options) as work:
        machine = _machine(work)
        _say(", ".join(f"{name} {value}" for name, value in machine["short"].items()))
        for part in parts:
            if part in _STEPS:
                title, make = _STEPS[part]
                note([compare(title, *make(work), options.pairs, work.device)])
            elif part == "loader":
                note(loader_comparisons(work))
            elif part == "coco":
                note([coco_comparison(options)])
            elif part == "froc":
                note(froc_comparisons(options))
            elif part == "switches":
                note(switch_comparisons(work))
            elif part == "refined":
                note([refined_comparison(work)])
            elif part == "students":
                note(student_comparisons(work))
        if {"precision", "drift"} & set(parts):
            rest, model = trained(work)
            for name, check in (("precision", precision_check), ("drift", drift_check)):
                if name in parts:
                    checks[name] = check(rest, model)
                    _say(*_check_lines(name, checks[name]))
    if out is not None:
        write_json(
            out,
            {
                "format_version": FORMAT_VERSION,
                "machine": machine,
                "options": asdict(options),
                "comparisons": [comparison.to_json() for comparison in comparisons],
                "checks": checks,
            },
        )
    return 0


def lines(comparison: Comparison) -> list[str]:
    """What a person reads of a comparison: ratio with spread, then one line for each side."""
    found = comparison.to_json()
    first, second = found["sides"]
    text = [
        f"{found['name']}: {second} / {first} = {found['ratio']:.3f} (quartiles "
        f"{found['ratio_quartiles'][0]:.3f} to {found['ratio_quartiles'][1]:.3f}), {first} / "
        f"{first} = {found['noise']:.3f} (5 to 95 %: {found['noise_5_95'][0]:.3f} to "
        f"{found['noise_5_95'][1]:.3f}), pairs: {found['pairs']}"
    ]
    for name, side in found["sides"].items():
        parts = [f"{side['seconds']:.3f} s", f"{side['images_per_second']:.1f} images/s"]
        if side.get("peak_memory_gib") is not None:
            parts.append(f"peak {side['peak_memory_gib']:.2f} GiB")
        parts += [f"{phase} {share:.0%}" for phase, share in side.get("shares", {}).items()]
        text.append(f"    {name}: {', '.join(parts)}")
    return text


def _check_lines(name: str, found: dict[str, Any]) -> list[str]:
    return [
        f"{name}, {precision}: {', '.join(f'{key} {value}' for key, value in values.items())}"
        for precision, values in found.items()
    ]


def _machine(work: Workload) -> dict[str, Any]:
    """What the figures depend on: `short` is printed, the rest goes to the file."""
    known = environment(str(work.setup.compute.devices), torch.get_num_threads())
    short = {
        "device": known["gpu"] or known["cpu"],
        "threads": known["threads"],
        "torch": torch.__version__,
        "ours in": str(work.setup.compute.dtype or torch.float32).removeprefix("torch."),
        "bare in": work.options.bare_precision,
        "batch": work.options.batch_size,
        "side": work.options.image_size,
        "backbone": work.options.backbone,
    }
    return {**known, "short": short}


def _say(*text: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in text))
    sys.stdout.flush()
