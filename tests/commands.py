"""Fenced blocks of Markdown pages, and running the command lines in them."""

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from med_sslal.cli.args import parse


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def languages(page: Path) -> list[str]:
    """The language of each fenced block, "" where none is named."""
    return re.findall(r"^```(.*)$", page.read_text(), re.M)[::2]


def train_args(words: Sequence[str]) -> argparse.Namespace:
    """What train.py reads of its command line."""
    return parse(["train", *words])


def run_command(command: str, folder: Path, more: Sequence[str] = ()) -> int:
    """Run `python SCRIPT ...` or `python -m MODULE ...` in `folder`; returns its exit code.

    It runs in this process, with what Python does for a script: importing torch anew for each
    command would take longer than the command.

    Args:
        command: As a user types it.
        folder: The working directory; the script lies there.
        more: Words that are added to the command.
    """
    program, *words = [*shlex.split(command), *more]
    assert program == "python"
    as_module = words[0] == "-m"
    target, *arguments = words[as_module:]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        # Modules of the user's: each test has its own.
        for name in [name for name in sys.modules if name.startswith("my_")]:
            patch.delitem(sys.modules, name)
        # As in a new process: the tests themselves import it.
        patch.delitem(sys.modules, "med_sslal.__main__", raising=False)
        patch.setattr(sys, "argv", [target, *arguments])
        with pytest.raises(SystemExit) as ended:
            if as_module:
                runpy.run_module(target, run_name="__main__")
            else:
                runpy.run_path(target, run_name="__main__")
    return int(ended.value.code or 0)
