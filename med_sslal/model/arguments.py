"""What a detector's arguments must satisfy together, before anything is built."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from med_sslal.model.backbone import BackboneSpec
from med_sslal.utils.names import unknown

Problem = tuple[str, str]


def problems_of(
    args: Mapping[str, Any], backbones: Mapping[str, BackboneSpec]
) -> Iterator[Problem]:
    """Everything wrong with a complete set of arguments, each of the right type and range.

    Yields:
        An argument's name and a sentence about it.
    """
    name, pretrained, norm = args["backbone_name"], args["pretrained"], args["norm"]
    spec = backbones.get(name)
    if spec is None:
        yield "backbone_name", unknown("backbone", name, backbones)
    if pretrained is False and norm == "frozen":
        yield "norm", "frozen norm without pretrained weights does nothing: use batch or group"
    if pretrained is False and args["trainable_layers"] is not None:
        yield "trainable_layers", "without pretrained weights every layer learns: leave it null"
    if pretrained is True and norm == "group":
        yield "norm", "ImageNet weights come with batch-norm statistics: use frozen or batch"
    if isinstance(pretrained, str) and args["load_pretrained"] and not Path(pretrained).is_file():
        yield "pretrained", f"no weights file '{pretrained}'"
    if spec is not None:
        yield from _of_stages(args, spec)


def _of_stages(args: Mapping[str, Any], spec: BackboneSpec) -> Iterator[Problem]:
    """Stages, weights and levels that the backbone does not have."""
    fpn, returned, sizes = args["fpn"], args["returned_layers"], args["anchor_sizes"]
    n_stages, trainable = len(spec.stages), args["trainable_layers"]
    stages = list(spec.returned_stages if returned is None else returned)
    n_levels = len(stages) + 1 if fpn else 1
    if trainable is not None and trainable > n_stages:
        yield "trainable_layers", f"must lie in 0 to {n_stages}, found {trainable}"
    if not fpn and returned is not None:
        yield "returned_layers", "belongs to the FPN: set fpn true or leave it null"
    elif not stages or stages != sorted(set(stages) & set(range(1, n_stages))):
        yield "returned_layers", f"must ascend within 1 to {n_stages - 1}, found {stages}"
    if spec.weights is None and args["pretrained"] is True:
        yield "pretrained", f"backbone {args['backbone_name']} has no ImageNet weights"
    if sizes is None and fpn and n_levels != 5:
        yield "anchor_sizes", f"has no default for {n_levels} levels: give one list each"
    elif sizes is not None and len(sizes) != n_levels:
        yield ("anchor_sizes", f"needs {n_levels} lists, one per feature level, found {len(sizes)}")
    elif len({len(level) for level in sizes or ()}) > 1:
        yield "anchor_sizes", "every level needs the same number of sizes"
