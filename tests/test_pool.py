"""The pool keeps its two sides apart and knows no label; the oracle tells them on request."""

import json

import numpy as np
import pytest

from med_sslal.al.oracle import SimulatedOracle
from med_sslal.al.pool import Pool
from med_sslal.base.types import Annotation
from med_sslal.utils.errors import DataError


def label(n, n_ignored=0):
    rows = n + n_ignored
    boxes = np.tile(np.array([0, 0, 5, 5], dtype=np.float32), (rows, 1))
    ignore = np.arange(rows) >= n
    return Annotation(boxes, np.ones(rows, dtype=np.int64), ignore)


def test_labelled_images_stay_in_the_order_of_labelling():
    pool = Pool((), ("d", "b", "a", "c"))
    after = pool.label(["c", "a"]).label(["b"])
    assert after.labelled == ("c", "a", "b")
    assert after.unlabelled == ("d",)
    assert pool.labelled == (), "a pool never changes in place"
    assert len(after) == len(pool) == 4


def test_order_of_the_unlabelled_ids_is_irrelevant():
    assert Pool((), ("b", "a", "c")) == Pool((), ("c", "b", "a"))


@pytest.mark.parametrize(
    ("labelled", "unlabelled"),
    [(("a",), ("a", "b")), (("a", "a"), ("b",)), ((), ("b", "b"))],
    ids=["on both sides", "twice labelled", "twice unlabelled"],
)
def test_an_id_cannot_occur_twice(labelled, unlabelled):
    with pytest.raises(ValueError, match="distinct"):
        Pool(labelled, unlabelled)


@pytest.mark.parametrize("ids", [["x"], ["a"], ["b", "b"]], ids=["unknown", "labelled", "twice"])
def test_only_unlabelled_images_can_be_labelled_once(ids):
    with pytest.raises(ValueError, match="only unlabelled"):
        Pool(("a",), ("b", "c")).label(ids)


def test_state_is_made_of_plain_containers_and_restores_the_pool():
    pool = Pool(("z", "a"), ("b", "c"), 2)
    state = json.loads(json.dumps(pool.state_dict()))
    assert Pool(**state) == pool and state.pop("answers") == 2
    texts = [text for names in state.values() for text in names]
    assert sorted(texts) == ["a", "b", "c", "z"], "ids and nothing else"


def test_the_oracle_tells_labels_in_the_order_asked_and_audits_what_it_knows():
    oracle = SimulatedOracle({"a": label(2, 1), "b": label(0), "c": label(3)})
    revealed = oracle.label(["b", "a"])
    assert list(revealed) == ["b", "a"]
    assert revealed["a"].n_objects == 2
    assert list(oracle.audit(["c", "z"])) == ["c"], "an audit takes what there is"


def test_the_oracle_refuses_unknown_ids():
    oracle = SimulatedOracle({"a": label(2)})
    with pytest.raises(DataError, match="'ghost'"):
        oracle.label(["a", "ghost"])
