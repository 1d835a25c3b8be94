"""The strategy of a run, changed by a command line."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.stages import unused_defaults
from med_sslal.cli.args import HELPER_OPTIONS
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.signature import convert_arguments, wrong_arguments
from med_sslal.utils.errors import ConfigError

# What a criterion cannot take over from another one.
OF_CRITERION = ("aggregate", "empty_images")
_OPTIONS = {"al_criterion": "--criterion", "budget_num": "--budget"}


def make_helper(
    args: Namespace, config: ConfigParser | None, criterion: Any
) -> ActiveLearningHelper:
    """The strategy: the run's (`config`, None outside of one), changed by the command line.

    `criterion` is the first stage, as `al_criterion` has it.
    """
    given = vars(args)
    cls: type[ActiveLearningHelper] = ActiveLearningHelper
    own: dict[str, Any] = {"init_num": 1, "al_criterion": []}
    if config is not None:
        cls, own = config.init_class("al_settings"), config["al_settings"]["args"]
    # What was said for all criteria holds for those that the run used, where they take it.
    used = [own, *(own.get("schedule") or [])]
    others: Sequence[str] = OF_CRITERION
    if any((entry.get("al_criterion") or [])[:1] == [criterion] for entry in used):
        others = unused_defaults([criterion], {name: own.get(name) for name in OF_CRITERION})
    own = {name: value for name, value in own.items() if name not in others}
    stages = [criterion] if args.selector is None else [criterion, args.selector]
    own["al_criterion"] = stages
    if args.budget is not None:
        own["budget_num"] = args.budget
    if own.get("schedule"):
        own["schedule"] = None
    own |= {name: given[name] for name in HELPER_OPTIONS if name in given}
    if problems := wrong_arguments(cls, own, provided=("seed",)):
        options = [_OPTIONS.get(name, f"--{name.replace('_', '-')}") for name, *_ in problems]
        told = zip(options, problems, strict=True)
        raise ConfigError("; ".join(f"{option}: {wrong.message}" for option, wrong in told))
    seed = args.seed
    if seed is None:
        seed = 0 if config is None else config["seed"]
    return cls(**convert_arguments(cls, own), seed=seed)
