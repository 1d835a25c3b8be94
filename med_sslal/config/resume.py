"""Which changes a resumed run may take: a curve whose strategy changed midway is no result."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

Change = tuple[str, Any, Any]

# May change without a word. All that neither these nor the next name is refused.
_FREE = (
    "n_workers", "trainer.save_dir", "trainer.save_period", "trainer.checkpoint_seconds",
    "trainer.val_period", "trainer.val_steps", "trainer.keep_checkpoints", "trainer.keep_records",
    "trainer.verbosity", "trainer.tensorboard", "oracle.args.min_answered",
)  # fmt: skip
# May only grow: what is done already stays part of the run.
_FREE_UPWARD = ("trainer.epochs", "trainer.steps_per_cycle", "al_settings.num_cycles")
# May change, and the log says so. The place of the data may: a fingerprint tells if it is the same.
_WARNED = (
    "n_gpu", "deterministic", "batch_size", "metrics", "optimizer.args.lr", "augmentation.*",
    "pseudo_augmentation.*", "arch.args.*thresh*", "ssl_settings.args.*", "ssl_settings.weight",
    "ssl_settings.per_step", "dataset.args.root", "dataset.args.cache*", "dataset.args.labels",
    "trainer.monitor", "trainer.early_stop", "trainer.precision", "trainer.channels_last",
    "trainer.compile", "trainer.grad_clip", "trainer.accumulate", "trainer.warmup_steps",
    "oracle.args.*",
)  # fmt: skip


def compare_for_resume(
    saved: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[list[Change], list[Change], list[Change]]:
    """Sort the differences between two configs that this version of the program resolved.

    Returns free, warned and refused changes, each as (dotted path, old, new); a key that one side
    lacks counts as null there.
    """
    old_values, new_values = _flat(saved), _flat(new)
    free: list[Change] = []
    warned: list[Change] = []
    refused: list[Change] = []
    for path in dict.fromkeys([*old_values, *new_values]):
        old: Any = old_values.get(path)
        now: Any = new_values.get(path)
        if old == now:
            continue
        grows = path in _FREE_UPWARD and old is not None and now is not None and now > old
        if path in _FREE or grows:
            free.append((path, old, now))
        elif any(fnmatchcase(path, pattern) for pattern in _WARNED):
            warned.append((path, old, now))
        else:
            refused.append((path, old, now))
    return free, warned, refused


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path to value; lists are values."""
    result: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            result |= _flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
