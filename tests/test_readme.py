"""README and the pages it leads to: every command is run or parsed, every key and link is right."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from commands import blocks, languages, run_command, train_args
from test_docs import PAGES, merged
from tiny import make_voc
from torch.distributed.run import get_args_parser

from med_sslal.al.al_criteria import CRITERIA, SELECTORS
from med_sslal.cli import args
from med_sslal.cli.registries import registries
from med_sslal.config.jsonc import parse
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.schema import SCHEMA, Key, TypeSection
from med_sslal.config.signature import signature
from med_sslal.study.study_config import StudyConfig
from med_sslal.trainer.new_folder import point_to

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
# Pages of commands and configs; those of criteria.md are run by test_select.py.
GUIDE = (
    README,
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("check", "config", "data", "gpus", "practice", "predict", "studies")
    ),
)
LINES = [line for page in GUIDE for block in blocks(page, "sh") for line in block.splitlines()]
COMMANDS = list(dict.fromkeys(LINES))
CONFIGS = [block for page in GUIDE for block in blocks(page, "json")]

START = "python train.py -c config.json"
# What makes a run small: both shipped configs, then each.
SMALL = (
    "n_gpu=0",
    "n_workers=0",
    "batch_size=2",
    "image_size=64",
    "al_settings.args.init_num=4",
    "al_settings.args.budget_num=2",
    "trainer.steps_per_cycle=1",
    "trainer.val_steps=1",
    'trainer.keep_checkpoints="best"',
    "lr_scheduler=null",
    "arch.args.norm=group",
    "arch.args.fpn_channels=64",
    "arch.args.box_head_size=32",
)
SMALL_PHANTOM = (*SMALL, "dataset.args.patients=12", "dataset.args.size=64")
SMALL_VOC = (*SMALL, 'dataset.args.classes=["class0","class1","class2"]')


def parses_as_training(command: str) -> None:
    args = train_args(shlex.split(command)[2:])
    ConfigParser.from_file(ROOT / args.config, registries(), args.overrides)


def parses_as_command(command: str) -> None:
    args.parse(shlex.split(command)[3:])


def parses_as_study(command: str) -> None:
    """Run in test_study.py; the shipped ones take the best part of an hour."""
    given = args.parse(shlex.split(command)[3:])
    StudyConfig.from_file(ROOT / given.config, registries(), given.overrides)


def is_known_to_torchrun(command: str) -> None:
    words = shlex.split(command)
    args = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
    if args.module:
        parses_as_command(
            " ".join(["python", "-m", args.training_script, *args.training_script_args])
        )
        return
    assert args.training_script == "train.py"
    train = train_args(args.training_script_args)
    assert train.resume or (ROOT / train.config).is_file()


def names_files_that_pip_takes(command: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("packages", nargs="*")
    parser.add_argument("-c", action="append", default=[])
    parser.add_argument("-r", action="append", default=[])
    args = parser.parse_args(shlex.split(command)[4:])
    assert all((ROOT / name).is_file() for name in args.c + args.r)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    known = [[re.split("[<>=]", package)[0] for package in each] for each in extras.values()]
    assert not args.packages or args.packages in known


def is_a_program_of_examples(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "bash":
        done = subprocess.run(["bash", "-n", str(ROOT / words[0])], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    import_module(words[1]).options().parse_args(words[2:])


def is_known_to_make(command: str) -> None:
    done = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def is_known_to_pytest(command: str) -> None:
    words = [*shlex.split(command)[1:], "--collect-only", "tests/test_jsonc.py"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def stands_for_itself(command: str) -> None:
    """The shell's part; there is nothing of ours in it."""


# Commands that need a network, a new environment, a GPU or data that is not there.
PARSED: dict[str, Callable[[str], None]] = {
    r"make \w+": is_known_to_make,
    r"python3 -m venv \.venv|\. \.venv/bin/activate": stands_for_itself,
    r"git clone https://github\.com/\S+ data/\S+": stands_for_itself,
    r"python -m pip install .*": names_files_that_pip_takes,
    r"python -m pytest .*": is_known_to_pytest,
    r"python -m med_sslal (download|predict|export|check --images|import|query|status) .*": (
        parses_as_command
    ),
    # Run in test_examples.py.
    r"(bash examples/|python -m examples\.)\w+.*": is_a_program_of_examples,
    # The folder's own; tests/test_practice.py goes this way.
    r"python train\.py -c my\.json": lambda command: train_args(shlex.split(command)[2:]),
    r"python -m med_sslal study .*": parses_as_study,
    r"python train\.py .*--device (cuda|[\d,]+)": parses_as_training,
    r"(srun |CUDA_VISIBLE_DEVICES=\S+ )?torchrun .*": is_known_to_torchrun,
    r"#!/bin/bash|#SBATCH( --[a-z-]+=[\d:]+)+|head=\$\(scontrol .*\)": stands_for_itself,
    r"python train\.py -c configs/deeplesion_lung\.json": parses_as_training,
}


def more_words(command: str) -> list[str]:
    """What is added to a command that is run, to make it small."""
    if command.startswith("python -m med_sslal phantom "):
        return ["--patients", "3", "--size", "64"]
    if "-c config.json" in command:
        fewer = [] if command == START else ["al_settings.num_cycles=0"]
        return [word for value in (*SMALL_PHANTOM, *fewer) for word in ("--set", value)]
    if "-c configs/bccd.json" in command:
        fewer = ["al_settings.num_cycles=1"]
        return [word for value in (*SMALL_VOC, *fewer) for word in ("--set", value)]
    return []


RUN = r"python (train\.py|test\.py|-m med_sslal (phantom|check -c|criteria|select|report))\b.*"


def check_of(command: str) -> Callable[[str], None] | None:
    """How a command that is not run is checked; None for those that are run."""
    for pattern, check in PARSED.items():
        if re.fullmatch(pattern, command):
            return check
    assert re.fullmatch(RUN, command), f"README: no test knows the command '{command}'"
    return None


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the first command, in a folder with all that the commands need."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train.py", "test.py", "config.json"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    voc = make_voc(folder / "data" / "BCCD_Dataset" / "BCCD", classes=3)
    lists = voc / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    stems = sorted(path.stem for path in (voc / "JPEGImages").iterdir())
    for name, part in {"train": stems[:16], "val": stems[16:20], "test": stems[20:]}.items():
        (lists / f"{name}.txt").write_text("\n".join(part))
    assert run_command(START, folder, more_words(START)) == 0
    return (folder / "exp_results" / "latest").resolve()


@pytest.fixture
def clone(first_run: Path) -> Path:
    """That folder; `latest` is the first run, whatever ran in between."""
    folder = first_run.parents[2]
    point_to(folder / "exp_results", first_run)
    return folder


@pytest.mark.parametrize("command", [line for line in COMMANDS if check_of(line)])
def test_command_is_one_that_would_be_taken(command: str) -> None:
    check = check_of(command)
    assert check is not None
    check(command)


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in COMMANDS if not check_of(line)])
def test_command_runs(command: str, clone: Path, first_run: Path) -> None:
    before = set(clone.rglob("metrics.json"))
    # The first one has run.
    if command != START:
        assert run_command(command, clone, more_words(command)) == 0
    cycles = sorted(path.parent.name for path in first_run.glob("cycle_*/metrics.json"))
    new = {path.parent.name for path in set(clone.rglob("metrics.json")) - before}
    if command == START:
        assert cycles[:4] == ["cycle_00", "cycle_01", "cycle_02", "cycle_03"]
    elif "phantom" in command:
        assert (clone / "data" / "my_phantom" / "DL_info.csv").is_file()
    elif "--resume" in command:
        wanted = re.search("num_cycles=(.)", command)
        assert len(cycles) == (int(wanted.group(1)) if wanted else 3) + 1
    elif "test.py" in command:
        split = "val" if "--split val" in command else "test"
        assert [name.split("_")[0] for name in new] == [split]
    elif any(
        word in command
        for word in ("--help-config", "--print-config", "--dry-run", " criteria", " check ")
    ):
        assert not new
    elif "med_sslal report" in command:
        assert (first_run / "report.html").is_file() and not new
    elif "med_sslal select" in command:
        assert list(first_run.glob("select_entropy_k_center_*/images.png"))
    else:
        wanted_cycles = ["cycle_00", "cycle_01"] if "bccd" in command else ["cycle_00"]
        assert sorted(new) == wanted_cycles


def test_a_newcomer_reads_no_more_than_this() -> None:
    assert len(README.read_text().splitlines()) <= 250


def test_commands_stand_in_sh_blocks_only() -> None:
    for page in (README, *DOCS):
        known = {"sh", "json", "text"} if page in GUIDE else {"text"}
        known |= {"python"} if page == README else set()
        known |= {"python", "json", "sh"} if page.stem in (*PAGES, "criteria") else set()
        assert set(languages(page)) <= known | (
            {"sh", "json"} if page.stem == "criteria" else set()
        )


@pytest.mark.parametrize("block", CONFIGS)
def test_config_block_is_valid(block: str) -> None:
    config = parse((ROOT / "config.json").read_text(), "config.json").value
    ConfigParser(merged(config, json.loads(block)), registries())


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the table of a page whose first column has this heading."""
    text = (ROOT / "docs" / page).read_text()
    lines = text[text.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def told_defaults() -> list[tuple[str, str]]:
    """Every key that the pages have a line for, with its default there."""
    rows = [(re.sub("[*` ]", "", row[0]), row[1]) for row in table("config.md", "Key")]
    for name, weak, strong, _ in table("semi_supervision.md", "In `args`"):
        argument = f"augmentation.args.{name.strip('`')}"
        rows += [(argument, weak), (f"pseudo_{argument}", strong)]
    return [(name, default.strip("`")) for name, default in rows]


def arguments(entry: TypeSection) -> list[Key]:
    """Those of the section's classes, but for torch's own, and for what the program supplies."""
    classes = dict(registries()[entry.path])
    if "augmentation" in entry.path:
        # Two classes of the same arguments.
        classes = {name: cls for name, cls in classes.items() if name == entry.default_type}
    own = [cls for cls in classes.values() if cls.__module__.startswith("med_sslal")]
    found = [key for cls in own for key in signature(cls).arguments.values()]
    return [key for key in found if key.path not in entry.provided]


@pytest.mark.parametrize(("name", "default"), sorted(set(told_defaults())))
def test_config_table_tells_the_defaults(name: str, default: str) -> None:
    known = []
    for entry in SCHEMA:
        if isinstance(entry, Key):
            known += [entry.hint] if entry.path == name else []
            continue
        if name == f"{entry.path}.type":
            known.append(entry.keys()[0].hint)
        elif name == entry.path and entry.nullable:
            known.append("default null")
        elif name.startswith(f"{entry.path}.args."):
            known += [key.hint for key in arguments(entry) if key.path == name.split(".")[-1]]
    assert (default if default == "required" else f"default {default}") in known


def test_config_table_leaves_no_key_out() -> None:
    keys = {entry.path for entry in SCHEMA if isinstance(entry, Key)}
    for entry in SCHEMA:
        if isinstance(entry, TypeSection):
            keys |= {f"{entry.path}.args.{key.path}" for key in arguments(entry)}
    assert keys <= {name for name, _ in told_defaults()}


def test_tables_name_every_criterion_and_second_stage() -> None:
    first = [row[0].split("`")[1] for row in table("criteria.md", "Criterion")]
    second = [row[0].split("`")[1] for row in table("criteria.md", "Second stage")]
    assert (set(first), set(second)) == (set(CRITERIA), set(SELECTORS))


def links(page: Path) -> list[tuple[Path, str]]:
    """Page and target of every link and picture that leads to a file of the project."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [(page, target) for target in targets if not target.startswith("https://")]


@pytest.mark.parametrize(
    ("page", "target"),
    [link for page in (README, *DOCS) for link in links(page)],
    ids=lambda part: part if isinstance(part, str) else part.name,
)
def test_link_leads_somewhere(page: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    path = page.parent / name if name else page
    assert path.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
        assert anchor in [
            re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings
        ]


def test_configs_that_are_named_are_there() -> None:
    named = {
        name
        for page in (README, *DOCS)
        for name in re.findall(r"configs/\w+\.json", page.read_text())
    }
    assert named and not [name for name in sorted(named) if not (ROOT / name).is_file()]
