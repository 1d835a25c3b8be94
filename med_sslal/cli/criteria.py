"""List the criteria and second stages, or explain one of them, from the classes themselves."""

import inspect
import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

from med_sslal.al.al_criteria import CRITERIA, SELECTORS, describe, find_criterion, find_selector
from med_sslal.al.criteria.base import Criterion
from med_sslal.al.record import OPTIONAL_COLUMNS, PLAIN, is_aligned
from med_sslal.al.selectors.base import Selector
from med_sslal.cli.called import called
from med_sslal.config.show import entry_lines
from med_sslal.config.signature import load_class, signature
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.names import unknown
from med_sslal.utils.text_table import text_table

_HEAD = ("name", "passes", "aggregate", "needs", "what it is")


def run(args: Namespace) -> int:
    """Print the list, or all about one name; returns the exit code."""
    sys.stdout.write(_overview() if args.name is None else _explain(args.name))
    return 0


def _overview() -> str:
    """One line for every registered criterion and second stage, in groups."""
    costs = {name: _needs(cls()) for name, cls in CRITERIA.items()}
    cheap = {name: cls for name, cls in CRITERIA.items() if costs[name] == "-"}
    costly = {name: cls for name, cls in CRITERIA.items() if name not in cheap}
    groups: dict[str, Mapping[str, type]] = {
        "Criteria that read the one pass over the pool, which every cycle makes": cheap,
        "Criteria that need more than that pass": costly,
        "Second stages, which choose among the best candidates of the criteria": SELECTORS,
    }
    tables = {title: _rows(group) for title, group in groups.items() if group}
    # One table, so that all groups have the same columns, cut where a group ends.
    lines = iter(text_table([_HEAD, *chain(*tables.values())], rule=False).splitlines())
    head = next(lines)
    blocks = [
        "\n  ".join([f"{title}:", head, *islice(lines, len(table))])
        for title, table in tables.items()
    ]
    return "\n\n".join([*blocks, f"All about one of them: {called('criteria')} NAME\n"])


def _explain(name: str) -> str:
    """Source, formula, cost and arguments of one name.

    It may stand for a criterion and a second stage at once, or be a user's own
    `package.module.Class`.
    """
    registries: tuple[Mapping[str, type], ...] = (CRITERIA, SELECTORS)
    found = [registry[name] for registry in registries if name in registry]
    if "." in name:
        find = find_selector if issubclass(load_class(name), Selector) else find_criterion
        found = [find(name)]
    if not found:
        known = list(dict.fromkeys((*CRITERIA, *SELECTORS)))
        raise ConfigError(f"{unknown('criterion', name, known)}, or your own package.Class")
    return "\n".join(_page(cls, name) for cls in found)


def _page(cls: type, name: str) -> str:
    one = cls()
    stage = "second stage" if isinstance(one, Selector) else "criterion"
    arguments = signature(cls).arguments.values()
    given = {argument.name: argument.default for argument in arguments}
    long: Any = {"type": name, "args": {key: value for key, value in given.items() if value}}
    example = long if long["args"] else name
    stages = ["entropy", example] if isinstance(one, Selector) else [example]
    lines = [
        f"{name}: {stage}",
        "",
        inspect.getdoc(sys.modules[cls.__module__]) or "",
        "",
        (inspect.getdoc(cls) or "").split("\n\nArgs:")[0],
        "",
        f"Passes over the pool: {_passes(one)}",
        f"Needs besides the plain pass: {_needs(one)}",
        f"Asks of the detector: {', '.join(one.needs) or '-'}",
        f"Default aggregate: {getattr(one, 'aggregate', '-')}",
        f'In a config: "al_criterion": {json.dumps(stages)}',
        "Arguments:" if arguments else "Arguments: none",
    ]
    for argument in arguments:
        lines += entry_lines(argument, 4)
    return "\n".join([*lines, ""])


def _rows(group: Mapping[str, type]) -> list[tuple[str, ...]]:
    texts = describe(group)
    return [
        (name, _passes(cls()), str(getattr(cls(), "aggregate", "-")), _needs(cls()), texts[name])
        for name, cls in group.items()
    ]


def _passes(one: Criterion | Selector) -> str:
    heads = sum(map(is_aligned, one.views))
    passes = len(one.views) - heads
    return f"{passes} + {heads} heads" if heads else str(passes)


def _needs(one: Criterion | Selector) -> str:
    """What it reads besides the plain pass."""
    kinds = Counter(view.split("_")[0] for view in one.views if view != PLAIN)
    words = [kind if number == 1 else f"{number} x {kind}" for kind, number in kinds.items()]
    words += [need for need in one.needs if need in OPTIONAL_COLUMNS]
    return ", ".join(words) or "-"
