"""The command lines. No torch here: `--help` answers at once."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from inspect import isfunction
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, Predicate, doc

from med_sslal.cli.called import called
from med_sslal.config.overrides import Override, json_or_text, parse_set
from med_sslal.config.schema import Count, Name, Positive
from med_sslal.config.values import Key, fits, read
from med_sslal.utils.errors import ConfigError

# Of each command what it does, and its options: as a user types it, two spaces, and its meaning
# with a default or "required" in brackets; in groups, of which "instead" takes one option only. The
# kind of a value stands in `_KINDS`.
COMMANDS = {
    "train": """Train a detector with few labels, cycle by cycle.
what to run (one of -c and -r):
  -c --config FILE  config of a new run
  -r --resume PATH  go on with a run in its own folder: a checkpoint, a run folder or 'latest'
  --init-from CHECKPOINT  start a new run from the weights of a checkpoint (fine-tuning)
  --cycle0-from RUN  take over the training of cycle 0 from another run that differs in strategy
    only
  --run-id NAME  last part of the run folder's path
values in place of the config's:
  -d --device DEVICE  cpu, cuda or GPU numbers such as 2,3; in place of n_gpu
  --set KEY=VALUE  any key, such as trainer.epochs=3; the value is JSON, else text; repeatable
  --lr LR  learning rate: optimizer.args.lr
  --bs N  batch size: batch_size
instead of a training:
  --print-config  print the config with all defaults and its differences to them
  --help-config  print every key of a config with type, default and meaning
  --dry-run  build everything, try one batch of each kind and one selection, leave nothing
examples:
  python train.py -c config.json                             start a run
  python train.py -c config.json --device cpu --lr 1e-3      ... with other values
  python train.py -c config.json --set trainer.epochs=3      ... of any key
  python train.py --resume latest                            go on with the newest run
  python train.py -c config.json --init-from best.pth        fine-tune from a checkpoint's weights
  python train.py -c config.json --print-config              show what the config means
""",
    "test": """Evaluate a checkpoint with its run's own config; results go to <run>/<split>_<time>/.
  -r --resume PATH  a checkpoint, a run folder (its last finished cycle's best model) or 'latest'
    [required]
  --split test|val  images to evaluate on [test]
  --set KEY=VALUE  where the data of the run lies now: dataset.args.root=DIR; repeatable
  -d --device DEVICE  cpu, cuda or GPU numbers such as 2,3; in place of n_gpu
examples:
  python test.py -r latest                                   the newest run's last best model
  python test.py -r exp_results/name/20260101_120000_s0      a run folder
  python test.py -r .../cycle_02/model_best.pth -d cpu       one checkpoint, on the CPU
""",
    "predict": """Detect on a folder of PNG, JPEG, TIFF and DICOM files with a trained run.
  -r --resume PATH  a checkpoint, a run (best model of its last whole cycle) or 'latest' [required]
  --images FOLDER  what to detect on: every image file below it [required]
  --out DIR  where the results go; a command that was stopped goes on in it [required]
  --overlays N  pictures with boxes, of the N images with the surest detections [20]
  --window LOW,HIGH  values of 16-bit grey shown black and white (default: the run's); with a
    negative one, --window=LOW,HIGH
  --dicom-key FILE  keeps the key of the names of DICOM images (default: the run's); it is made
  -d --device DEVICE  cpu, cuda or GPU numbers such as 2,3; in place of n_gpu
instead of all detections, one of:
  --fps K  keep what scores so high that validation had K false positives per image: 0.5, 1, 2, 4,
    8 or 16; each class by itself (default 1)
  --threshold SCORE  keep what has this score or more
examples:
  med-sslal predict -r latest --images scans --out found     detections in found/predictions.csv
  med-sslal predict -r latest --images scans --out found --threshold 0.5
""",
    "preview": """Show what training makes of images: some of a config's in their views, with boxes.
  -c --config FILE  config of a run [required]
  --images N  how many of its training images [6]
  --out FILE  where the sheet goes, a PNG file [preview.png]
  --set KEY=VALUE  any key, such as pseudo_augmentation.args.cutout=0; repeatable
""",
    "check": """Look at a data set before a run: files, boxes, groups, counts, and what suits them.
what to look at (-c, or --images with --write-config):
  -c --config FILE  config whose data set is read as a run would read it
  --images DIR  an own folder of images, with labels as COCO, as Pascal VOC, or without
  --write-config FILE  write a first config for it, which trains
  --dicom-key FILE  keeps the key of the names of DICOM images in it; it is made
how:
  The exit code is 2 where something is wrong, and 0 where there are warnings at most.
  --set KEY=VALUE  any key of the config; the value is JSON, else text; repeatable
  --fast  read headers and labels only, decode no pixels
  --out DIR  where check.html and check.json go (default <save_dir>/<name>/check_<time>)
examples:
  python -m med_sslal check -c config.json                          the data of a config
  python -m med_sslal check --images DIR --write-config my.json     a first config
""",
    "export": """Write a run's detector as safetensors, with classes, sizes and window as JSON.
  -r --resume PATH  a checkpoint, a run folder (its last finished cycle's best model) or 'latest'
    [required]
  --out DIR  where model.safetensors and model.json go [required]
  --onnx  write model.onnx too: of one image of the run's size, opset 18
""",
    "criteria": """List the criteria and second stages, or explain one of them.
  NAME?  explain this one: formula, source and arguments; also your own package.module.Class
""",
    "select": """Choose again from a stored pool record, without model or GPU, and show why.
  --record PATH  a record (<run>/cycle_NN/record), a cycle's folder, or a run folder or 'latest':
    its newest record [required]
  --criterion NAME  see `python -m med_sslal criteria`; also JSON as the first place of
    al_criterion takes it, such as {"type": "entropy", "args": {"aggregate": "max"}}; with
    --explain it can be given several times, and left out it is the run's own
  --selector NAME  second stage, likewise (default top_k)
  --budget B  images to take
  --explain  choose nothing: show what the criteria find on the validation images of the cycle,
    whose truth is known
  --first K  pictures of the first K; 0 = none [12]
  --out DIR  where selection.json and images.png go (default a new folder in the run's)
values in place of the run's:
  Left out, they are those of the run that the record lies in: the run's own criterion, second
  stage and budget then give its own selection. Another criterion takes its own defaults for
  --aggregate and --empty-images.
  --seed S  the run's seed (outside of a run 0)
  --cycle C  part of the seed (outside of a run 0)
  --candidate-factor F  al_settings.args.candidate_factor; null is a value too
  --max-per-group N  al_settings.args.max_per_group; null is a value too
  --spread-groups YES  al_settings.args.spread_groups; true or false
  --suppress-adjacent N  al_settings.args.suppress_adjacent; null is a value too
  --aggregate HOW  al_settings.args.aggregate; null is a value too
  --empty-images WHERE  al_settings.args.empty_images; null is a value too
  --budget-unit UNIT  al_settings.args.budget_unit; null is a value too
""",
    "study": """Compare selection strategies: arms x paired seeds as ordinary runs, then the report.
  -c --config FILE  a study [required]
  -j --jobs N  runs at the same time [1]
  -d --device DEVICE  cpu, cuda or GPU numbers such as 2,3; in place of n_gpu
  --set KEY=VALUE  any key of every run, such as trainer.steps_per_cycle=20; repeatable
  --results FILE  write what each finished run gave into this small file, and take what is in it
    for done, with or without run folders
  --seeds N,N  run these seeds of the study only, such as 0,1; all that are complete are compared
instead of the whole study:
  --only ARM/sSEED  start or go on with this one run and stop, as in a cluster's job array
  --print-commands  print one command for each run that is not done, those that others wait for
    first
""",
    "import": """Take a person's answers to a query of a run: all that the files have, or nothing.
  QUERY  the query's folder in its run, <run>/cycle_NN/query_<id>
  FILE*  exports of an annotation tool: Label Studio's JSON of all tasks, CVAT's XML 1.1, COCO, or
    a CSV table with DeepLesion's columns
how they are read:
  The query's README tells how to export. The last answer of an image holds; what is imported
  already changes nothing.
  --unmarked empty|pending  what an image without a box means in COCO or a table, which do not say
  --reader NAME  who answered, where the file names nobody; of several readers of an image the one
    whose answer is taken, or 'newest' for the latest of them
  --pad PIXELS  widen each box that is not left as it was shown by so much on every side, in place
    of the run's oracle.args.box_padding_px
  --set KEY=VALUE  where the data of the run lies now: dataset.args.root=DIR; repeatable
  --dry-run  check and count, change nothing
in place of files:
  --withdraw ID+  take the answers to these images of the query back
examples:
  python -m med_sslal import exp_results/latest/cycle_00/query_1a2b3c answers.json
  python -m med_sslal import exp_results/latest/cycle_00/query_1a2b3c --withdraw patient3/scan2
""",
    "query": """Put a query into a project of Label Studio, or fetch the tasks of that project.
  ACTION  push (a new project query_<id>, with the predictions) or pull (answered or not)
  QUERY  the query's folder in its run, <run>/cycle_NN/query_<id>
where Label Studio is:
  --url URL  address of its first page, such as http://localhost:8080 [required]
  --token TOKEN  a user's access token (default the environment variable LABEL_STUDIO_TOKEN)
  --project ID  number of a project, in place of the one named query_<id>; to push, an empty one
  --local-root DIR  push: its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, in which the query lies, to
    read the pictures from; left out, the tasks hold them
  --out FILE  pull: where the tasks go (default answers_<id>.json)
""",
    "status": """Say where a run stands: its cycle, its queries and their answers, what comes next.
  RUN  a run folder, or 'latest' for the newest run
""",
    "report": """Write the report of runs and studies: one HTML file each that needs no network.
  PATH+  run folders and study folders, or 'latest' for the newest run; each gets its own page
""",
    "phantom": """Make a phantom: synthetic CT in DeepLesion's own files, for tests and trials.
  --out DIR  folder to make [required]
  --patients N  about 6 images each [120]
  --size S  pixels of 0.8 mm a side [160]
  --seed K  same seed, same bytes [0]
  --hidden-fraction F  share of lesions left unmarked, as in the real data [0]
""",
    "download": """Fetch a data set from links that the user names.
  DATASET  what to fetch: deeplesion
  --links FILE  list of links: NIH's download script as it is, or one URL a line with an optional
    file name and MD5 beside it [required]
  --out DIR  where to [data/DeepLesion]
  --md5 FILE  MD5 sums by file name, as NIH ships them
  --keep-archives  keep the zip files after unpacking
""",
}
# Arguments of the helper that `select` puts in place of the run's.
HELPER_OPTIONS = (
    "candidate_factor", "max_per_group", "spread_groups", "suppress_adjacent", "aggregate",
    "empty_images", "budget_unit",
)  # fmt: skip

_FILES = (
    "out", "links", "md5", "init_from", "results", "images", "dicom_key", "write_config", "query",
    "file", "local_root",
)  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line; the parser ends the program where there is something wrong with it.

    `argv` None: the words of this process.
    """
    meaning = "Train and evaluate detectors; data sets, criteria, selections, reports."
    parser = argparse.ArgumentParser(prog=called(), description=meaning, allow_abbrev=False)
    commands, parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND"), {}
    for name, text in COMMANDS.items():
        meaning, _, options = text.partition("\n")
        parsers[name] = commands.add_parser(
            name, prog=called(name), help=meaning, description=meaning, allow_abbrev=False
        )
        add_options(parsers[name], options)
    args = parser.parse_args(argv)
    refusals = {"train": _misfit, "check": _misfit_of_check}
    refusals |= {"import": _misfit_of_import, "query": _misfit_of_query}
    if args.command in refusals and (refusal := refusals[args.command](args)) is not None:
        parsers[args.command].error(refusal)
    return args


def add_options(parser: argparse.ArgumentParser, text: str) -> None:
    """Add options to a parser: lines as in COMMANDS, the deeper ones going on with those before."""
    options, examples, lines = text.partition("examples:\n")
    if examples:
        parser.epilog = examples + lines
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
    to: argparse._ActionsContainer = parser
    for line in re.sub(r"\n {4}", " ", options).splitlines():
        if not line.startswith(" "):
            to = group = parser.add_argument_group(line.removesuffix(":"))
            if line.startswith("instead"):
                to = group.add_mutually_exclusive_group()
        elif "  " in line.strip():
            _add_option(to, *line.strip().split("  "))
        else:
            group.description = f"{group.description or ''} {line.strip()}"


def _add_option(to: argparse._ActionsContainer, words: str, meaning: str) -> None:
    *flags, last = words.split()
    if last.startswith("-"):
        to.add_argument(*flags, last, action="store_true", help=meaning)
        return
    name = (flags[-1] if flags else last).strip("-+?*").replace("-", "_").lower()
    meaning, _, default = meaning.removesuffix("]").partition(" [")
    # A word may stand for two things: a folder of images, and how many.
    kind = _KINDS.get(f"{name} {last}", _KINDS.get(name, str))
    more: dict[str, Any] = {"help": meaning, "type": _reader(kind)}
    more["metavar"] = last.strip("+?*")
    if last[-1] in "+?*":
        more["nargs"] = last[-1]
    if flags and default == "required":
        more["required"] = True
    elif flags and default:
        more |= {"default": default, "help": f"{meaning} (default {default})"}
    elif name in ("set", "lr", "bs", "switch"):
        dest = "switches" if name == "switch" else "overrides"
        more |= {"action": "append", "default": [], "dest": dest}
    elif name == "criterion":
        more["action"] = "append"
    elif name in HELPER_OPTIONS:
        more["default"] = argparse.SUPPRESS
    to.add_argument(*flags or [name], **more)


def _reader(kind: Any) -> Any:

    def read_text(text: str) -> Any:
        try:
            if isfunction(kind):
                return kind(text)
            value = text if fits(text, kind) else json_or_text(text)
            if problem := Key("", kind, "").problem(value):
                raise ConfigError(problem)
            return read(value, kind)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read_text


def _misfit(args: argparse.Namespace) -> str | None:
    """What of the command line of a training does not belong together."""
    if args.help_config:
        return None
    if (args.config is None) == (args.resume is None):
        return "give one of -c FILE (a new run) and -r PATH (go on with a run)"
    for name in ("init_from", "cycle0_from", "run_id", "dry_run"):
        if args.resume is not None and getattr(args, name) not in (None, False):
            does = "tries" if name == "dry_run" else "starts"
            word = f"--{name.replace('_', '-')}"
            return f"{word} {does} a new run with -c; --resume goes on with one"
    if args.cycle0_from is not None and args.init_from is not None:
        return "--cycle0-from takes over the initial weights too: leave --init-from out"
    return None


def _misfit_of_check(args: argparse.Namespace) -> str | None:
    if (args.config is None) == (args.images is None):
        return "give one of -c FILE (the data of a config) and --images DIR (an own folder)"
    if (args.images is None) != (args.write_config is None):
        return "--images DIR and --write-config FILE go together"
    if args.images is None and args.dicom_key is not None:
        return "--dicom-key FILE goes with --images; a config has dataset.args.dicom_key"
    if args.images is not None and args.overrides:
        return "--set changes a config that is there: it goes with -c"
    return None


def _misfit_of_import(args: argparse.Namespace) -> str | None:
    if bool(args.file) == bool(args.withdraw):
        return "give one of FILE (answers) and --withdraw ID (to take some back)"
    return None


def _misfit_of_query(args: argparse.Namespace) -> str | None:
    if args.out if args.action == "push" else args.local_root:
        return "--local-root DIR goes with push, and --out FILE with pull"
    return None


def _is_device(text: str) -> bool:
    numbers = text.split(",")
    if not all(re.fullmatch("[0-9]+", number) for number in numbers):
        return text in ("cpu", "cuda")
    return len(set(map(int, numbers))) == len(numbers)


def _learning_rate(text: str) -> Override:
    try:
        return Override("--lr", ("optimizer", "args", "lr"), float(text))
    except ValueError:
        return Override("--lr", ("optimizer", "args", "lr"), text)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"takes seeds such as 0,1, found '{text}'") from error


def _window(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise ConfigError(f"takes two numbers such as 0,4095, found '{text}'") from error
    if not -math.inf < low < high < math.inf:
        raise ConfigError(f"takes the lower number first, found '{text}'")
    return low, high


def _stage(text: str) -> Any:
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"is no JSON: {error}") from error


# What the value of an option is: the annotation of a type and its range, or what reads it.
_KINDS: dict[str, Any] = {
    "run_id": Name,
    "device": Annotated[
        str, Predicate(_is_device), doc("cpu, cuda or different GPU numbers such as 2,3")
    ],
    # What these may be is the config's rule, and told with its other problems.
    **dict.fromkeys(("set", "switch"), parse_set),
    "lr": _learning_rate,
    "bs": lambda text: Override("--bs", ("batch_size",), json_or_text(text)),
    **dict.fromkeys(("criterion", "selector"), _stage),
    **dict.fromkeys(HELPER_OPTIONS, json_or_text),
    **dict.fromkeys(("budget", "seed", "cycle", "patients", "size"), int),
    **dict.fromkeys(_FILES, Path),
    "fps": Literal["0.5", "1", "2", "4", "8", "16"],
    "threshold": Annotated[float, Interval(ge=0, le=1)],
    "window": _window,
    "seeds": _seeds,
    **dict.fromkeys(("first", "overlays"), Count),
    **dict.fromkeys(("jobs", "images N", "project"), Positive),
    "action": Literal["push", "pull"],
    "hidden_fraction": float,
    "dataset": Literal["deeplesion"],
    "split": Literal["test", "val"],
    "unmarked": Literal["empty", "pending"],
    "pad": Annotated[float, Ge(0)],
}
