"""What a check of a data set found: as text, as JSON and as a page."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from med_sslal.base.base_dataset import BaseDataset
from med_sslal.config.values import show
from med_sslal.data.check import Finding, Pixels
from med_sslal.data.check_labels import SIZE_NAMES
from med_sslal.report.pages import render, write_page
from med_sslal.report.run_choices import draw_picture
from med_sslal.utils.errors import DataError
from med_sslal.utils.text_table import text_table
from med_sslal.utils.util import python_generator

# Of one kind in a terminal, and in all on a page; the JSON file has every one.
_MOST_LINES, _MOST_ROWS = 20, 1000
# Pictures of a page: with a finding, and of each split.
_N_FOUND, _N_OF_SPLIT = 24, 12
_N_SIZES = 8


@dataclass
class Advice:
    """A value that suits a key of the config, and why."""

    key: str
    suggested: Any
    rule: str
    now: Any = None
    reached: float | None = None  # of anchors: share of the objects that have one
    reached_now: float | None = None


@dataclass
class Check:
    """All that was found; without a data set only why it cannot be opened."""

    findings: list[Finding]
    data: BaseDataset | None = None
    pixels: Pixels = field(default_factory=Pixels)
    counts: Mapping[str, Any] = field(default_factory=dict)
    advice: list[Advice] = field(default_factory=list)

    def n(self, level: str) -> int:
        """How many findings of a level there are."""
        return sum(finding.level == level for finding in self.findings)

    @property
    def shapes(self) -> list[tuple[tuple[int, int], int]]:
        """(height, width) of the images and how many have it, the most common first."""
        if self.data is None:
            return []
        return Counter(info.orig_size for info in self.data.images.infos.values()).most_common()

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Objects of each class by size, over all splits."""
        result: dict[str, Counter[str]] = {}
        for split in self.counts.values():
            for name, own in split["classes"].items():
                result.setdefault(name, Counter(dict.fromkeys(SIZE_NAMES, 0))).update(own)
        return {name: dict(own) for name, own in result.items()}


def as_json(check: Check) -> dict[str, Any]:
    """The content of check.json."""
    return {
        "errors": check.n("error"),
        "warnings": check.n("warning"),
        "findings": [asdict(finding) for finding in check.findings],
        "splits": check.counts,
        "shapes": [{"height": h, "width": w, "images": n} for (h, w), n in check.shapes],
        "pixels": {
            kind: {"images": n, "range": check.pixels.ranges.get(kind)}
            for kind, n in check.pixels.kinds.items()
        },
        "suggestions": [asdict(advice) for advice in check.advice],
    }


def check_text(check: Check) -> str:
    """Tables and findings for a terminal."""
    return "\n\n".join(_blocks(check))


def _blocks(check: Check) -> Iterator[str]:
    if check.counts:
        names = [name for split in check.counts.values() for name in split["classes"]]
        classes = list(dict.fromkeys(names))
        columns = ("images", "groups", "labelled", "without_object", "objects", "ignore_regions")
        rows = [
            [name, *(str(own[key]) for key in columns)]
            + [str(sum(own["classes"][each].values())) for each in classes]
            for name, own in check.counts.items()
        ]
        head = [column.replace("_", " ") for column in columns]
        yield text_table([["split", *head, *classes], *rows], "<>")
        if any(own["objects"] for own in check.counts.values()):
            sizes = [[name, *map(str, own.values())] for name, own in check.sizes.items()]
            yield text_table([["px at image_size", *SIZE_NAMES], *sizes], "<>")
        shapes = check.shapes
        shown = [f"{h} x {w} ({n})" for (h, w), n in shapes[:_N_SIZES]]
        more = [f"{len(shapes) - _N_SIZES} other sizes"] * (len(shapes) > _N_SIZES)
        yield f"height x width: {', '.join(shown + more)}\npixels: {', '.join(_kinds(check))}"
    if check.advice:
        yield "\n".join(_told(advice) for advice in check.advice)
    for level in ("error", "warning"):
        kinds = dict.fromkeys(each.kind for each in check.findings if each.level == level)
        for kind in kinds:
            texts = [e.text for e in check.findings if (e.level, e.kind) == (level, kind)]
            more = [f"... and {len(texts) - _MOST_LINES} more in check.json"]
            lines = texts[:_MOST_LINES] + more * (len(texts) > _MOST_LINES)
            yield "\n  ".join([f"{level}, {kind}: {len(texts)}", *lines])
    yield f"{check.n('error')} error(s), {check.n('warning')} warning(s)"


def _kinds(check: Check) -> Iterator[str]:
    for kind, n in check.pixels.kinds.items():
        values = check.pixels.ranges.get(kind)
        yield f"{n} {kind}" + (f", {values[0]:g} to {values[1]:g}" if values else "")


def _told(advice: Advice) -> str:
    now, new = _value(advice.now, advice.reached_now), _value(advice.suggested, advice.reached)
    same = advice.now == advice.suggested
    head = f"{advice.key}: {now}; " if advice.now is not None and not same else f"{advice.key}: "
    return f"{head}suggested {new}\n  ({advice.rule})"


def _value(value: Any, reach: float | None) -> str:
    return show(value) + ("" if reach is None else f", which {reach:.1%} of the objects reach")


def write_check_page(check: Check, path: Path, name: str, source: str, *, fast: bool) -> Path:
    """Write the page, which needs no other file; UserError where it cannot be written."""
    sections: dict[str, tuple[str, Any]] = {"findings": ("Findings", {"most": _MOST_ROWS})}
    if check.data is not None:
        sections["counts"] = ("Images and objects", {"size_names": SIZE_NAMES})
        sections["suggestions"] = ("What suits this data", {"value": _value})
        sections["pictures"] = ("Pictures", _pictures(check, check.data))
    page = render(
        "check.html.j2", title=name, check=check, source=source, fast=fast, sections=sections
    )
    return write_page(path, page)


def _pictures(check: Check, data: BaseDataset) -> dict[str, Any]:
    """Images with a finding, and of each split some drawn at random."""
    reasons: dict[str, str] = {}
    for finding in check.findings:
        for image_id in finding.image_ids[:2]:
            reasons.setdefault(image_id, f"{finding.level}: {finding.text}"[:200])
    groups = {"With a finding": list(_drawn(data, reasons, _N_FOUND))}
    for split, ids in data.images.splits.items():
        rest = [image_id for image_id in ids if image_id not in reasons]
        generator = python_generator("check", split)
        some = sorted(generator.sample(rest, min(_N_OF_SPLIT, len(rest))))
        own = {image_id: _caption(data, image_id) for image_id in some}
        groups[f"{split}, drawn at random"] = list(_drawn(data, own, _N_OF_SPLIT))
    return {"groups": {heading: own for heading, own in groups.items() if own}}


def _drawn(data: BaseDataset, captions: Mapping[str, str], most: int) -> Iterator[dict[str, Any]]:
    n = 0
    for image_id, caption in captions.items():
        if n == most:
            return
        try:
            shown = draw_picture(data, image_id, None)
        except DataError:
            # Told as a finding already.
            continue
        n += 1
        item = {"image_id": image_id, "rank": 0, "reason": caption}
        yield {"item": item, "others": {}, **shown}


def _caption(data: BaseDataset, image_id: str) -> str:
    """What is known of an image: patient and classes."""
    label, names = data.labels.annotations.get(image_id), data.labels.class_names
    group = data.images.infos[image_id].group_id
    patient = "" if group == image_id else f"group {group}; "
    if label is None:
        return f"{patient}no label"
    found = Counter(names[number - 1] for number in label.labels[~label.ignore].tolist())
    return patient + (", ".join(f"{n} {name}" for name, n in found.items()) or "no object")
