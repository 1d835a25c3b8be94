"""Every key of a config: type, default, meaning and allowed values.

The arguments of a `{"type", "args"}` section are not listed here: they are the signature of the
class that `type` names.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from med_sslal.config.values import describe, fits, show


class Rule(NamedTuple):
    """What a value of the right type must fulfil besides.

    Attributes:
        text: The rule in words, read after "allowed:".
        holds: Whether a value fulfils it.
    """

    text: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Key:
    """One key of the config.

    Attributes:
        path: Dotted path.
        annotation: Type of its value.
        meaning: One sentence for `--help-config`.
        default: Value where the key is absent; unused if `required`.
        required: The key must be there.
        rule: What the value must fulfil besides its type; null is exempt.
    """

    path: str
    annotation: Any
    meaning: str
    default: Any = None
    required: bool = False
    rule: Rule | None = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.split(".")[-1]

    @property
    def hint(self) -> str:
        """`required` or its default, for a message."""
        return "required" if self.required else f"default {show(self.default)}"

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        if self.rule is None:
            return describe(self.annotation)
        link = ": " if self.annotation is str else ", "
        return f"{describe(self.annotation)}{link}{self.rule.text}"

    def accepts(self, value: Any) -> bool:
        """Whether a JSON value may stand here."""
        if not fits(value, self.annotation):
            return False
        return self.rule is None or value is None or self.rule.holds(value)


@dataclass(frozen=True)
class TypeSection:
    """A section whose `type` names a class of its own registry and whose `args` are its arguments.

    Attributes:
        path: The section's name, and that of its registry.
        meaning: One sentence for `--help-config`.
        provided: Arguments that the program supplies itself; the config may not name them.
        default_type: The type where the section does not name one; None makes `type` required.
        nullable: The whole section may be null, and is so by default.
        has_type: False where the registry holds one class and the config only gives its `args`.
        fill_args: Write default arguments into the resolved config. Not for foreign classes, whose
            arguments change with the installed version.
    """

    path: str
    meaning: str
    provided: tuple[str, ...] = ()
    default_type: str | None = None
    nullable: bool = False
    has_type: bool = True
    fill_args: bool = True

    @property
    def hint(self) -> str:
        """`required` or the default of `type`, for a message."""
        return "required" if self.default_type is None else f"default {show(self.default_type)}"


def _at_least(low: int) -> Rule:
    return Rule(f"{low} or more", lambda value: value >= low)


_NON_NEGATIVE = _at_least(0)
_POSITIVE = _at_least(1)
_FOLDER_NAME = Rule(
    "a folder name of letters, digits, '.', '_' and '-', not starting with '.'",
    lambda value: re.fullmatch(r"[\w-][\w.-]*", value) is not None,
)
_MONITOR = Rule(
    '"off", "min KEY" or "max KEY", where KEY is a metric such as val_loss',
    lambda value: value == "off" or re.fullmatch(r"(min|max) \S+", value) is not None,
)
_SIDES = Rule(
    "32 pixels or more",
    lambda value: all(side >= 32 for side in (value if isinstance(value, list) else [value])),
)

SCHEMA: tuple[Key | TypeSection, ...] = (
    Key("name", str, "name of the experiment and of its folder", required=True, rule=_FOLDER_NAME),
    Key(
        "n_gpu",
        int | Literal["auto"],
        "devices used for training: 0 = CPU, N = exactly N GPUs, auto = one GPU if there is one",
        "auto",
        rule=Rule("0 or more", lambda value: value == "auto" or value >= 0),
    ),
    Key("seed", int, "everything random derives from it", 0, rule=_NON_NEGATIVE),
    Key(
        "deterministic",
        bool,
        "take slower operations on a GPU that give the same bits in every run; a CPU always does",
        False,
    ),
    Key("n_workers", int, "loader processes; 0 = load in the main process", 2, rule=_NON_NEGATIVE),
    Key("batch_size", int, "labelled images per step, over all devices", 4, rule=_POSITIVE),
    Key(
        "image_size",
        int | tuple[int, int] | None,
        "side, or [height, width], of the fixed shape that images are brought to; null = 512",
        rule=_SIDES,
    ),
    TypeSection("arch", "the detector", ("load_pretrained",)),
    TypeSection("dataset", "the images, their labels and their split"),
    TypeSection(
        "augmentation", "changes to training images", ("image_size", "seed"), "TrainTransform"
    ),
    TypeSection(
        "pseudo_augmentation",
        "changes to pseudo-labelled training images",
        ("image_size", "seed"),
        "StrongTransform",
    ),
    TypeSection("optimizer", "any of torch.optim", ("params",), fill_args=False),
    Key("metrics", list[str], "what is measured on validation and test", ["sensitivity_k_fps"]),
    TypeSection(
        "lr_scheduler",
        "any of torch.optim.lr_scheduler; null = constant learning rate",
        ("optimizer", "last_epoch"),
        nullable=True,
        fill_args=False,
    ),
    Key("lr_scheduler.interval", Literal["epoch", "step"], "when the scheduler moves", "epoch"),
    Key(
        "al_settings.num_cycles",
        int,
        "queries; 0 = one training on the initial labels",
        required=True,
        rule=_NON_NEGATIVE,
    ),
    TypeSection("al_settings", "which images get their labels next", ("seed",)),
    Key(
        "ssl_settings.include_pseudolabels",
        bool,
        "train on confident predictions for unlabelled images too",
        False,
    ),
    Key(
        "ssl_settings.weight",
        float,
        "weight of the pseudo-labelled loss, reached after a tenth of the steps",
        1.0,
        rule=Rule("0 or more", lambda value: value >= 0),
    ),
    Key(
        "ssl_settings.per_step",
        int | None,
        "pseudo-labelled images on top of the batch_size labelled ones; null = as many",
        rule=_POSITIVE,
    ),
    TypeSection("ssl_settings", "pseudo-labels", has_type=False),
    Key("trainer.epochs", int, "passes over the labelled images per cycle", 50, rule=_POSITIVE),
    Key(
        "trainer.steps_per_cycle",
        int | None,
        "optimiser steps per cycle in place of epochs; null = epochs decide",
        rule=_POSITIVE,
    ),
    Key(
        "trainer.save_dir",
        str,
        "folder that gets the run folders",
        "exp_results",
        rule=Rule("a folder", lambda value: bool(value.strip())),
    ),
    Key("trainer.save_period", int, "epochs between checkpoints", 10, rule=_POSITIVE),
    Key(
        "trainer.checkpoint_seconds",
        float,
        "least time between two checkpoint_last.pth during a training; 0 = after every epoch",
        60.0,
        rule=Rule("0 or more", lambda value: value >= 0),
    ),
    Key("trainer.val_period", int, "epochs between validations", 1, rule=_POSITIVE),
    Key(
        "trainer.val_steps",
        int | None,
        "least steps between validations, in place of val_period; null = val_period decides",
        rule=_POSITIVE,
    ),
    Key(
        "trainer.keep_checkpoints",
        Literal["best", "best_last", "all"],
        "checkpoints of finished cycles that stay on the disk",
        "best_last",
    ),
    Key(
        "trainer.keep_records",
        bool | int,
        "pool records that stay on the disk: the newest N, true = all, false = none",
        1,
        rule=_NON_NEGATIVE,
    ),
    Key("trainer.verbosity", Literal[0, 1, 2], "0 quiet, 1 per epoch, 2 full", 2),
    Key(
        "trainer.monitor",
        str,
        "what makes a checkpoint the best one; off = the last epoch is",
        "min val_loss",
        rule=_MONITOR,
    ),
    Key(
        "trainer.early_stop",
        int,
        "epochs without improvement that end a training; 0 = never; needs a monitor",
        10,
        rule=_NON_NEGATIVE,
    ),
    Key("trainer.tensorboard", bool, "write TensorBoard logs", True),
    Key(
        "trainer.precision",
        Literal["fp32", "bf16", "fp16", "auto"],
        "arithmetic of the forward pass; auto = bf16 where the hardware computes it",
        "fp32",
    ),
    Key(
        "trainer.channels_last",
        bool,
        "lay weights and batches out with channels last, as fast convolutions want them",
        True,
    ),
    Key(
        "trainer.compile",
        bool,
        "compile backbone and RPN head with torch.compile; needs a compiler and one device",
        False,
    ),
    Key(
        "trainer.grad_clip",
        float | None,
        "largest norm of the gradient; null = no limit",
        rule=Rule("more than 0", lambda value: value > 0),
    ),
    Key(
        "trainer.accumulate",
        int,
        "batches whose gradients add up to one step, as of a batch that many times as large",
        1,
        rule=_POSITIVE,
    ),
    Key(
        "trainer.warmup_steps",
        int,
        "steps over which the learning rate rises from 0 at the start of a training",
        0,
        rule=_NON_NEGATIVE,
    ),
)
