"""Weights from files and from torchvision's servers, with nothing left out in silence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from med_sslal.base.checkpoint import load_tensors
from med_sslal.model.backbone import BackboneSpec
from med_sslal.utils.errors import CheckpointError, UserError

# The layers whose shapes depend on the number of classes.
CLASS_LAYERS = (
    "roi_heads.box_predictor.cls_score.",
    "roi_heads.box_predictor.bbox_pred.",
    "head.classification_head.cls_logits.",
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict: bare, or under the key "model" as in this program's checkpoints.

    Raises:
        CheckpointError: The file is missing or holds no state dict.
    """
    content = load_tensors(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise CheckpointError(f"{path} holds no state dict (names of tensors)")
    return dict(content)


def load_pretrained_weights(
    model: nn.Module, spec: BackboneSpec, name: str, pretrained: bool | str
) -> None:
    """Load a weights file, or with true the ImageNet weights of the backbone `name`.

    Raises:
        UserError: They cannot be downloaded.
        CheckpointError: They do not fit.
    """
    if isinstance(pretrained, str):
        _load_weights(model, spec, read_weights(Path(pretrained)), pretrained)
        return
    assert spec.weights is not None
    try:
        state = spec.weights.get_state_dict(progress=True, check_hash=True)
    # RuntimeError is what torch raises for a wrong hash.
    except (OSError, RuntimeError) as error:
        file_name = Path(urlsplit(spec.weights.url).path).name
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"arch.args.pretrained: cannot download {spec.weights.url} ({error}). Put {file_name} "
            f"into {cache}, give the path of a weights file, or set it to false"
        ) from error
    _load_weights(model, spec, state, f"ImageNet's {name}")


def _load_weights(
    model: nn.Module, spec: BackboneSpec, state: Mapping[str, Tensor], source: str
) -> None:
    """Load a detector's state dict, or an ImageNet network's into the backbone.

    A detector for another number of classes keeps its new classifier; the classifier of an
    ImageNet network has no place here. Everything else must fit. `source` is for messages.
    """
    if any(name.startswith("backbone.") for name in state):
        own = model.state_dict()
        other_classes = [
            name
            for name, value in state.items()
            if name.startswith(CLASS_LAYERS) and name in own and value.shape != own[name].shape
        ]
        rest = {name: value for name, value in state.items() if name not in other_classes}
        _load(model, rest, source, other_classes)
        return
    body = model.get_submodule("backbone.body")
    # Stages behind the last returned one are no part of the body.
    all_names = {name for stage in spec.stages for name in stage}
    unused = all_names - {name for name, _ in body.named_children()}
    left_out = ("fc.", "classifier.", *(f"{spec.weights_prefix}{name}." for name in unused))
    rest = {
        name.removeprefix(spec.weights_prefix): value
        for name, value in state.items()
        if not name.startswith(left_out)
    }
    _load(body, rest, source, [])


def _load(
    module: nn.Module, state: Mapping[str, Tensor], source: str, may_miss: Sequence[str]
) -> None:
    """Load `state`, turning every mismatch into one sentence."""
    own = module.state_dict()
    shapes = [
        f"{name} {list(value.shape)} instead of {list(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if shapes:
        raise CheckpointError(f"{source} does not fit the architecture: {_some(shapes)}")
    result = module.load_state_dict(dict(state), strict=False)
    missing = [name for name in result.missing_keys if name not in may_miss]
    parts = (("without", missing), ("with unknown", result.unexpected_keys))
    problems = [f"{words} {_some(names)}" for words, names in parts if names]
    if problems:
        raise CheckpointError(f"{source} does not fit the architecture: {'; '.join(problems)}")


def _some(names: Sequence[str]) -> str:
    """The first three names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
