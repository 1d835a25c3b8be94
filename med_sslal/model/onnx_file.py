"""A Faster R-CNN as an ONNX file, for programs without PyTorch."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from med_sslal.model.detectors import FasterRCNN

# The newest one that PyTorch's tracing exporter writes.
OPSET = 18
INPUT, OUTPUTS = "image", ("boxes", "labels", "scores")


class _OneImage(nn.Module):
    """Boxes, labels and scores of a batch of one image."""

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (found,) = self.model(images).detections
        return found.boxes, found.labels, found.scores


def write_onnx(path: Path, model: FasterRCNN, size: tuple[int, int]) -> None:
    """Write a detector for one image of (height, width), in float32.

    Input: `image` float32 [1, 3, H, W] in [0, 1]. Outputs: `boxes` float32 [N, 4] xyxy in its
    pixels, `labels` int64 [N], `scores` float32 [N], best first. The model stays as it is, but for
    its `autocast_dtype`, which becomes None.
    """
    model.autocast_dtype = None
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        # What the trace fixes hangs on the size of the image alone. (In RetinaNet it would not: its
        # levels give as many candidates as reach the least score.)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # Of the tracing exporter, and of what it calls.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        # Of torchvision's NMS, which a trace compiles.
        warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
        torch.onnx.export(
            _OneImage(model).eval(),
            (image,),
            path,
            # The other exporter cannot follow lists whose length hangs on what is in the image.
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "detections"} for name in OUTPUTS},
        )
