"""Every key of a config: type, default, meaning and allowed values.

A section of plain keys is a class: type and range of a key stand in the annotation, its default
behind it (without one it is required), its meaning in the docstring.

The arguments of a `{"type", "args"}` section are not listed here: they are the signature of the
class that `type` names.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Gt, Interval, Lt, Predicate, doc

from med_sslal.config.signature import docstring_arguments
from med_sslal.config.values import Key


@dataclass(frozen=True)
class TypeSection:
    """A section whose `type` names a class of its own registry and whose `args` are its arguments.

    Its path is the name of its registry too.
    """

    path: str
    meaning: str  # One sentence for `--help-config`.
    provided: tuple[str, ...] = ()  # Arguments that the program supplies, and the config may not.
    default_type: str | None = None  # Where the section names none; None makes `type` required.
    nullable: bool = False  # The whole section may be null, and is so by default.
    has_type: bool = True  # False where the registry holds one class: the config gives its `args`.
    # Write default arguments into the resolved config. Not for foreign classes, whose arguments
    # change with the installed version.
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
Folder = Annotated[str, Predicate(lambda text: bool(text.strip())), doc("a folder")]
Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Amount = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Side = Annotated[int, Ge(32)]


class _Run:
    """The keys at the top.

    Attributes:
        name: name of the experiment and of its folder
        n_gpu: devices used for training: 0 = CPU, N = exactly N GPUs, auto = one GPU if there is
            one
        seed: everything random derives from it
        deterministic: take slower operations on a GPU that give the same bits in every run; a CPU
            always does
        n_workers: loader processes; 0 = load in the main process
        batch_size: labelled images per step, over all devices
        image_size: side, or [height, width], of the fixed shape that images are brought to; null
            = 512
    """

    name: Name
    n_gpu: Count | Literal["auto"] = "auto"
    seed: Count = 0
    deterministic: bool = False
    n_workers: Count = 2
    batch_size: Positive = 4
    image_size: Side | tuple[Side, Side] | None = None


@dataclass(frozen=True, kw_only=True)
class SslKeys:
    """What pseudo-labels are for.

    Attributes:
        include_pseudolabels: train a second model of each cycle, the student, on confident
            predictions of the first one too
        mode: offline = the first model labels the pool once, before the student; mean_teacher = it
            labels the images of each step, and later the student's average does
        teacher_fixed: share of the student's steps, at least a half-life of its average, in which
            the first model is the mean teacher
        weight: weight of the pseudo-labelled loss, reached after a fifth of the steps
        per_step: pseudo-labelled images on top of the batch_size labelled ones; null = as many
        tail: share of the student's steps, the last ones, that see labelled images alone
        gate: let the student go on only where it is not worse on validation than the first model
        gate_metric: validation metric of the gate, which is better if higher; null = val_AP50
            where it is measured, else val_sens_mean
        oracle: put the truth in place of the pseudo-labels, to see what perfect ones would give
    """

    include_pseudolabels: bool = False
    mode: Literal["offline", "mean_teacher"] = "offline"
    teacher_fixed: Share = 0.5
    weight: Amount = 0.5
    per_step: Positive | None = None
    tail: Annotated[float, Ge(0), Lt(1)] = 0.2
    gate: bool = True
    gate_metric: str | None = None
    oracle: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainerKeys:
    """The training of a cycle.

    Attributes:
        epochs: passes over the labelled images per cycle
        steps_per_cycle: optimiser steps per cycle in place of epochs; null = epochs decide
        save_dir: folder that gets the run folders
        save_period: epochs between checkpoints
        checkpoint_seconds: least time between two checkpoint_last.pth during a training; 0 =
            after every epoch
        val_period: epochs between validations
        val_steps: least steps between validations, in place of val_period; null = val_period
            decides
        keep_checkpoints: checkpoints of finished cycles that stay on the disk
        keep_records: pool records that stay on the disk: the newest N, true = all, false = none
        verbosity: 0 quiet, 1 per epoch, 2 full
        monitor: what makes a checkpoint the best one; off = the last epoch is
        early_stop: epochs without improvement that end a training; 0 = never; needs a monitor
        tensorboard: write TensorBoard logs
        precision: arithmetic of the forward pass; auto = bf16 where the hardware computes it
        channels_last: lay weights and batches out with channels last, as fast convolutions want
            them
        compile: compile backbone and RPN head with torch.compile; needs a compiler and one device
        type: your own training step as a dotted path; null = what ssl_settings implies
        ema: average the weights over the steps, and validate, keep and score with the average
        grad_clip: largest norm of the gradient; null = no limit
        accumulate: batches whose gradients add up to one step, as of a batch that many times as
            large
        warmup_steps: steps over which the learning rate rises from 0 at the start of a training
    """

    epochs: Positive = 50
    steps_per_cycle: Positive | None = None
    save_dir: Folder = "exp_results"
    save_period: Positive = 10
    checkpoint_seconds: Amount = 60.0
    val_period: Positive = 1
    val_steps: Positive | None = None
    keep_checkpoints: Literal["best", "best_last", "all"] = "best_last"
    keep_records: bool | Count = 1
    verbosity: Literal[0, 1, 2] = 2
    monitor: Monitor = "min val_loss"
    early_stop: Count = 10
    tensorboard: bool = True
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    type: DottedPath | None = None
    ema: bool = False
    grad_clip: Annotated[float, Gt(0)] | None = None
    accumulate: Positive = 1
    warmup_steps: Count = 0


def _keys(section: type, path: str = "") -> Iterator[Key]:
    meanings = docstring_arguments(section.__doc__)
    for name, annotation in get_type_hints(section, include_extras=True).items():
        default, required = getattr(section, name, None), not hasattr(section, name)
        yield Key(f"{path}{name}", annotation, meanings.get(name, ""), default, required)


SCHEMA: tuple[Key | TypeSection, ...] = (
    *_keys(_Run),
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
        "ConstantThenCosine, which knows how long the training is, or any of "
        "torch.optim.lr_scheduler; null in place of the section = constant learning rate",
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
    TypeSection(
        "oracle",
        "who gives the labels of a query: simulated = the data has them; human = a person, in an "
        "annotation tool",
        ("annotations", "journal"),
        "simulated",
    ),
    *_keys(SslKeys, "ssl_settings."),
    TypeSection("ssl_settings", "pseudo-labels", has_type=False),
    *_keys(TrainerKeys, "trainer."),
)
