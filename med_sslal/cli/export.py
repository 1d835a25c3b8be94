"""`med-sslal export`: a run's detector as safetensors or ONNX, and what it takes to use it."""

import json
import sys
from argparse import Namespace
from importlib.util import find_spec

from med_sslal.cli.trained import load_trained
from med_sslal.model.detectors import FasterRCNN
from med_sslal.model.onnx_file import INPUT, OPSET, OUTPUTS, write_onnx
from med_sslal.trainer.new_folder import new_results
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import atomic_write, sha256_file, write_versioned

FORMAT_VERSION = 1
WEIGHTS, ONNX, MEANING = "model.safetensors", "model.onnx", "model.json"


def run(args: Namespace) -> int:
    """Write the files to `args.out`; returns the exit code."""
    for package in ("safetensors", *(["onnx"] if args.onnx else [])):
        if find_spec(package) is None:
            raise DataError(f"export needs the extra 'export': python -m pip install {package}")
    from safetensors.torch import save

    trained = load_trained(args.resume, "cpu")
    model = trained.model
    if args.onnx and not isinstance(model, FasterRCNN):
        raise DataError(
            "export --onnx writes FasterRCNN alone: the number of candidates of "
            f"{type(model).__name__} would be that of one image for all; leave --onnx out"
        )
    config = trained.config
    arch = config["arch"]
    if isinstance(arch["args"].get("pretrained"), str):
        arch["args"]["pretrained"] = WEIGHTS
    # Whatever the layout in memory: the format knows one.
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with new_results(args.out) as out:
        path = out.path / WEIGHTS
        atomic_write(path, save(weights, {"format": "pt"}))
        content = {
            "weights": WEIGHTS,
            "sha256": sha256_file(path),
            "arch": arch,
            # Label i is entry i - 1; 0 is background.
            "class_names": trained.class_names,
            # Height and width that an image is scaled to fit, with zeros to the right and below.
            "image_size": trained.resize.size,
            # Of values in [0, 1]; the detector itself applies them.
            "image_mean": arch["args"].get("image_mean"),
            "image_std": arch["args"].get("image_std"),
            # What values of 16 bits become 0 and 1.
            "window": config["dataset"]["args"].get("window"),
        }
        if isinstance(model, FasterRCNN) and args.onnx:
            size = trained.resize.size
            write_onnx(out.path / ONNX, model, size)
            content["onnx"] = {
                "file": ONNX,
                "sha256": sha256_file(out.path / ONNX),
                "opset": OPSET,
                "input": {INPUT: [1, 3, *size]},
                "outputs": OUTPUTS,
            }
        write_versioned(out.path / MEANING, FORMAT_VERSION, content)
    sys.stdout.write(f"{json.dumps(content['class_names'])}, {len(weights)} tensors: {args.out}\n")
    return 0
