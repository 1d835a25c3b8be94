"""What a detector's arguments must satisfy together, before anything is built."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from med_sslal.model.backbone import BackboneSpec
from med_sslal.utils.names import unknown

Problem = tuple[str, str]


def problems_of(args: Mapping[str, Any], backbones: Mapping[str, BackboneSpec]) -> list[Problem]:
    """Everything wrong with a complete set of arguments, each of the right type and range.

    Returns:
        Pairs of an argument's name and a sentence about it; empty if all is well.
    """
    spec = backbones.get(args["backbone_name"])
    problems = _norm_and_weights(args)
    if spec is None:
        told = unknown("backbone", args["backbone_name"], backbones)
        return [("backbone_name", told), *problems]
    return [*problems, *_stages(args, spec)]


def _norm_and_weights(args: Mapping[str, Any]) -> list[Problem]:
    """Weights that are missing or meet the wrong norm."""
    problems = []
    pretrained, norm = args["pretrained"], args["norm"]
    if pretrained is False and norm == "frozen":
        problems.append(
            ("norm", "frozen norm without pretrained weights does nothing: use batch or group")
        )
    if pretrained is False and args["trainable_layers"] is not None:
        problems.append(
            ("trainable_layers", "without pretrained weights every layer learns: leave it null")
        )
    if pretrained is True and norm == "group":
        problems.append(
            ("norm", "ImageNet weights come with batch-norm statistics: use frozen or batch")
        )
    if isinstance(pretrained, str) and args["load_pretrained"] and not Path(pretrained).is_file():
        problems.append(("pretrained", f"no weights file '{pretrained}'"))
    return problems


def _stages(args: Mapping[str, Any], spec: BackboneSpec) -> list[Problem]:
    """Stages and pyramid levels that the backbone does not have."""
    problems = []
    n_stages, trainable = len(spec.stages), args["trainable_layers"]
    if trainable is not None and trainable > n_stages:
        problems.append(("trainable_layers", f"must lie in 0 to {n_stages}, found {trainable}"))
    returned = args["returned_layers"]
    stages = list(spec.returned_stages) if returned is None else list(returned)
    if not args["fpn"] and returned is not None:
        problems.append(("returned_layers", "belongs to the FPN: set fpn true or leave it null"))
    elif not stages or stages != sorted(set(stages) & set(range(1, n_stages))):
        problems.append(
            ("returned_layers", f"must ascend within 1 to {n_stages - 1}, found {stages}")
        )
    if spec.weights is None and args["pretrained"] is True:
        problems.append(("pretrained", f"backbone {args['backbone_name']} has no ImageNet weights"))
    return [*problems, *_anchors(args, len(stages) + 1 if args["fpn"] else 1)]


def _anchors(args: Mapping[str, Any], n_levels: int) -> list[Problem]:
    """Anchor sizes that do not fit the levels."""
    sizes = args["anchor_sizes"]
    if sizes is None:
        if args["fpn"] and n_levels != 5:
            return [("anchor_sizes", f"has no default for {n_levels} levels: give one list each")]
        return []
    if len(sizes) != n_levels:
        text = f"needs {n_levels} lists, one per feature level, found {len(sizes)}"
        return [("anchor_sizes", text)]
    if len({len(level) for level in sizes}) != 1:
        return [("anchor_sizes", "every level needs the same number of sizes")]
    return []
