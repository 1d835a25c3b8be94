"""What a view shows, and what it must not show."""

import cv2
import numpy as np
import pytest
import torch

from med_sslal.base.base_data_loader import BaseDataLoader
from med_sslal.base.types import Annotation, Sample, UnlabelledSample
from med_sslal.data.dataset import DATASETS, LabelledView, UnlabelledView
from med_sslal.data.sampler import whole_batches
from med_sslal.data.transforms import AUGMENTATIONS, EvalTransform
from med_sslal.utils.errors import DataError, LabelAccessError

XML = """<annotation><size><width>40</width><height>32</height></size><object>
<name>cell</name><bndbox><xmin>{0}</xmin><ymin>5</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>
</object></annotation>"""


@pytest.fixture
def dataset(tmp_path):
    """Six pictures in Pascal VOC's form."""
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir()
    for i in range(6):
        image = np.random.default_rng(i).integers(0, 255, (32, 40, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "JPEGImages" / f"c{i}.png"), image)
        (tmp_path / "Annotations" / f"c{i}.xml").write_text(XML.format(i + 1))
    return DATASETS["PascalVOC"](str(tmp_path), eval_split=0.4)


def loader(view, n_workers=0):
    sampler = whole_batches(len(view), 2)
    return BaseDataLoader(view, batch_sampler=sampler, n_workers=n_workers)


def test_labelled_view(dataset):
    ids = ("c3", "c0")
    view = LabelledView(
        dataset.images, dataset.labels.annotations, ids, EvalTransform(40), frozenset({"c0"})
    )
    samples = [view[0, 0], view[1, 0]]
    assert all(isinstance(sample, Sample) for sample in samples)
    assert [sample.frame.info.image_id for sample in samples] == ["c3", "c0"]
    assert [sample.pseudo for sample in samples] == [False, True]
    assert samples[0].target.boxes.tolist() == [[3, 4, 20, 25]]
    assert samples[0].image.shape == (3, 40, 40)
    (batch,) = loader(view)
    assert batch.pseudo.tolist() == [False, True]
    assert torch.equal(batch.images[0], samples[0].image)


def test_labelled_view_keeps_no_other_label(dataset):
    view = LabelledView(dataset.images, dataset.labels.annotations, ("c1",), EvalTransform(40))
    assert set(view.labels) == {"c1"}


def test_labelled_view_needs_a_label(dataset):
    labels = {"c0": dataset.labels.annotations["c0"]}
    with pytest.raises(LabelAccessError, match="c1"):
        LabelledView(dataset.images, labels, ("c0", "c1"), EvalTransform(40))


def test_negative_image(dataset):
    view = LabelledView(dataset.images, {"c0": Annotation.empty()}, ("c0",), EvalTransform(40))
    (batch,) = loader(view)
    assert batch.targets[0].boxes.shape == (0, 4)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_pool_sample_refuses_its_label(dataset, n_workers):
    view = UnlabelledView(dataset.images, ("c0", "c5"), EvalTransform(40))
    sample = view[1, 0]
    assert isinstance(sample, UnlabelledSample)
    with pytest.raises(LabelAccessError, match="c5"):
        _ = sample.target
    (batch,) = loader(view, n_workers)
    assert batch.targets is None
    assert [frame.info.image_id for frame in batch.frames] == ["c0", "c5"]


@pytest.mark.parametrize("n_workers", [0, 1])
def test_damaged_file_is_named_in_the_main_process(dataset, n_workers):
    path = dataset.images.root / "JPEGImages" / "c4.png"
    path.write_bytes(path.read_bytes()[:100])
    view = UnlabelledView(dataset.images, ("c0", "c4"), EvalTransform(40))
    with pytest.raises(DataError, match=r"c4\.png is damaged"):
        list(loader(view, n_workers))


def reachable(thing, seen):
    """Every object that can be reached from `thing` by attributes and containers."""
    if id(thing) not in seen:
        seen[id(thing)] = thing
        for part in vars(thing).values() if hasattr(thing, "__dict__") else ():
            reachable(part, seen)
        if isinstance(thing, dict):
            reachable([*thing.keys(), *thing.values()], seen)
        elif isinstance(thing, list | tuple | set | frozenset):
            for part in thing:
                reachable(part, seen)
    return seen.values()


def test_nothing_that_can_be_reached_from_images_is_a_label(dataset):
    view = UnlabelledView(dataset.images, ("c0", "c5"), EvalTransform(40))
    assert not any(isinstance(each, Annotation) for each in reachable(view, {}))
    assert any(isinstance(each, Annotation) for each in reachable(dataset, {}))


def test_pseudo_labelled_images_are_changed_more_strongly(dataset):
    ids = ("c0", "c1")
    kinds = {name: AUGMENTATIONS[name](40, seed=0) for name in AUGMENTATIONS}
    view = LabelledView(
        dataset.images,
        dataset.labels.annotations,
        ids,
        kinds["TrainTransform"],
        frozenset({"c1"}),
        kinds["StrongTransform"],
    )
    for epoch in range(3):
        for position, name in enumerate(("TrainTransform", "StrongTransform")):
            image_id = ids[position]
            expected, _, _ = kinds[name](
                dataset.images.read(image_id),
                dataset.labels.annotations[image_id],
                dataset.images.infos[image_id],
                epoch,
            )
            assert torch.equal(view[position, epoch].image, expected)
