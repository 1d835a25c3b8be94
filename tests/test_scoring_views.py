"""Views of the scoring pass: boxes come back, batch mates do not matter, rows stay aligned."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from med_sslal.al import views as room
from med_sslal.al.pool import Pool
from med_sslal.al.record import COLUMNS, OPTIONAL_COLUMNS, PLAIN, RecordHeader
from med_sslal.al.scoring import record_pool, see
from med_sslal.al.views import View, change, parse_views
from med_sslal.base.types import Batch, Extras, Frame, ImageInfo, UnlabelledSample
from med_sslal.data.transforms import EvalTransform
from med_sslal.model.detectors import FasterRCNN
from med_sslal.model.inference import evaluating, infer
from med_sslal.model.parallel import gather_outputs, output_to, part_to, scatter_parts
from med_sslal.model.transform import to_original
from med_sslal.utils.errors import ConfigError, UserError
from med_sslal.utils.train_util import random_states

FULL = ("flip", "noise_1", "noise_2", "cutout", "downsize", "rotate")
HEADS = ("dropout_1", "dropout_2", "dropout_3")
SIDE = 64
CPU = torch.device("cpu")
OPTIONAL = tuple(OPTIONAL_COLUMNS)


def view_of(name: str) -> View:
    [view] = parse_views([name])
    return view


def sample(image_id: str, size: tuple[int, int]) -> UnlabelledSample:
    """Noise with two bright squares, letterboxed to SIDE x SIDE."""
    draw = np.random.default_rng(sum(image_id.encode()))
    picture = draw.random((*size, 3), dtype=np.float32) / 2
    for x, y in draw.integers(4, min(size) - 20, (2, 2)):
        picture[y : y + 14, x : x + 14] = 1
    info = ImageInfo(image_id, image_id, image_id, size)
    image, _, frame = EvalTransform(SIDE)(picture, None, info, 0)
    return UnlabelledSample(image, frame)


def samples(n: int) -> list[UnlabelledSample]:
    sizes = ((64, 64), (96, 128), (120, 70), (32, 30))
    return [sample(f"image{number}", sizes[number % len(sizes)]) for number in range(n)]


def detector(**args) -> FasterRCNN:
    torch.manual_seed(0)
    model = FasterRCNN(
        **{
            "num_classes": 4,
            "backbone_name": "mobilenet_v3_large",
            "norm": "group",
            "anchor_sizes": ((8,), (12,), (16,), (24,), (32,)),
            "rpn_pre_nms_top_n_test": 60,
            "rpn_post_nms_top_n_test": 30,
            "fpn_channels": 64,
            "box_head_size": 32,
            "box_score_thresh": 0.1,
            "box_detections_per_img": 12,
            "box_head_dropout": 0.3,
            **args,
        }
    )
    # Fresh heads give every RoI nearly the same scores and boxes.
    with evaluating(model, None), torch.no_grad():
        found = infer(
            model, Batch.collate(samples(4)), Extras(columns=("roi_features",))
        ).detections
        features = torch.cat([item.roi_features for item in found])
        predictor = model.roi_heads.box_predictor
        for layer, std in ((predictor.cls_score, 1.5), (predictor.bbox_pred, 1.0)):
            output = layer(features) - layer.bias
            factor = std / (output - output.mean(0)).std()
            layer.weight.mul_(factor)
            layer.bias.copy_(-output.mean(0) * factor)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    return detector()


def score(path, model, n=5, *, batch_size=3, shuffled=False, views=(*FULL, *HEADS), **more):
    """A record of n images and one labelled image."""
    pictures = samples(n)
    if shuffled:
        random.Random(5).shuffle(pictures)
    batches = [
        Batch.collate(pictures[start : start + batch_size]) for start in range(0, n, batch_size)
    ]
    labelled = [Batch.collate([sample("labelled", (64, 64))])]
    pool = Pool(("labelled",), tuple(sorted(item.frame.info.image_id for item in pictures)))
    header = RecordHeader("data", "model", "config", ("a", "b", "c"))
    more["views"] = views
    seen = see(model, batches, CPU, None, **more), see(model, labelled, CPU, None)
    return record_pool(pool, *seen, path, header, **more)


# What a view is.


@pytest.mark.parametrize("name", FULL)
def test_a_view_changes_the_picture_and_not_the_padding_or_the_given_batch(name):
    batch = Batch.collate(samples(4))
    before = batch.images.clone()
    images, frames = change(view_of(name), batch.images, batch.frames)
    assert torch.equal(batch.images, before)
    assert images.shape == before.shape and images.dtype == torch.float32
    # Resizing may overshoot by rounding.
    assert images.min() >= 0 and images.max() <= 1 + 1e-6
    for row, frame in enumerate(frames):
        assert frame.info == batch.frames[row].info
        height, width = (int(side) for side in frame.valid_size)
        outside = images[row].clone()
        outside[:, :height, :width] = 0
        assert not outside.any()
        assert not torch.equal(images[row], before[row])


def marked(size, box):
    """A black picture with one white box, and its frame: scale 2, shifted by (10, 20)."""
    image = torch.zeros(1, 3, 80, 100)
    x1, y1, x2, y2 = box
    image[:, :, y1:y2, x1:x2] = 1
    height, width = size
    info = ImageInfo("a", "a", "a", (2 * height + 20, 2 * width + 10))
    affine = torch.tensor([[2.0, 0.0, 10.0], [0.0, 2.0, 20.0]])
    return (
        image,
        Frame(info, affine),
        torch.tensor([[x1 * 2 + 10, y1 * 2 + 20, x2 * 2 + 10, y2 * 2 + 20.0]]),
    )


def white_box(image):
    """Around what is whiter than grey, edges at pixel borders."""
    rows, columns = (image[0, 0] > 0.5).nonzero(as_tuple=True)
    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return torch.tensor([[float(end) for end in ends]])


@pytest.mark.parametrize(
    ("name", "slack"),
    [
        pytest.param("flip", 0.0, id="flip is exact"),
        # Rounding to whole pixels of the small picture: 2.5 ORIGINAL pixels each.
        pytest.param("downsize", 1.3, id="downsize"),
        # 12 x 20 pixels turned by 5 degrees reach 1.7 and 1.0 pixels further.
        pytest.param("rotate", 2.1, id="rotate"),
        pytest.param("noise_1", 0.0, id="noise moves nothing"),
    ],
)
@pytest.mark.parametrize("at", [(20, 15), (3, 44), (58, 4)], ids=["middle", "below", "right"])
def test_a_known_box_comes_back_to_its_place(name, slack, at, monkeypatch):
    monkeypatch.setattr(room, "NOISE_SIGMA", 0.05)
    x, y = at
    image, frame, expected = marked((70, 80), (x, y, x + 20, y + 12))
    images, [moved] = change(view_of(name), image, [frame])
    found = white_box(images)
    if name in ("flip", "downsize", "rotate"):
        assert not torch.equal(found, white_box(image))
    [back] = to_original(found, moved)
    assert back[0] < back[2] and back[1] < back[3]
    [wanted] = expected
    centre = (back[:2] + back[2:]) / 2 - (wanted[:2] + wanted[2:]) / 2
    # Centres lie within half an ORIGINAL pixel, but for the rounding to whole model pixels.
    assert centre.abs().max() <= (0 if slack == 0 else 1.3)
    assert (back - wanted).abs().max() <= 2 * slack


@pytest.mark.parametrize("name", ["flip", "downsize", "rotate", "cutout", "noise_3"])
def test_a_round_trip_of_boxes_is_exact(name):
    """Boxes carried into the changed picture by the inverse affine come back as they were."""
    boxes = torch.tensor([[30.0, 40, 70, 60], [60, 50, 90, 150], [80, 70, 81, 72]])
    image, frame, _ = marked((70, 80), (0, 0, 1, 1))
    _, [moved] = change(view_of(name), image, [frame])
    full = torch.cat([moved.to_original.double(), torch.tensor([[0.0, 0, 1]]).double()])
    inverse = full.inverse()
    centres = (boxes[:, :2] + boxes[:, 2:]).double() / 2 @ inverse[:2, :2].T + inverse[:2, 2]
    scale = full[:2, :2].square().sum(0).sqrt()
    half = (boxes[:, 2:] - boxes[:, :2]).double() / 2 / scale
    seen = torch.cat([centres - half, centres + half], 1).float()
    back = to_original(seen, moved)
    torch.testing.assert_close(back, boxes, atol=1e-3, rtol=0)


def test_flip_mirrors_about_the_picture_and_not_about_the_padding():
    image, frame, _ = marked((70, 80), (0, 10, 5, 20))
    images, [moved] = change(view_of("flip"), image, [frame])
    assert white_box(images).tolist() == [[75, 10, 80, 20]]
    assert moved.valid_size == (70, 80)
    twice, [again] = change(view_of("flip"), images, [moved])
    assert torch.equal(twice, image)
    torch.testing.assert_close(again.to_original, frame.to_original)


def test_noise_has_its_sigma_and_differs_between_copies_and_images():
    frames = [
        replace(item.frame, info=replace(item.frame.info, image_id=name))
        for name, item in zip("aab", [sample("x", (64, 64))] * 3, strict=True)
    ]
    grey = torch.full((3, 3, SIDE, SIDE), 0.5)
    first, _ = change(view_of("noise_1"), grey, frames)
    second, _ = change(view_of("noise_2"), grey, frames)
    assert (first - 0.5).std() == pytest.approx(room.NOISE_SIGMA, rel=0.05)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2]) and not torch.equal(first[0], second[0])


def test_cutout_blackens_the_same_holes_each_time():
    batch = Batch.collate([sample("one", (64, 64)), sample("two", (64, 64))])
    white = torch.ones_like(batch.images)
    first, _ = change(view_of("cutout"), white, batch.frames)
    again, _ = change(view_of("cutout"), white, batch.frames)
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])
    black = (first == 0).all(1).float().mean((1, 2))
    assert (black > 0.005).all() and (black <= 0.08).all()


WRONG_NAMES = ["flop", "noise", "noise_0", "noise_x", "noise_01", "flip_1", "dropout", "dropout_"]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_an_unknown_view_is_named(name):
    with pytest.raises(ConfigError, match=f"unknown view '{name}'.*Allowed: flip, noise_1, cutout"):
        parse_views(["plain", name])


def test_names_of_views_are_taken_apart():
    found = parse_views(["plain", "noise_12", "dropout_1", "flip", "noise_12"])
    assert found == (("noise_12", "noise", 12), ("dropout_1", "dropout", 1), ("flip", "flip", 0))
    assert [view.is_full for view in found] == [True, False, True]


# What a pass with views records.


@pytest.fixture(scope="module")
def record(model, tmp_path_factory):
    return score(tmp_path_factory.mktemp("views") / "record", model, columns=OPTIONAL)


def test_there_is_something_to_look_at(record):
    for section in record.sections.values():
        assert len(section.scores) > 2 * len(section)
        assert len(np.unique(section.labels)) > 1


@pytest.mark.parametrize(
    "case", [(1, False), (4, True)], ids=["one by one", "other batches, shuffled"]
)
def test_batch_mates_and_order_do_not_matter(case, model, record, tmp_path):
    batch_size, shuffled = case
    other = score(tmp_path / "r", model, batch_size=batch_size, shuffled=shuffled, columns=OPTIONAL)
    for name, section in record.sections.items():
        found = other.section(name)
        assert found.offsets.tolist() == section.offsets.tolist(), name
        assert found.labels.tolist() == section.labels.tolist(), name
        for column in ("boxes", "scores", "class_probs", "proposals", "embeddings"):
            np.testing.assert_allclose(
                getattr(found, column), getattr(section, column), atol=2e-3, rtol=1e-4, err_msg=name
            )
    for column in OPTIONAL:
        np.testing.assert_allclose(other.column(column), record.column(column), atol=2e-3)


def test_other_views_leave_the_plain_section_as_it_is(model, record, tmp_path):
    alone = score(tmp_path / "r", model, views=())
    assert list(alone.sections) == [PLAIN]
    for name in COLUMNS:
        np.testing.assert_array_equal(
            getattr(alone.section(PLAIN), name), getattr(record.section(PLAIN), name)
        )
    np.testing.assert_array_equal(alone.labelled_embeddings, record.labelled_embeddings)


def test_the_model_and_the_random_state_are_left_as_they_were(model, tmp_path):
    model.train()
    before = random_states()["torch"]
    score(tmp_path / "r", model, 2)
    assert model.training and model.extras == Extras()
    assert torch.equal(before, random_states()["torch"])
    model.eval()


@pytest.mark.parametrize("name", FULL)
def test_detections_of_a_changed_image_are_in_original_pixels(name, record):
    section = record.section(name)
    sizes = section.orig_sizes[section.owners]
    for boxes in (section.boxes, section.proposals):
        assert (boxes[:, 2:] >= boxes[:, :2]).all() and boxes.min() >= 0
        assert (boxes[:, 2] <= sizes[:, 1]).all() and (boxes[:, 3] <= sizes[:, 0]).all()


def test_a_mirrored_file_shows_in_flip_what_the_file_shows_in_plain(model):
    """Equal pixels give equal detections; `flip` brings them back by itself."""
    batch = Batch.collate(samples(3))
    mirrored = batch.images.clone()
    for row, frame in enumerate(batch.frames):
        width = round(frame.info.orig_size[1] / float(frame.to_original[0, 0]))
        mirrored[row, :, :, :width] = mirrored[row, :, :, :width].flip(-1)
    images, frames = change(view_of("flip"), mirrored, batch.frames)
    assert torch.equal(images, batch.images)
    with evaluating(model, None):
        plain = infer(model, batch).detections
        back = infer(model, replace(batch, images=images, frames=frames)).detections
    for frame, one, other in zip(batch.frames, plain, back, strict=True):
        assert len(one.boxes)
        width = frame.info.orig_size[1]
        for boxes, found in ((one.boxes, other.boxes), (one.proposals, other.proposals)):
            wanted = torch.stack(
                [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1
            )
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
        torch.testing.assert_close(one.embedding, other.embedding)


# Views of the heads.


def test_rows_of_the_heads_are_the_plain_ones_seen_again(record):
    plain = record.section(PLAIN)
    rows = np.arange(len(plain.labels))
    for name in HEADS:
        section = record.section(name)
        assert section.proposals is plain.proposals and section.labels is plain.labels
        np.testing.assert_array_equal(section.scores, section.class_probs[rows, plain.labels])
        np.testing.assert_allclose(section.class_probs.sum(1), 1, atol=1e-5)
        assert not np.array_equal(section.scores, plain.scores)
    first, second = (record.section(name) for name in HEADS[:2])
    assert not np.array_equal(first.scores, second.scores)
    assert not np.array_equal(first.boxes, second.boxes)


def test_a_pass_repeats_and_has_its_number_alone(model, record, tmp_path):
    again = score(tmp_path / "r", model, views=("dropout_3",))
    for column in ("boxes", "scores", "class_probs"):
        np.testing.assert_array_equal(
            getattr(again.section("dropout_3"), column),
            getattr(record.section("dropout_3"), column),
        )


def test_a_pass_is_the_second_stage_under_its_masks(model):
    """A literal second stage over the plain detections' own proposals."""
    [item] = samples(1)
    batch = Batch.collate([item])
    with evaluating(model, None), torch.no_grad():
        output = infer(model, batch, Extras(head_passes=(7,)))
        [plain], [[seen]] = output.detections, output.head_passes
        network = model.transform(batch.images, batch.frames)
        features, _ = model.backbone(network.tensors)
        heads, sources = model.roi_heads, plain.proposals
        pooled = heads.box_roi_pool(features, [sources], network.image_sizes)
        first, second = heads.box_head.mask(item.frame.info.image_id, 7)
        hidden = heads.box_head.fc6(pooled.flatten(1)).relu() * first
        logits, deltas = heads.box_predictor(heads.box_head.fc7(hidden).relu() * second)
        boxes = heads.box_coder.decode(deltas, [sources])
    rows = torch.arange(len(sources))
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    torch.testing.assert_close(seen.class_probs, logits.softmax(-1), atol=1e-5, rtol=1e-4)
    wanted = boxes[rows, plain.labels].clamp(0, SIDE)
    torch.testing.assert_close(seen.boxes, wanted, atol=1e-3, rtol=1e-4)
    assert torch.equal(seen.labels, plain.labels)


def test_passes_over_no_detection_are_empty(model):
    batch = Batch.collate(samples(2))
    strict = copy.deepcopy(model)
    strict.roi_heads.score_thresh = 1.0
    with evaluating(strict, None):
        output = infer(strict, batch, Extras(columns=OPTIONAL, head_passes=(1, 2)))
    for item in (*output.detections, *output.head_passes[0], *output.head_passes[1]):
        assert item.boxes.shape == (0, 4) and item.class_probs.shape == (0, 4)
    assert output.detections[0].roi_features.shape == (0, 32)
    assert output.detections[0].refined_boxes.shape == (0, 4)


@pytest.mark.parametrize("n", [2, 3])
def test_parts_of_a_batch_give_the_extras_of_one_device(model, n):
    """What ListDataParallel does, on the CPU: replicas are copies with the same attributes."""
    batch = Batch.collate(samples(3))
    extras = Extras(columns=OPTIONAL, head_passes=(1, 2))
    with evaluating(model, None), torch.no_grad():
        whole = infer(model, batch, extras)
        replica = model._replicate_for_data_parallel()
        assert replica.extras == Extras()
        model.extras = extras
        parts = [part_to(part, CPU) for part in scatter_parts(batch.images, None, batch.frames, n)]
        found = gather_outputs([model(*part) for part in parts], CPU)
        assert model._replicate_for_data_parallel().extras == extras
        model.extras = Extras()
    found = output_to(found, CPU)
    pairs = [(whole.detections, found.detections)]
    pairs += zip(whole.head_passes, found.head_passes, strict=True)
    assert len(pairs) == 3
    for ones, others in pairs:
        for one, other in zip(ones, others, strict=True):
            assert len(one.boxes) == len(other.boxes) > 0
            torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=1e-4)
    for one, other in zip(whole.detections, found.detections, strict=True):
        for column in OPTIONAL:
            seen = getattr(one, column), getattr(other, column)
            torch.testing.assert_close(*seen, atol=1e-3, rtol=1e-3)


def test_passes_run_in_low_precision_with_fp32_boxes(model):
    batch = Batch.collate(samples(2))
    with evaluating(model, torch.bfloat16):
        output = infer(model, batch, Extras(head_passes=(1,)))
    for item in output.head_passes[0]:
        assert item.boxes.dtype == item.class_probs.dtype == torch.float32


# Dropout in the box head.


def test_dropout_has_the_stock_names_and_acts_in_training_alone():
    with_dropout, without = detector(), detector(box_head_dropout=0.0)
    assert with_dropout.state_dict().keys() == without.state_dict().keys()
    with_dropout.load_state_dict(without.state_dict())
    images = Batch.collate(samples(2)).images
    with torch.no_grad():
        for one, other in zip(
            with_dropout(images).detections, without(images).detections, strict=True
        ):
            assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
        pooled = torch.rand(3, 64, 7, 7)
        heads = with_dropout.roi_heads.box_head, without.roi_heads.box_head
        assert torch.equal(heads[0](pooled), heads[1](pooled))
        trained = [head.train()(pooled) for head in heads]
    assert torch.equal(heads[1].eval()(pooled), trained[1])
    assert (trained[0] == 0).float().mean() > (trained[1] == 0).float().mean()


def test_passes_without_dropout_are_refused_and_leave_no_record(model, tmp_path):
    stock = copy.deepcopy(model)
    stock.roi_heads.box_head.dropout = 0.0
    with pytest.raises(UserError, match=r"need arch\.args\.box_head_dropout above 0, found 0\.0"):
        score(tmp_path / "r", stock, 2, views=("dropout_1",))
    assert list(tmp_path.iterdir()) == []


def test_optional_columns_are_recorded_for_the_plain_view_alone(record):
    for column, width in (("roi_features", 32), ("refined_boxes", 4)):
        assert record.column(column).shape == (len(record.section(PLAIN).scores), width)
        assert isinstance(record.column(column), np.memmap)
        assert all(getattr(record.section(name), column) is None for name in (*FULL, *HEADS))
