"""What the program tells a user to type next."""

import sys
from pathlib import Path


def called(command: str = "") -> str:
    """The program, or a command of it, by the name that this process was started by.

    train.py and test.py are doors to one command each, which an installed package does not have.
    """
    started = Path(sys.argv[0]).name
    doors = ("train", "test")
    if command in doors and started.removesuffix(".py") in doors:
        return f"python {command}.py"
    program = started if started == "med-sslal" else "python -m med_sslal"
    return f"{program} {command}".rstrip()
