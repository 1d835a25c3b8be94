"""Whether a learning-rate schedule fits the trainings that it is to accompany."""

import math

from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.config.parse_config import ConfigParser
from med_sslal.utils.errors import ConfigError


def check_schedule(config: ConfigParser, helper: ActiveLearningHelper, pool_size: int) -> None:
    """Refuse a learning-rate schedule that would break off, do nothing or work backwards.

    Raises:
        ConfigError: OneCycleLR ends before a cycle does, the scheduler overrules another
            optimizer.args.lr, or ReduceLROnPlateau watches for the wrong direction.
    """
    if not config["lr_scheduler"]:
        return
    cls, args = config.init_class("lr_scheduler"), config["lr_scheduler"]["args"]
    own_lr = {OneCycleLR: "max_lr", CyclicLR: "base_lr"}.get(cls)
    lr = config["optimizer"]["args"].get("lr")
    if own_lr and lr is not None and args[own_lr] != lr:
        raise ConfigError(
            f"optimizer.args.lr is {lr}, but {cls.__name__} goes by lr_scheduler.args.{own_lr}, "
            f"which is {args[own_lr]}: set both to the same"
        )
    monitor = config.get("trainer.monitor")
    wanted = "min" if monitor == "off" else monitor.split()[0]
    if cls is ReduceLROnPlateau and args.get("mode", "min") != wanted:
        raise ConfigError(
            f'ReduceLROnPlateau follows the monitored value: with trainer.monitor "{monitor}" set '
            f'lr_scheduler.args.mode to "{wanted}"'
        )
    if cls is OneCycleLR:
        end = args.get("total_steps") or args["epochs"] * args["steps_per_epoch"]
        moves = _most_moves(config, helper, pool_size)
        if moves > end:
            raise ConfigError(
                f"OneCycleLR ends after {end} moves (lr_scheduler.args), but a cycle may take "
                f"{moves}: set total_steps to {moves}"
            )


def _most_moves(config: ConfigParser, helper: ActiveLearningHelper, pool_size: int) -> int:
    """How often the scheduler moves in the longest cycle, at most."""
    trainer = config["trainer"]
    batch_size = config["batch_size"] * trainer["accumulate"]
    by_step = config["lr_scheduler"]["interval"] == "step"
    if trainer["steps_per_cycle"]:
        batches = max(1, helper.n_initial(pool_size) // batch_size)
        steps = trainer["steps_per_cycle"]
        return steps if by_step else math.ceil(steps / batches)
    queries = config.get("al_settings.num_cycles")
    labelled = helper.n_initial(pool_size) + queries * helper.costs.most_images(helper.budget_num)
    batches = math.ceil(min(labelled, pool_size) / batch_size)
    return trainer["epochs"] * (batches if by_step else 1)
