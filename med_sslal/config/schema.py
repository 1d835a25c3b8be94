"""Every key of a config: type, default, meaning and allowed values.

The arguments of a `{"type", "args"}` section are not listed here: they are the signature of the
class that `type` names.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Predicate, doc

from med_sslal.config.values import Key


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

    def keys(self, registered: Iterable[str] = ()) -> tuple[Key, ...]:
        """`type`, where there is one, which is one of those `registered`; and `args`."""
        needed, known = self.default_type is None, f"one of {', '.join(registered)}"
        name = Key(f"{self.path}.type", str, known, self.default_type, required=needed)
        args = Key(f"{self.path}.args", dict[str, Any], "", {}, word="arguments of the type")
        return (name, args) if self.has_type else (args,)


Name = Annotated[
    str,
    Predicate(re.compile(r"[\w-][\w.-]*").fullmatch),
    doc("a folder name of letters, digits, '.', '_' and '-', not starting with '.'"),
]
Monitor = Annotated[
    str,
    Predicate(re.compile(r"off|(min|max) \S+").fullmatch),
    doc('"off", "min KEY" or "max KEY", where KEY is a metric such as val_loss'),
]
DottedPath = Annotated[
    str, Predicate(re.compile(r"\w+(\.\w+)+").fullmatch), doc("a dotted path to a class")
]
Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Amount = Annotated[float, Ge(0)]
Side = Annotated[int, Ge(32)]

SCHEMA: tuple[Key | TypeSection, ...] = (
    Key("name", Name, "name of the experiment and of its folder", required=True),
    Key(
        "n_gpu",
        Count | Literal["auto"],
        "devices used for training: 0 = CPU, N = exactly N GPUs, auto = one GPU if there is one",
        "auto",
    ),
    Key("seed", Count, "everything random derives from it", 0),
    Key(
        "deterministic",
        bool,
        "take slower operations on a GPU that give the same bits in every run; a CPU always does",
        False,
    ),
    Key("n_workers", Count, "loader processes; 0 = load in the main process", 2),
    Key("batch_size", Positive, "labelled images per step, over all devices", 4),
    Key(
        "image_size",
        Side | tuple[Side, Side] | None,
        "side, or [height, width], of the fixed shape that images are brought to; null = 512",
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
        Count,
        "queries; 0 = one training on the initial labels",
        required=True,
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
        Amount,
        "weight of the pseudo-labelled loss, reached after a tenth of the steps",
        1.0,
    ),
    Key(
        "ssl_settings.per_step",
        Positive | None,
        "pseudo-labelled images on top of the batch_size labelled ones; null = as many",
    ),
    TypeSection("ssl_settings", "pseudo-labels", has_type=False),
    Key("trainer.epochs", Positive, "passes over the labelled images per cycle", 50),
    Key(
        "trainer.steps_per_cycle",
        Positive | None,
        "optimiser steps per cycle in place of epochs; null = epochs decide",
    ),
    Key(
        "trainer.save_dir",
        Annotated[str, Predicate(lambda text: bool(text.strip())), doc("a folder")],
        "folder that gets the run folders",
        "exp_results",
    ),
    Key("trainer.save_period", Positive, "epochs between checkpoints", 10),
    Key(
        "trainer.checkpoint_seconds",
        Amount,
        "least time between two checkpoint_last.pth during a training; 0 = after every epoch",
        60.0,
    ),
    Key("trainer.val_period", Positive, "epochs between validations", 1),
    Key(
        "trainer.val_steps",
        Positive | None,
        "least steps between validations, in place of val_period; null = val_period decides",
    ),
    Key(
        "trainer.keep_checkpoints",
        Literal["best", "best_last", "all"],
        "checkpoints of finished cycles that stay on the disk",
        "best_last",
    ),
    Key(
        "trainer.keep_records",
        bool | Count,
        "pool records that stay on the disk: the newest N, true = all, false = none",
        1,
    ),
    Key("trainer.verbosity", Literal[0, 1, 2], "0 quiet, 1 per epoch, 2 full", 2),
    Key(
        "trainer.monitor",
        Monitor,
        "what makes a checkpoint the best one; off = the last epoch is",
        "min val_loss",
    ),
    Key(
        "trainer.early_stop",
        Count,
        "epochs without improvement that end a training; 0 = never; needs a monitor",
        10,
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
        "trainer.type",
        DottedPath | None,
        "your own training step as a dotted path; null = what ssl_settings implies",
    ),
    Key(
        "trainer.ema",
        bool,
        "average the weights over the steps, and validate, keep and score with the average",
        False,
    ),
    Key(
        "trainer.grad_clip",
        Annotated[float, Gt(0)] | None,
        "largest norm of the gradient; null = no limit",
    ),
    Key(
        "trainer.accumulate",
        Positive,
        "batches whose gradients add up to one step, as of a batch that many times as large",
        1,
    ),
    Key(
        "trainer.warmup_steps",
        Count,
        "steps over which the learning rate rises from 0 at the start of a training",
        0,
    ),
)
