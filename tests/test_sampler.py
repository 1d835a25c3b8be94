"""The order of an epoch."""

import pytest

from med_sslal.data.sampler import EpochBatchSampler, whole_batches
from med_sslal.utils.errors import ConfigError


def positions(sampler):
    return [[position for position, _ in batch] for batch in sampler]


def shuffled(n, n_pseudo, batch_size, seed=0, epoch=0, per_step=None):
    sampler = EpochBatchSampler(n, n_pseudo, batch_size, seed, per_step=per_step)
    sampler.set_epoch(epoch)
    return sampler


@pytest.mark.parametrize(
    ("n", "n_pseudo", "batch_size", "sizes"),
    [
        pytest.param(8, 0, 4, [4, 4], id="even"),
        pytest.param(10, 0, 4, [4, 4, 2], id="smaller last batch"),
        pytest.param(9, 0, 4, [4, 4], id="a single image sits out"),
        pytest.param(1, 0, 4, [1], id="a single image is all there is"),
        pytest.param(3, 0, 8, [3], id="fewer than a batch"),
        pytest.param(3, 0, 1, [1, 1, 1], id="batches of one"),
        pytest.param(8, 20, 4, [8, 8], id="as many pseudo on top"),
        pytest.param(6, 20, 4, [8, 6], id="smaller last batch with pseudo"),
        pytest.param(14, 1, 8, [9, 7], id="one pseudo image"),
        pytest.param(3, 2, 1, [2, 2, 2], id="one and one"),
    ],
)
def test_sizes(n, n_pseudo, batch_size, sizes):
    sampler = shuffled(n, n_pseudo, batch_size)
    batches = positions(sampler)
    assert [len(batch) for batch in batches] == sizes
    assert len(sampler) == len(sizes)
    labelled = [i for batch in batches for i in batch if i < n]
    assert len(set(labelled)) == len(labelled), "an epoch is ONE pass"
    assert len(labelled) == (n - 1 if (n, batch_size) == (9, 4) else n)
    assert all(len(set(batch)) == len(batch) for batch in batches)
    assert all(0 <= i < n + n_pseudo for batch in batches for i in batch)


def test_the_tail_has_labelled_images_alone():
    sampler = EpochBatchSampler(8, 6, 4, 0, tail=3)
    for epoch, wanted in enumerate([[4, 4], [4, 0], [0, 0]]):
        sampler.set_epoch(epoch)
        batches = positions(sampler)
        assert [sum(i >= 8 for i in batch) for batch in batches] == wanted
        assert [sampler.counts(number) for number in (0, 1)] == [(4, n) for n in wanted]
        assert [len(sampler.share(number)) for number in (0, 1)] == [4 + n for n in wanted]
        assert batches == [
            batch[: 4 + n]
            for batch, n in zip(positions(shuffled(8, 6, 4, epoch=epoch)), wanted, strict=True)
        ]


@pytest.mark.parametrize("n_pseudo", [1, 3, 40])
@pytest.mark.parametrize("per_step", [None, 1, 2, 9])
@pytest.mark.parametrize(("n", "batch_size"), [(8, 4), (9, 4), (10, 4), (3, 8), (5, 1), (1, 3)])
def test_no_arm_sees_fewer_labelled_images_a_step_than_its_baseline(
    n, batch_size, per_step, n_pseudo
):
    """The labelled images are those of the supervised training, step by step, in every epoch."""
    for epoch in range(3):
        baseline = positions(shuffled(n, 0, batch_size, epoch=epoch))
        arm = positions(shuffled(n, n_pseudo, batch_size, epoch=epoch, per_step=per_step))
        assert [[i for i in batch if i < n] for batch in arm] == baseline
        wanted = min(per_step or batch_size, n_pseudo)
        assert {sum(i >= n for i in batch) for batch in arm} == {wanted}


def test_pseudo_images_come_evenly():
    """Few pseudo-labelled images go round: each comes as often as the others, or once more."""
    batches = positions(shuffled(20, 5, 4, per_step=2))
    pseudo = [i for batch in batches for i in batch if i >= 20]
    counts = [pseudo.count(i) for i in range(20, 25)]
    assert len(pseudo) == 10
    assert counts == [2] * 5


def test_order_depends_on_seed_and_epoch_only():
    reference = positions(shuffled(40, 9, 8, seed=1, epoch=3))
    again = EpochBatchSampler(40, 9, 8, 1)
    for epoch in (0, 7):
        again.set_epoch(epoch)
        list(again)
    again.set_epoch(3)
    assert positions(again) == reference
    assert positions(again) == reference, "iterating twice changes nothing"
    assert positions(shuffled(40, 9, 8, seed=1, epoch=4)) != reference
    assert positions(shuffled(40, 9, 8, seed=2, epoch=3)) != reference
    assert {epoch for batch in again for _, epoch in batch} == {3}


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_resume_is_a_slice(start):
    sampler = shuffled(14, 3, 3, epoch=2)
    whole = list(sampler)
    assert len(whole) == 5
    sampler.set_start(start)
    assert list(sampler) == whole[start:]
    assert len(sampler) == 5, "the length is the whole epoch's"
    sampler.set_epoch(2)
    assert list(sampler) == whole


def test_start_beyond_the_epoch():
    with pytest.raises(ValueError, match=r"0\.\.2"):
        shuffled(8, 0, 4).set_start(3)


def test_refused():
    with pytest.raises(ConfigError, match="one labelled image"):
        EpochBatchSampler(0, 0, 4, 0)


@pytest.mark.parametrize(
    ("n", "batches"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(3, [[(0, 0), (1, 0)], [(2, 0)]], id="smaller last"),
        pytest.param(4, [[(0, 0), (1, 0)], [(2, 0), (3, 0)]], id="even"),
    ],
)
def test_sequential(n, batches):
    sampler = whole_batches(n, 2)
    assert list(sampler) == batches
    assert len(sampler) == len(batches)
