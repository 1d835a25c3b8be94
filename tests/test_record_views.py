"""Sections of the record beside the plain one: what they hold, share and refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from records import detections, header, info, random_detections, random_images, write_record

from med_sslal.al.record import COLUMNS, PoolRecord
from med_sslal.al.record_writer import RecordWriter
from med_sslal.utils.errors import DataError

PER_BOX = ("boxes", "labels", "scores", "class_probs", "proposals")
IMAGES = ("image_ids", "group_ids", "orig_sizes")


def with_features(images, width=5):
    return {
        name: replace(found, roi_features=torch.rand(len(found.scores), width))
        for name, found in images.items()
    }


def seen_again(generator, found):
    """Other boxes, scores and probabilities for the rows of `found`, as a view of the heads has."""
    other = random_detections(generator, found.class_probs.shape[1] - 1, n=len(found.scores))
    return replace(found, boxes=other.boxes, scores=other.scores, class_probs=other.class_probs)


def write_views(path, *, shard_size=512):
    generator = np.random.default_rng(2)
    images = with_features(random_images(generator, 13, 3))
    views = {
        "flip": random_images(generator, 13, 3),
        "dropout_1": {name: seen_again(generator, found) for name, found in images.items()},
    }
    shuffled = {name: images[name] for name in generator.permutation(list(images)).tolist()}
    write_record(
        path, shuffled, views=views, columns=("roi_features",), shard_size=shard_size, n_classes=3
    )
    return images, views


def rows_of(section, row):
    return slice(section.offsets[row], section.offsets[row + 1])


@pytest.mark.parametrize("shard_size", [1, 4, 100])
def test_every_view_comes_back_sorted_by_id_whatever_the_shards(tmp_path, shard_size):
    images, views = write_views(tmp_path / "record", shard_size=shard_size)
    record = PoolRecord.open(tmp_path / "record")
    assert list(record.sections) == ["plain", "flip", "dropout_1"]
    plain, flip, dropout = (record.section(view) for view in record.sections)
    for row, name in enumerate(sorted(images)):
        kept = images[name].scores.numpy() >= 0.05
        np.testing.assert_array_equal(
            record.column("roi_features")[rows_of(plain, row)], images[name].roi_features[kept]
        )
        found = views["flip"][name]
        own = found.scores.numpy() >= 0.05
        for column in PER_BOX:
            wanted = getattr(found, column).numpy()[own]
            np.testing.assert_array_equal(getattr(flip, column)[rows_of(flip, row)], wanted)
        again = views["dropout_1"][name]
        for column in PER_BOX:
            wanted = getattr(again, column).numpy()[kept]
            np.testing.assert_array_equal(getattr(dropout, column)[rows_of(plain, row)], wanted)
    assert dropout.offsets.tolist() == plain.offsets.tolist() != flip.offsets.tolist()


def test_what_views_have_in_common_is_stored_once(tmp_path):
    write_views(tmp_path / "record")
    files = {
        folder.name: {path.stem for path in folder.iterdir()}
        for folder in (tmp_path / "record").iterdir()
        if folder.is_dir()
    }
    assert files == {
        "plain": {*COLUMNS, "roi_features"},
        "flip": set(COLUMNS) - set(IMAGES),
        "dropout_1": {"boxes", "scores", "class_probs"},
    }
    record = PoolRecord.open(tmp_path / "record")
    for section in record.sections.values():
        assert all(isinstance(getattr(section, name), np.memmap) for name in COLUMNS)
    assert isinstance(record.column("roi_features"), np.memmap)
    assert record.section("flip").image_ids is record.section("plain").image_ids


def test_rows_of_the_heads_have_no_floor_of_their_own(tmp_path):
    plain = detections([0.9, 0.06, 0.01])
    again = replace(plain, scores=torch.tensor([0.02, 0.5, 0.8]))
    record = write_record(
        tmp_path / "record", {"a": plain}, views={"dropout_1": {"a": again}, "flip": {"a": again}}
    )
    assert record.section("dropout_1").scores.tolist() == pytest.approx([0.02, 0.5])
    assert record.section("flip").scores.tolist() == pytest.approx([0.5, 0.8])


def test_blocks_cut_every_view_and_the_features_at_the_same_images(tmp_path):
    write_views(tmp_path / "record")
    record = PoolRecord.open(tmp_path / "record")
    blocks = list(record.blocks(4))
    for view, section in record.sections.items():
        for name in ("boxes", "scores", "image_ids"):
            joined = np.concatenate([getattr(block.section(view), name) for block in blocks])
            np.testing.assert_array_equal(joined, getattr(section, name))
    joined = np.concatenate([block.column("roi_features") for block in blocks])
    np.testing.assert_array_equal(joined, record.column("roi_features"))


@pytest.mark.parametrize("images", [{}, {"a": detections([])}], ids=["no image", "no detection"])
def test_an_empty_record_has_its_views(tmp_path, images):
    featured = with_features(images)
    record = write_record(
        tmp_path / "record",
        featured,
        views={"flip": images, "dropout_1": images},
        columns=("roi_features",),
        labelled={"l": detections([0.5])},
    )
    for section in record.sections.values():
        assert len(section) == len(images)
        assert section.boxes.shape == (0, 4) and section.class_probs.shape == (0, 2)
    assert record.column("roi_features").shape == (0, 5 if images else 0)


def test_large_detections_make_small_shards(tmp_path):
    big = replace(detections([0.9, 0.8]), roi_features=torch.rand(2, 2**23))
    with RecordWriter(tmp_path / "record", header(), columns=("roi_features",)) as writer:
        for name in "abc":
            writer.add(info(name), big)
            assert (
                len(list((tmp_path / ".record.partial").glob("shard_*"))) == "abc".index(name) + 1
            )


WRONG_VIEWS = {
    "one too few": ({"flip": detections([0.5])}, "found views"),
    "an unknown one": (
        {"flip": detections([0.5]), "dropout_1": detections([0.5]), "x": detections([0.5])},
        "found views",
    ),
    "rows that are not plain's": (
        {"flip": detections([]), "dropout_1": detections([0.5, 0.4])},
        "image a: view dropout_1 has 2 rows, plain has 1",
    ),
}


@pytest.mark.parametrize(("others", "words"), WRONG_VIEWS.values(), ids=WRONG_VIEWS)
def test_views_that_do_not_fit_are_refused(tmp_path, others, words):
    with (
        pytest.raises(ValueError, match=words),
        RecordWriter(tmp_path / "r", header(), views=("flip", "dropout_1")) as writer,
    ):
        writer.add(info("a"), detections([0.5]), others)


def test_features_that_were_not_recorded_are_named(tmp_path):
    found = with_features({"a": detections([0.5])})
    record = write_record(tmp_path / "record", found)
    assert record.section("plain").roi_features is None
    with pytest.raises(DataError, match=r"record .*record has no roi_features: score the pool"):
        _ = record.column("roi_features")


def test_a_record_of_an_older_format_is_refused(tmp_path):
    path = tmp_path / "record"
    write_record(path, random_images(np.random.default_rng(4), 6, 1))
    content = json.loads((path / "header.json").read_text())
    (path / "header.json").write_text(json.dumps({**content, "format_version": 1}))
    with pytest.raises(DataError, match="format_version 1, this program reads from"):
        PoolRecord.open(path)


def other_rows(folder):
    np.save(folder / "dropout_1/scores.npy", np.zeros(2, dtype=np.float32))


def unknown_shared(folder):
    content = json.loads((folder / "header.json").read_text())
    content["shared"]["flip"] += ["masks"]
    (folder / "header.json").write_text(json.dumps(content))


DAMAGE = {
    "rows of the heads": (other_rows, "dropout_1/scores.npy"),
    "missing column": (lambda folder: (folder / "flip/offsets.npy").unlink(), "flip/offsets.npy"),
    "missing features": (
        lambda folder: (folder / "plain/roi_features.npy").unlink(),
        "roi_features.npy",
    ),
    "an unknown shared column": (unknown_shared, "header.json"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_view_is_refused(tmp_path, damage, words):
    write_views(tmp_path / "record")
    damage(tmp_path / "record")
    with pytest.raises(DataError, match=words):
        PoolRecord.open(tmp_path / "record")
