"""Weights from files and from torchvision's servers, with nothing left out in silence."""

from collections.abc import Mapping
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
    is_state = isinstance(content, Mapping) and len(content) > 0
    if not is_state or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no state dict (names of tensors)")
    return dict(content)


def load_pretrained_weights(
    model: nn.Module, spec: BackboneSpec, name: str, pretrained: bool | str
) -> None:
    """Load a weights file, or with true the ImageNet weights of the backbone `name`.

    A detector for another number of classes keeps its new classifier; the classifier of an
    ImageNet network has no place here. Everything else must fit.

    Raises:
        UserError: They cannot be downloaded.
        CheckpointError: They do not fit.
    """
    if isinstance(pretrained, str):
        source, state = pretrained, read_weights(Path(pretrained))
    else:
        source, state = f"ImageNet's {name}", _downloaded(spec)
    module, own = model, model.state_dict()
    if any(name.startswith("backbone.") for name in state):
        of_classes = [name for name in state if name.startswith(CLASS_LAYERS) and name in own]
        state |= {name: own[name] for name in of_classes if state[name].shape != own[name].shape}
    else:
        module = model.get_submodule("backbone.body")
        # Stages behind the last returned one are no part of the body.
        all_names = {name for stage in spec.stages for name in stage}
        unused = all_names - {name for name, _ in module.named_children()}
        left_out = ("fc.", "classifier.", *(f"{spec.weights_prefix}{name}." for name in unused))
        state = {
            name.removeprefix(spec.weights_prefix): value
            for name, value in state.items()
            if not name.startswith(left_out)
        }
    _load(module, state, source)


def _downloaded(spec: BackboneSpec) -> dict[str, Tensor]:
    """The ImageNet weights of a backbone, from torch's cache where they are there."""
    assert spec.weights is not None
    try:
        return dict(spec.weights.get_state_dict(progress=True, check_hash=True))
    # RuntimeError is what torch raises for a wrong hash.
    except (OSError, RuntimeError) as error:
        file_name = Path(urlsplit(spec.weights.url).path).name
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"arch.args.pretrained: cannot download {spec.weights.url} ({error}). Put {file_name} "
            f"into {cache}, give the path of a weights file, or set it to false"
        ) from error


def _load(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state`, turning every mismatch into one sentence."""
    own = module.state_dict()
    wrong = {
        "": [
            f"{name} {list(value.shape)} instead of {list(own[name].shape)}"
            for name, value in state.items()
            if name in own and value.shape != own[name].shape
        ]
    }
    if not wrong[""]:
        result = module.load_state_dict(state, strict=False)
        wrong = {"without ": result.missing_keys, "with unknown ": result.unexpected_keys}
    problems = [
        words + ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for words, names in wrong.items()
        if names
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the architecture: {'; '.join(problems)}")
