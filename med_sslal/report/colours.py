"""One colour per strategy, the same in every report and told apart with all colour vision."""

from collections.abc import Sequence
from types import MappingProxyType

from med_sslal.utils.util import stable_hash

BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY, GREY = "#CC79A7", "#E69F00", "#56B4E9", "#7F858C"

# Of text, lines and paper. A page shows each as its variable, which differs on dark paper.
INK, MUTED, FAINT = "#1b1f24", "#5c6570", "#8b949e"
GRID, PAPER = "#e8ebee", "#ffffff"
THEME = MappingProxyType(
    {
        INK: "var(--ink)",
        MUTED: "var(--muted)",
        FAINT: "var(--faint)",
        GRID: "var(--grid)",
        PAPER: "var(--paper)",
    }
)

# Okabe and Ito's colours without the yellow, which white paper swallows; grey stands for black,
# which dark paper would.
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)

STRATEGIES = MappingProxyType(
    {
        "random": GREY,
        "full": INK,
        "localization_tightness": BLUE,
        "entropy": VERMILLION,
        "flip_consistency": GREEN,
        "k_center": PURPLE,
        "unexplained_objectness": ORANGE,
        "prediction_uncertainty": SKY,
        "margin": ORANGE,
        "localization_stability": SKY,
        "cald_consistency": GREEN,
        "class_difficulty_entropy": PURPLE,
        "ensemble_disagreement": SKY,
        "representativeness": PURPLE,
    }
)

DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2 1 2 1 2")


def colour_of(strategy: str) -> str:
    """The colour of a strategy: of the first known criterion in its name, else by its name."""
    if strategy in STRATEGIES:
        return STRATEGIES[strategy]
    known = [name for name in STRATEGIES if name in strategy]
    if known:
        return STRATEGIES[min(known, key=lambda name: (strategy.index(name), -len(name)))]
    return PALETTE[stable_hash("colour", strategy) % len(PALETTE)]


def styles(strategies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dash pattern of each strategy; of one colour, each has a pattern of its own."""
    used: dict[str, int] = {}
    result = {}
    for name in sorted(strategies):
        colour = colour_of(name)
        result[name] = colour, DASHES[used.get(colour, 0) % len(DASHES)]
        used[colour] = used.get(colour, 0) + 1
    return result
