"""Look at a data set before a run: files, boxes, groups, and what suits them; or a first config."""

import re
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from med_sslal.base.base_dataset import BaseDataset
from med_sslal.cli.build import devices_of, image_size_of
from med_sslal.cli.called import called
from med_sslal.cli.checks import check_batch_norm
from med_sslal.cli.first_config import Form, config_text, find_form
from med_sslal.cli.registries import registries
from med_sslal.cli.train import build_setup
from med_sslal.config.jsonc import parse
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.signature import signature
from med_sslal.data.check import (
    DEEP,
    WHOLE_RANGE,
    WINDOW_KEY,
    Finding,
    Pixels,
    look_at_pixels,
    open_dataset,
)
from med_sslal.data.check_labels import Objects, counts, look_at_equal, look_at_labels, objects_of
from med_sslal.data.suggest import suggest_batch, suggest_image_size, suggest_window
from med_sslal.data.transforms import EvalTransform
from med_sslal.logger.logger import setup_logging
from med_sslal.model.anchors import ANCHOR_RULE, grid_of, reached, suggest_anchors
from med_sslal.report.check_page import Advice, Check, as_json, check_text, write_check_page
from med_sslal.trainer.new_folder import new_results
from med_sslal.utils.errors import ConfigError, UserError
from med_sslal.utils.util import atomic_write, write_versioned

FORMAT_VERSION = 1


def run(args: Namespace) -> int:
    """Look, write what was found, and print it; returns 2 where something is wrong, else 0."""
    setup_logging(1)
    started, target = time.monotonic(), args.write_config
    look: Callable[[], tuple[Check, str | None]]
    if args.images is None:
        config = ConfigParser.from_file(args.config, registries(), args.overrides)
        save_dir, name, source = config.get("trainer.save_dir"), config["name"], args.config
        look = partial(_check_config, config, fast=args.fast)
    else:
        if target.exists():
            raise UserError(f"{target} exists already: name another file with --write-config")
        if not target.parent.is_dir():
            raise UserError(f"there is no folder {target.parent} to write {target.name} into")
        save_dir, name, source = "exp_results", _name_of(args.images), str(args.images)
        form = find_form(args.images, args.dicom_key)
        look = partial(_check_folder, form, name, fast=args.fast)
    out = args.out or Path(save_dir) / name / f"check_{datetime.now():%Y%m%d_%H%M%S}"
    with new_results(out):
        check, text = look()
        page = write_check_page(check, out / "check.html", name, source, fast=args.fast)
        content = {"source": source, "fast": args.fast, **as_json(check)}
        write_versioned(out / "check.json", FORMAT_VERSION, content)
        if text is not None:
            atomic_write(target, text.encode())
    seconds = time.monotonic() - started
    # A file's name need not be UTF-8, which the terminal may insist on.
    told = check_text(check).encode(errors="backslashreplace").decode()
    sys.stdout.write(f"{told}\nchecked in {seconds:.0f} s; page: {page}\n")
    if text is not None and check.data is not None:
        following = f"go on with: {called('train')} -c {shlex.quote(str(target))}"
        if check.n("error"):
            following = f"mend the errors above, then {following}"
        elif refusal := _refusal(text, check.data):
            following = f"no training would start: {refusal}"
        sys.stdout.write(f"config: {target}; {following}\n")
    return 2 if check.n("error") else 0


def _check_config(config: ConfigParser, *, fast: bool) -> tuple[Check, None]:
    """Check the data set of a config against the rest of it; there is no new config."""
    args = config.get("dataset.args")
    data, findings = open_dataset(config.init_class("dataset"), args)
    if data is None:
        return Check(findings), None
    try:
        data.check_num_classes(config.get("arch.args.num_classes"))
    except ConfigError as error:
        findings.append(Finding("error", "config", str(error)))
    pixels = look_at_pixels(data.images, fast=fast)
    size = EvalTransform(image_size_of(config)).size
    objects = objects_of(data, size)
    advice = _advice(data, pixels, objects, size)
    for each in advice:
        each.now = args.get("window") if each.key == WINDOW_KEY else config[each.key]
    advice += _anchors(config, size, objects)
    return _whole(findings, data, pixels, objects, advice), None


def _check_folder(form: Form, name: str, *, fast: bool) -> tuple[Check, str | None]:
    """Check a folder, and make the text of a config for it; None where it cannot be opened."""
    cls = registries()["dataset"][form.type]
    # Of no effect where there are 8 bits; where there are more, the window is found below. DICOM
    # has its own.
    takes = "window" in signature(cls).arguments and not form.has_dicom
    wide = {"window": list(WHOLE_RANGE)} if takes else {}
    data, findings = open_dataset(cls, {**form.args, **wide})
    if data is None:
        return Check(findings), None
    pixels = look_at_pixels(data.images, fast=fast)
    advice = _advice(data, pixels, objects_of(data, (1, 1)), None)
    values = {each.key: each.suggested for each in advice}
    if DEEP in pixels.kinds and takes:
        window = values.get(WINDOW_KEY, list(WHOLE_RANGE))
        form = replace(form, args={**form.args, "window": window})
    plain = {"image_size": values["image_size"], "batch_size": values["batch_size"]}
    config = _parsed(config_text(name, form, data, **plain, anchor_sizes=None))
    size = EvalTransform(image_size_of(config)).size
    objects = objects_of(data, size)
    anchors = _anchors(config, size, objects)
    for each in anchors:
        # There is no config yet that has any.
        each.now = each.reached_now = None
    sides = anchors[0].suggested if anchors else None
    text = config_text(name, form, data, **plain, anchor_sizes=sides)
    _parsed(text)
    return _whole(findings, data, pixels, objects, [*advice, *anchors]), text


def _parsed(text: str) -> ConfigParser:
    """The config that a text is; checked, so that what is written can be used as it is."""
    return ConfigParser(parse(text, "the first config").value, registries())


def _refusal(text: str, data: BaseDataset) -> str | None:
    """What a training would say in place of starting; None where it would start."""
    config = _parsed(text)
    try:
        devices = devices_of(config, None)
        check_batch_norm(build_setup(config, data, devices, show_progress=False))
    except UserError as error:
        return str(error)
    return None


def _advice(
    data: BaseDataset, pixels: Pixels, objects: Objects, size: tuple[int, int] | None
) -> list[Advice]:
    """What suits the images; the batch is for a `size` of (height, width), None for the new one."""
    infos = data.images.infos
    shapes = np.array([info.orig_size for info in infos.values()], float)
    longer = np.array([max(infos[image_id].orig_size) for image_id in objects.image_ids], float)
    shorter = (objects.boxes[:, 2:] - objects.boxes[:, :2]).min(1) / longer[objects.image]
    shorter = shorter[objects.split != "test"]
    result = [Advice("image_size", *suggest_image_size(shapes, shorter))]
    known = data.labels.annotations
    n_labelled = sum(image_id in known for image_id in data.images.splits["train"])
    wanted: Any = result[0].suggested
    batch = suggest_batch(size or EvalTransform(wanted).size, n_labelled)
    result.append(Advice("batch_size", *batch))
    if pixels.histogram is not None:
        result.append(Advice(WINDOW_KEY, *suggest_window(pixels.histogram)))
    return result


def _anchors(config: ConfigParser, size: tuple[int, int], objects: Objects) -> list[Advice]:
    """Anchor sizes that the objects reach, beside the config's own; none where there is no such."""
    # Test is for measuring, not for choosing.
    boxes = objects.framed[objects.split != "test"]
    if not len(boxes):
        return []
    cls = config.init_class("arch")
    frame_only = {"load_pretrained": False} if "load_pretrained" in signature(cls).arguments else {}
    grid = grid_of(config.init_obj("arch", **frame_only), size)
    better = grid and suggest_anchors(grid, boxes)
    if grid is None or better is None:
        return []
    advice = Advice("arch.args.anchor_sizes", better.sizes, ANCHOR_RULE, grid.sizes)
    advice.reached = reached(better, boxes)
    advice.reached_now = reached(grid, boxes)
    return [advice]


def _whole(
    findings: list[Finding],
    data: BaseDataset,
    pixels: Pixels,
    objects: Objects,
    advice: list[Advice],
) -> Check:
    found = [*findings, *look_at_equal(data, pixels), *look_at_labels(data, objects)]
    found.sort(key=lambda finding: finding.level)
    return Check(found, data, pixels, counts(data, objects), advice)


def _name_of(folder: Path) -> str:
    """A name for runs on a folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", folder.resolve().name).strip("_") or "own"
