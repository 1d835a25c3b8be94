"""The pool record: what goes in comes out, sorted by id, mapped from disk; damage is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from records import detections, header, info, random_detections, random_images, write_record

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.al.record import COLUMNS, PoolRecord
from med_sslal.al.record_writer import RecordWriter
from med_sslal.al.scoring import record_pool, see
from med_sslal.base.base_data_loader import BaseDataLoader
from med_sslal.base.base_dataset import Images
from med_sslal.base.types import ImageInfo
from med_sslal.data.dataset import UnlabelledView
from med_sslal.data.sampler import whole_batches
from med_sslal.data.transforms import EvalTransform
from med_sslal.model.detectors import FasterRCNN
from med_sslal.utils.errors import DataError, UserError

PER_BOX = ("boxes", "labels", "scores", "class_probs", "proposals")


@pytest.mark.parametrize("shard_size", [1, 4, 100])
@pytest.mark.parametrize("n_classes", [1, 10])
def test_everything_comes_back_sorted_by_id_whatever_the_order_and_shards(
    tmp_path, shard_size, n_classes
):
    generator = np.random.default_rng(1)
    images = random_images(generator, 17, n_classes)
    shuffled = {name: images[name] for name in generator.permutation(list(images)).tolist()}
    labelled = {name: random_detections(generator, n_classes) for name in ("z", "a")}
    write_record(
        tmp_path / "record",
        shuffled,
        labelled=labelled,
        shard_size=shard_size,
        n_classes=n_classes,
        class_counts={"class1": 3},
        class_difficulty={"class1": 0.5},
    )
    record = PoolRecord.open(tmp_path / "record")
    assert record.header == header(
        n_classes, class_counts={"class1": 3}, class_difficulty={"class1": 0.5}
    )
    assert record.labelled_ids == ("a", "z")
    expected = torch.stack([labelled["a"].embedding, labelled["z"].embedding]).numpy()
    np.testing.assert_array_equal(record.labelled_embeddings, expected)
    section = record.section("plain")
    assert section.image_ids.tolist() == sorted(images)
    assert section.group_ids[3] == f"patient_{section.image_ids[3]}"
    assert section.orig_sizes.tolist() == [[64, 80]] * 17
    for row, name in enumerate(sorted(images)):
        rows = slice(section.offsets[row], section.offsets[row + 1])
        keep = images[name].scores.numpy() >= 0.05
        for column in PER_BOX:
            wanted = getattr(images[name], column).numpy()[keep]
            np.testing.assert_array_equal(getattr(section, column)[rows], wanted)
        np.testing.assert_array_equal(section.embeddings[row], images[name].embedding)
        n_top = len(images[name].top_objectness)
        np.testing.assert_array_equal(
            section.top_proposals[row, :n_top], images[name].top_proposals
        )
        np.testing.assert_array_equal(
            section.top_objectness[row, :n_top], images[name].top_objectness
        )
        assert not section.top_proposals[row, n_top:].any()
        assert not section.top_objectness[row, n_top:].any()


def test_columns_are_mapped_and_not_read(tmp_path):
    record = write_record(tmp_path / "record", random_images(np.random.default_rng(0), 5, 1))
    section = record.section("plain")
    assert all(isinstance(getattr(section, name), np.memmap) for name in COLUMNS)


def test_blocks_hold_the_same_rows(tmp_path):
    record = write_record(tmp_path / "record", random_images(np.random.default_rng(5), 11, 1))
    whole = record.section("plain")
    blocks = list(whole.blocks(4))
    assert [len(block) for block in blocks] == [4, 4, 3]
    for name in COLUMNS:
        if name != "offsets":
            joined = np.concatenate([getattr(block, name) for block in blocks])
            np.testing.assert_array_equal(joined, getattr(whole, name))
    counts = np.concatenate([block.counts for block in blocks])
    np.testing.assert_array_equal(counts, whole.counts)


def test_detections_under_the_floor_are_left_out_and_those_on_it_kept(tmp_path):
    images = {"a": detections([0.9, 0.05, 0.0499]), "b": detections([0.01])}
    section = write_record(tmp_path / "record", images).section("plain")
    assert section.offsets.tolist() == [0, 2, 2]
    assert section.scores.tolist() == [np.float32(0.9), np.float32(0.05)]


@pytest.mark.parametrize("images", [{}, {"a": detections([])}], ids=["no image", "no detection"])
def test_an_empty_record_is_a_record(tmp_path, images):
    record = write_record(tmp_path / "record", images, labelled={"l": detections([0.5])})
    section = PoolRecord.open(tmp_path / "record").section("plain")
    assert len(section) == len(images)
    assert section.boxes.shape == (0, 4)
    assert section.class_probs.shape == (0, 2)
    assert record.labelled_embeddings.shape == (1, 2)


def test_an_interrupted_pass_leaves_nothing_and_keeps_the_old_record(tmp_path):
    write_record(tmp_path / "record", {"a": detections([0.5])})
    with (
        pytest.raises(RuntimeError, match="stop"),
        RecordWriter(tmp_path / "record", header(), shard_size=1) as writer,
    ):
        writer.add(info("b"), detections([0.6]))
        raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["record"]
    assert PoolRecord.open(tmp_path / "record").image_ids.tolist() == ["a"]


def test_a_new_record_replaces_the_old_one(tmp_path):
    write_record(tmp_path / "record", {"a": detections([0.5])})
    record = write_record(tmp_path / "record", {"b": detections([0.5])})
    assert record.image_ids.tolist() == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["record"]


def test_embeddings_of_other_lengths_are_refused_and_not_padded(tmp_path):
    images = {name: detections([0.5], embedding=[1.0] * n) for name, n in (("a", 3), ("b", 4))}
    with pytest.raises(ValueError, match="broadcast"):
        write_record(tmp_path / "record", images, shard_size=1)
    assert not (tmp_path / "record").exists()


@pytest.mark.parametrize("second", ["same side", "other side"])
def test_an_image_is_scored_once(tmp_path, second):
    with RecordWriter(tmp_path / "record", header(), shard_size=1) as writer:
        writer.add(info("a"), detections([0.5]))
        (writer.add if second == "same side" else writer.add_labelled)(info("a"), detections([0.5]))
        with pytest.raises(ValueError, match=r"added twice.* a"):
            writer.close()
    assert not (tmp_path / "record").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot write"):
        RecordWriter(tmp_path / "file" / "record", header())


def newer(folder):
    content = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**content, "format_version": 99}))


def truncate(folder):
    data = (folder / "plain/boxes.npy").read_bytes()
    (folder / "plain/boxes.npy").write_bytes(data[:-5])


def other_length(folder):
    np.save(folder / "plain/scores.npy", np.zeros(3, dtype=np.float32))


def other_dtype(folder):
    scores = np.load(folder / "plain/scores.npy")
    np.save(folder / "plain/scores.npy", scores.astype(np.float64))


def bad_offsets(folder):
    offsets = np.load(folder / "plain/offsets.npy")
    offsets[1:-1] = offsets[-1] + 1
    np.save(folder / "plain/offsets.npy", offsets)


DAMAGE = {
    "newer version": (newer, "format_version 99"),
    "truncated column": (truncate, "boxes.npy"),
    "missing column": (lambda folder: (folder / "plain/labels.npy").unlink(), "labels.npy"),
    "empty column": (lambda folder: (folder / "plain/boxes.npy").write_bytes(b""), "boxes.npy"),
    "other length": (other_length, "scores.npy"),
    "other dtype": (other_dtype, "float64"),
    "offsets run backwards": (bad_offsets, "offsets.npy"),
    "no header": (lambda folder: (folder / "header.json").unlink(), "header.json"),
    "header is no JSON": (lambda folder: (folder / "header.json").write_text("{"), "header.json"),
    "header is a list": (lambda folder: (folder / "header.json").write_text("[]"), "header.json"),
    "header without entries": (
        lambda folder: (folder / "header.json").write_text('{"format_version": 4}'),
        "header.json",
    ),
    "no labelled embeddings": (
        lambda folder: (folder / "labelled_embeddings.npy").unlink(),
        "labelled_embeddings",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_refused(tmp_path, damage, words):
    write_record(tmp_path / "record", random_images(np.random.default_rng(3), 6, 1))
    damage(tmp_path / "record")
    with pytest.raises(DataError, match=words):
        PoolRecord.open(tmp_path / "record")


def test_a_view_that_was_not_scored_is_named(tmp_path):
    record = write_record(tmp_path / "record", {"a": detections([0.5])})
    with pytest.raises(DataError, match="no view 'flip'"):
        record.section("flip")


class Pictures(Images):
    """Noise with one bright square, of three sizes; an Images without labels."""

    def __init__(self, ids):
        infos = {
            name: ImageInfo(name, name, name, (40 + 8 * (number % 3), 56))
            for number, name in enumerate(ids)
        }
        super().__init__(infos, {})

    def read(self, image_id):
        generator = np.random.default_rng(int(image_id))
        picture = generator.random((*self.infos[image_id].orig_size, 3), dtype=np.float32) / 2
        picture[10:25, 10:25] += 0.5
        return picture


def model():
    torch.manual_seed(0)
    return FasterRCNN(
        num_classes=3,
        backbone_name="mobilenet_v3_large",
        fpn=False,
        anchor_sizes=((8, 16, 32),),
        rpn_post_nms_top_n_test=50,
        fpn_channels=64,
        box_head_size=64,
        box_detections_per_img=10,
    )


def loader(images, ids, batch_size):
    view = UnlabelledView(images, ids, EvalTransform(64))
    return BaseDataLoader(view, batch_sampler=whole_batches(len(ids), batch_size))


def scored(path, pool, ids, batch_size, network):
    images = Pictures([*pool.labelled, *pool.unlabelled])
    streams = (
        see(network, loader(images, names, batch_size), torch.device("cpu"), None)
        for names in (ids, pool.labelled)
    )
    return record_pool(pool, *streams, path, header(2))


@pytest.mark.slow
def test_scoring_and_selection_do_not_depend_on_batch_size_and_order(tmp_path):
    ids = [str(number) for number in range(100, 116)]
    pool, network = Pool(tuple(ids[:4]), tuple(ids[4:])), model()
    first = scored(tmp_path / "1", pool, ids[4:], 1, network)
    section = first.section("plain")
    assert section.image_ids.tolist() == ids[4:]
    assert first.labelled_ids == tuple(ids[:4])
    assert section.counts.sum() > 0
    assert section.orig_sizes.tolist() == [[40 + 8 * (n % 3), 56] for n in range(4, 16)]
    chosen = set()
    for name, batch_size, order in (("3", 3, ids[4:]), ("8", 8, ids[:3:-1])):
        other = scored(tmp_path / name, pool, order, batch_size, network).section("plain")
        assert other.offsets.tolist() == section.offsets.tolist()
        np.testing.assert_allclose(other.boxes, section.boxes, atol=1e-3)
        np.testing.assert_allclose(other.embeddings, section.embeddings, atol=1e-4)
    for name in ("1", "3", "8"):
        helper = ActiveLearningHelper(4, 5, ["localization_tightness", "k_means_diversity"], seed=1)
        selection = helper.query(PoolRecord.open(tmp_path / name), pool, 5, 0)
        chosen.add(selection.image_ids)
    assert len(chosen) == 1


@pytest.mark.slow
def test_scoring_refuses_other_images_than_the_pools(tmp_path):
    pool = Pool(("100",), ("101", "102"))
    with pytest.raises(ValueError, match="not the pool's"):
        scored(tmp_path / "record", pool, ["101"], 2, model())
    assert list(tmp_path.iterdir()) == []


def test_detections_need_not_share_a_number_of_proposals(tmp_path):
    found = detections([0.5], top_proposals=[], top_objectness=[])
    more = replace(found, top_proposals=torch.ones(2, 4), top_objectness=torch.ones(2))
    section = write_record(tmp_path / "record", {"a": found, "b": more}, shard_size=1).section(
        "plain"
    )
    assert section.top_objectness.tolist() == [[0, 0], [1, 1]]
