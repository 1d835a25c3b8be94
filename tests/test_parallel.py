"""DataParallel by lists: its pieces called on the CPU give what one device gives."""

import copy

import pytest
import torch
from torch import Tensor

from med_sslal.base.types import Frame, ImageInfo, ModelOutput, Target
from med_sslal.model.detectors import FasterRCNN, RetinaNet
from med_sslal.model.parallel import (
    ListDataParallel,
    gather_outputs,
    part_to,
    scatter_parts,
    unwrap,
)
from med_sslal.utils.arithmetic import arithmetic
from med_sslal.utils.errors import DeviceError

CPU = torch.device("cpu")
N_IMAGES = 5


TWO_STAGES = {
    "rpn_post_nms_top_n_train": 40,
    "rpn_post_nms_top_n_test": 40,
    "box_batch_size_per_image": 16,
    "box_head_size": 64,
}


@pytest.fixture(scope="module", params=[FasterRCNN, RetinaNet], ids=["two stages", "one stage"])
def model(request: pytest.FixtureRequest) -> FasterRCNN | RetinaNet:
    torch.manual_seed(0)
    detector = request.param(
        num_classes=3,
        backbone_name="resnet18",
        norm="group",
        fpn_channels=64,
        box_detections_per_img=30,
        **(TWO_STAGES if request.param is FasterRCNN else {}),
    )
    if request.param is RetinaNet:
        # Fresh weights give every anchor nearly the same score, and rounding would choose.
        torch.nn.init.normal_(detector.head.classification_head.cls_logits.weight, std=0.5)
    return detector


def batch() -> tuple[Tensor, list[Target], list[Frame]]:
    images = torch.rand(N_IMAGES, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    to_original = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    targets, frames = [], []
    for i in range(N_IMAGES):
        n = i % 3
        boxes = torch.tensor([[4.0 + i, 6.0, 30.0, 40.0], [40.0, 10.0, 60.0, 30.0 + i]])[:n]
        flags = torch.zeros(n, dtype=torch.bool)
        targets.append(Target(boxes, torch.arange(n) + 1, flags, ~flags))
        frames.append(Frame(ImageInfo(f"image-{i}", "p", "f", (128, 128)), to_original))
    return images, targets, frames


def by_parts(model: FasterRCNN | RetinaNet, images, targets, frames, n: int) -> ModelOutput:
    parts = [part_to(part, CPU) for part in scatter_parts(images, targets, frames, n)]
    return gather_outputs([model(*part) for part in parts], CPU)


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, [5]), (2, [2, 3]), (3, [1, 2, 2]), (5, [1] * 5), (8, [1] * 5)]
)
@pytest.mark.parametrize("as_list", [False, True], ids=["stacked", "list"])
def test_whole_images_are_dealt_out_in_order(n, sizes, as_list):
    images, targets, frames = batch()
    parts = scatter_parts(list(images) if as_list else images, targets, frames, n)
    assert [len(part[0]) for part in parts] == sizes
    assert torch.equal(torch.cat([torch.stack(list(part[0])) for part in parts]), images)
    assert [target for part in parts for target in part[1]] == targets
    assert [frame for part in parts for frame in part[2]] == frames


def test_unlabelled_images_have_no_targets_in_any_part():
    images, _, frames = batch()
    assert [part[1] for part in scatter_parts(images, None, frames, 2)] == [None, None]


@pytest.mark.parametrize("n", [2, 3, 5])
@torch.no_grad()
def test_parts_give_the_losses_and_detections_of_one_device(model, n):
    model.eval()
    whole = model(*batch())
    parts = by_parts(model, *batch(), n)
    assert set(parts.losses) == set(whole.losses)
    for name, value in whole.losses.items():
        torch.testing.assert_close(parts.losses[name], value, atol=1e-4, rtol=1e-3)
        # The mean weighs images alike, whatever the sizes of the parts.
        torch.testing.assert_close(parts.losses[name].mean(), value.mean(), atol=1e-4, rtol=1e-3)
    for one, other in zip(whole.detections, parts.detections, strict=True):
        assert len(one.boxes) > 0
        assert torch.equal(one.labels, other.labels)
        for name in ("boxes", "scores", "class_probs", "proposals", "embedding"):
            torch.testing.assert_close(
                getattr(one, name), getattr(other, name), atol=1e-3, rtol=1e-4
            )


def test_training_by_parts_gives_the_losses_and_gradients_of_one_device(model):
    """With samplers that take everything, nothing is left to chance between the two ways."""
    model = copy.deepcopy(model).train()
    if isinstance(model, FasterRCNN):
        for sampler in (model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler):
            sampler.batch_size_per_image = 100_000
    results = []
    for n in (1, 2):
        model.zero_grad()
        losses = by_parts(model, *batch(), n).losses
        sum(losses.values()).mean().backward()
        results.append((losses, [p.grad.clone() for p in model.parameters()]))
    for name, value in results[0][0].items():
        assert value.shape == (N_IMAGES,)
        torch.testing.assert_close(results[1][0][name], value, atol=1e-4, rtol=1e-3)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-2)


def test_low_precision_reaches_every_part(model):
    model.eval()
    model.autocast_dtype = torch.bfloat16
    with torch.no_grad():
        low = by_parts(model, *batch(), 2).detections
        model.autocast_dtype = None
        full = by_parts(model, *batch(), 2).detections
    for one, other in zip(low, full, strict=True):
        assert one.embedding.dtype == torch.float32
        assert not torch.equal(one.embedding, other.embedding)


def test_a_missing_gpu_is_an_error_and_no_fallback(model):
    n = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=f"{n} found"):
        ListDataParallel(model, [n, n + 1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_parts_on_a_gpu_give_what_the_wrapper_gives(model):
    model, gpu = copy.deepcopy(model).to("cuda:0").eval(), torch.device("cuda", 0)
    with arithmetic(deterministic=False):
        whole = ListDataParallel(model, [0])(*part_to(batch(), gpu))
        parts = [model(*part_to(part, gpu)) for part in scatter_parts(*batch(), 2)]
    joined = gather_outputs(parts, CPU)
    for name, value in whole.losses.items():
        torch.testing.assert_close(joined.losses[name], value.cpu(), atol=1e-3, rtol=1e-3)
    for one, other in zip(whole.detections, joined.detections, strict=True):
        assert len(one.boxes) == len(other.boxes) > 0
        torch.testing.assert_close(other.scores, one.scores.cpu(), atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_what_one_gives(model):
    images, targets, frames = batch()
    model = copy.deepcopy(model).to("cuda:0").eval()
    parallel = ListDataParallel(model, [0, 1])
    assert unwrap(parallel) is model
    with torch.no_grad(), arithmetic(deterministic=False):
        one = model(images.cuda(), [target.each(Tensor.cuda) for target in targets], frames)
        two = parallel(images.cuda(), [target.each(Tensor.cuda) for target in targets], frames)
    for name, value in one.losses.items():
        torch.testing.assert_close(two.losses[name], value, atol=1e-3, rtol=1e-3)


def test_unwrap_gives_the_detector(model):
    assert unwrap(model) is model
