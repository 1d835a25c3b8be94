"""`med-sslal import`: a person's answers to a query, from files of their tool into the journal."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from med_sslal.cli.build import build_dataset, moved_config
from med_sslal.cli.status import next_steps, progress_of
from med_sslal.config.overrides import Override
from med_sslal.data.bad_samples import ListedError
from med_sslal.data.pictures import PictureImages
from med_sslal.practice.answers import Answer, Query
from med_sslal.practice.corrections import left_as_shown
from med_sslal.practice.formats.label_studio import NEWEST
from med_sslal.practice.journal import Journal, Told, open_journal, read_journal
from med_sslal.practice.oracle import Progress
from med_sslal.practice.query_folder import read_query
from med_sslal.practice.returned import read_returned
from med_sslal.report.correction_page import write_corrections
from med_sslal.trainer.run_folder import CycleFolder, RunFolder
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import read_json, sha256_file


@dataclass
class Returned:
    """What files say of a query's images."""

    answers: dict[str, Answer] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)  # SHA-256 of the file, by image id.
    files: list[Mapping[str, Any]] = field(default_factory=list)


def run(args: Namespace) -> int:
    """Bring answers into the journal, or take some back; returns the exit code."""
    folder = args.query.resolve()
    query, run = _query_of(folder)
    journal = read_journal(run.answers, query.class_names)
    if args.withdraw:
        returned = _withdrawn(args, query, journal)
    else:
        returned = _returned(args, query, run, journal)
    new = _changes(returned, journal)
    if args.dry_run:
        told = Told(query.query_id, tuple(returned.files), tuple(new))
        after = Journal((*journal.imports, told))
        progress = Progress.of([image.image_id for image in query.images], after)
        sys.stdout.write(f"{_summary(new, journal)}; so far nothing is changed (--dry-run)\n")
        sys.stdout.write(f"query {query.query_id} of cycle {query.cycle}: {progress}\n")
        return 0
    if new:
        with open_journal(run.answers, query.class_names) as writer:
            # Another import may have come in between.
            journal = writer.journal
            new = _changes(returned, journal)
            if new:
                told = Told(query.query_id, tuple(returned.files), tuple(new))
                writer.add(told, returned.sources)
    sys.stdout.write(f"{_summary(new, journal)}\n")
    # Even if nothing is new: a kill may have come before it.
    own = read_journal(run.answers, query.class_names).of(query.query_id)
    page = write_corrections(folder, query, own.standing())
    sys.stdout.write(f"what was corrected: {page}\n")
    newest = [cycle.query for cycle in run.cycles() if cycle.query is not None][-1]
    if newest != folder:
        sys.stdout.write(f"{progress_of(folder, run)[0]}\n")
    sys.stdout.write(next_steps(run))
    return 0


def _query_of(folder: Path) -> tuple[Query, RunFolder]:
    """The query in a folder, and the run that asks it."""
    query, cycle = read_query(folder), CycleFolder.around(folder)
    if cycle is None:
        raise UserError(
            f"{folder} lies in no run: name the query's folder in the run that wrote it, "
            f"<run>/cycle_{query.cycle:02d}/query_{query.query_id}"
        )
    chosen, told = read_json(cycle.selection), ("cycle", "model_hash", "config_hash")
    # Not by its name: a run may be moved.
    if any(chosen.get(key) != getattr(query, key) for key in told):
        raise UserError(
            f"{folder} is a query of cycle {query.cycle} of the run {query.run}, and not the one "
            f"that cycle {cycle.number} of {cycle.run} chose: name it where it was written"
        )
    return query, cycle.run


def _returned(args: Namespace, query: Query, run: RunFolder, journal: Journal) -> Returned:
    """What the files say, those left out that were imported before; or all that is wrong."""
    before_now, held = journal.of(query.query_id).imports, journal.standing()
    returned, problems = Returned(), []
    for path in args.file:
        if not path.is_file():
            problems.append(f"there is no file {path}")
            continue
        how = {"unmarked": args.unmarked, "reader": args.reader, "pad": _padding(args, query)}
        file = {"sha256": sha256_file(path), **how}
        if known := [told for told in before_now if file in told.files]:
            back = {one.image_id for told in known for one in told.answers} - held.keys()
            more = f"; {len(back)} of its answers are withdrawn: to put them back, submit them anew"
            text = f"{path} was imported before: nothing in it is taken again{more if back else ''}"
            sys.stdout.write(f"{text}\n")
            continue
        if file in returned.files:
            continue
        returned.files.append(file)
        try:
            answers = read_returned(path, query, unmarked=args.unmarked, reader=args.reader)
        except DataError as error:
            problems.append(str(error))
            continue
        if not answers:
            text = f"{path} has no answer to query {query.query_id}: all of its images are pending"
            problems.append(text)
        for answer in answers:
            answer = _adapted(answer, query, args)
            before = returned.answers.get(answer.image_id)
            if before is None or before.state == "in_progress":
                returned.answers[answer.image_id] = answer
                returned.sources[answer.image_id] = file["sha256"]
            elif answer.state != "in_progress" and not _same(before, answer):
                text = f"{path}: {answer.image_id} is answered otherwise than in a file before it"
                problems.append(text)
    problems += _changed_sources(returned.answers, query, run, args.overrides)
    if problems:
        raise ListedError("nothing is imported, because of what is wrong:", problems)
    return returned


def _padding(args: Namespace, query: Query) -> float:
    """Pixels by which boxes are widened: as the command says, or else the query."""
    return query.box_padding_px if args.pad is None else args.pad


def _adapted(answer: Answer, query: Query, args: Namespace) -> Answer:
    """An answer with the reader that the command names, and its boxes padded within the image.

    Boxes left as they were shown are not: they are as wide as those that training began with.
    """
    image = next(image for image in query.images if image.image_id == answer.image_id)
    pad = np.where(left_as_shown(image, answer), 0, _padding(args, query)).astype(np.float32)
    grown = answer.boxes + np.array([-1, -1, 1, 1], np.float32) * pad[:, None]
    boxes = np.clip(grown, 0, np.array([image.width, image.height] * 2, np.float32))
    named = "" if args.reader in (None, NEWEST) else args.reader
    return replace(answer, boxes=boxes, reader=answer.reader or named)


def _changed_sources(
    answers: Mapping[str, Answer], query: Query, run: RunFolder, overrides: Sequence[Override]
) -> list[str]:
    """Sentences on answered images whose file is not the one that the copy was made of."""
    if not answers:
        return []
    config = moved_config(read_json(run.config), run.config, overrides)
    images, problems = build_dataset(config, read_json(run.split)).images, []
    assert isinstance(images, PictureImages)
    for image in query.images:
        if image.image_id not in answers:
            continue
        there = image.image_id in images.infos and images.path(image.image_id).is_file()
        if not there or sha256_file(images.path(image.image_id)) != image.source_sha256:
            problems.append(
                f"{image.image_id}: its file {image.source} {'has changed' if there else 'is gone'}"
                " since the query was written: put it back, or its answer is of another image"
            )
    return problems


def _withdrawn(args: Namespace, query: Query, journal: Journal) -> Returned:
    """What takes the answers to the named images back."""
    asked, held = {image.image_id for image in query.images}, journal.standing()
    problems = [
        f"{name} {'has no answer' if name in asked else 'is no image of the query'}"
        for name in args.withdraw
        if name not in asked or name not in held
    ]
    if problems:
        raise ListedError("nothing is withdrawn:", problems)
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    back = [Answer(name, "withdrawn", *none, reader=args.reader or "") for name in args.withdraw]
    return Returned({answer.image_id: answer for answer in back})


def _changes(returned: Returned, journal: Journal) -> list[Answer]:
    """The answers that say something new: the same once more, or a draft after one, do not."""
    held = journal.standing()
    new = []
    for name, answer in returned.answers.items():
        before = held.get(name)
        late_draft = before is not None and answer.state == "in_progress"
        if not late_draft and (before is None or not _same(before, answer)):
            new.append(answer)
    return new


def _same(one: Answer, other: Answer) -> bool:
    """Whether two answers to an image say the same, in whatever order their boxes are."""
    rows = [
        sorted(zip(each.labels.tolist(), each.boxes.tolist(), strict=True)) for each in (one, other)
    ]
    return one.state == other.state and rows[0] == rows[1]


def _summary(new: Sequence[Answer], journal: Journal) -> str:
    if not new:
        return "nothing has changed: no answer is new"
    held = journal.standing()
    n_back = sum(answer.state == "withdrawn" for answer in new)
    if n_back:
        return f"{n_back} answer(s) withdrawn"
    n_drafts = sum(answer.state == "in_progress" for answer in new)
    n_other = sum(held[a.image_id].state != "in_progress" for a in new if a.image_id in held)
    drafts = f", and {n_drafts} draft(s) noted" if n_drafts else ""
    return f"{len(new) - n_drafts} answer(s) taken, {n_other} in place of an earlier one{drafts}"
