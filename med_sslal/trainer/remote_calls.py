"""How the processes of a run work together: rank 0 walks through the cycles, the others help it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.interrupt import Interrupted, StopRequest

T = TypeVar("T")


def together(job: Callable[..., T], setup: RunSetup, stop: StopRequest, **arguments: Any) -> T:
    """Do a job in all processes at once; rank 0 calls this, the others are in `help_out`.

    The job is a function of a module; it gets the process's own setup and stop, and `arguments`,
    which are sent to all. Returns rank 0's outcome.
    """
    setup.world.broadcast((job, arguments))
    return job(setup, stop=stop, **arguments)


def help_out(setup: RunSetup, stop: StopRequest) -> None:
    """Do rank 0's jobs with it until it has no more."""
    while (order := setup.world.broadcast(None)) is not None:
        job, arguments = order
        # It came to all at the same step: rank 0 saves, and has no more jobs then.
        with suppress(Interrupted):
            job(setup, stop=stop, **arguments)
