"""Which epoch was the best, and when to stop."""

import math
from collections.abc import Mapping
from typing import Any

from med_sslal.utils.errors import UserError


class Monitor:
    """Follows a value over the epochs by a rule: "min KEY", "max KEY" or "off" (the last is best).

    Training stops after `early_stop` epochs without improvement; 0 never stops early.
    """

    def __init__(self, rule: str, early_stop: int = 0) -> None:
        self._rule = rule
        mode, _, key = rule.partition(" ")
        self.key, self._sign = key.strip() or None, 1.0 if mode == "max" else -1.0
        self._early_stop = early_stop
        self.best: float | None = None  # None before the first one
        self.best_epoch = 0
        self._last_epoch = 0

    def update(self, epoch: int, values: Mapping[str, float | None]) -> bool:
        """Take in the values of a validated epoch; returns whether it is the best so far."""
        self._last_epoch = epoch
        if self.key is None:
            self.best_epoch = epoch
            return True
        if self.key not in values:
            raise UserError(f"trainer.monitor: no value '{self.key}' among {sorted(values)}")
        value = values[self.key]
        if value is None or not math.isfinite(value):
            # Undefined (no lesion to find): the newest model stands in until one is measured.
            value, better = None, self.best is None
        else:
            better = self.best is None or self._sign * value > self._sign * self.best
        if better:
            self.best, self.best_epoch = value, epoch
        return better

    def exhausted(self) -> bool:
        """Whether the last validated epoch lies `early_stop` epochs or more past the best one."""
        if not self._early_stop or self.key is None:
            return False
        return self._last_epoch - self.best_epoch >= self._early_stop

    def state_dict(self) -> dict[str, Any]:
        """Best value and epoch, the last epoch that was validated, and the rule."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "last_epoch": self._last_epoch,
            "rule": self._rule,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; a best value by another rule is forgotten."""
        same = state.get("rule", self._rule) == self._rule
        self.best, self.best_epoch = state["best"] if same else None, state["best_epoch"]
        self._last_epoch = state["last_epoch"]
