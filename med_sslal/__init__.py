"""Active and semi-supervised training of object detectors for medical images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from med_sslal.api import Run, load, select

__all__ = ["Run", "load", "select"]


def __getattr__(name: str) -> Any:
    """The public names, when they are asked for: torch takes seconds to load."""
    if name not in __all__:
        raise AttributeError(f"module 'med_sslal' has no attribute '{name}'")
    from med_sslal import api

    return getattr(api, name)
