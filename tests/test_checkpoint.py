"""Checkpoints: round trip, checksum, foreign files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from med_sslal.base.checkpoint import (
    load_checkpoint,
    newest_good,
    previous,
    save_checkpoint,
    sidecar,
    weights_hash,
)
from med_sslal.utils.errors import CheckpointError, UserError


def content() -> dict:
    return {
        "model": {"w": torch.arange(6.0)},
        "number": np.float32(0.5),
        "double": np.float64(0.25),
        "text": np.str_("a"),
        "array": np.arange(3),
        "names": ("a", "b"),
        "path": Path("x/y"),
    }


def test_round_trip_without_pickle(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pth", content())
    back = load_checkpoint(tmp_path / "c.pth")
    assert torch.equal(back["model"]["w"], torch.arange(6.0))
    assert (back["number"], back["double"], back["text"]) == (0.5, 0.25, "a")
    assert back["array"].tolist() == [0, 1, 2]
    assert back["names"] == ["a", "b"]
    assert back["path"] == "x/y"


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


FAULTS = {
    "flipped bit": flip_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "no sidecar": lambda path: sidecar(path).unlink(),
    "sidecar of no text": lambda path: sidecar(path).write_bytes(bytes(range(120, 250))),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_error_and_the_copy_before_serves(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "checkpoint_last.pth"
    save_checkpoint(path, {"turn": 1})
    save_checkpoint(path, {"turn": 2})
    FAULTS[fault](path)
    with pytest.raises(CheckpointError, match="checkpoint_last"):
        load_checkpoint(path)
    taken, found, complaints = newest_good([path, previous(path)])
    assert (taken, found["turn"], len(complaints)) == (previous(path), 1, 1)


def test_newer_format_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pth", {"format_version": 99})
    with pytest.raises(CheckpointError, match="format_version 99"):
        load_checkpoint(tmp_path / "c.pth")


def test_pickled_objects_are_not_run(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pth"
    torch.save({"format_version": 1, "bad": Path("x")}, path)
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        load_checkpoint(path, require_checksum=False)


def test_a_type_without_a_plain_form_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Generator"):
        save_checkpoint(tmp_path / "c.pth", {"g": torch.Generator()})


def test_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        save_checkpoint(tmp_path / "missing" / "c.pth", {})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_does_not_replace_the_good_copy_before_it(
    tmp_path: Path, fault: str
) -> None:
    path = tmp_path / "checkpoint_last.pth"
    for turn in (1, 2):
        save_checkpoint(path, {"turn": turn})
    FAULTS[fault](path)
    save_checkpoint(path, {"turn": 3})
    assert load_checkpoint(path)["turn"] == 3
    assert load_checkpoint(previous(path))["turn"] == 1


# A save renames four times: two checksums, the copy that is kept, the new file. It keeps no copy
# of a damaged file.
MOMENTS = [
    *(("none", moment) for moment in range(4)),
    *((fault, moment) for fault in FAULTS for moment in range(2)),
]


@pytest.mark.parametrize(("fault", "moment"), MOMENTS)
def test_one_copy_is_whole_at_every_moment(
    tmp_path: Path, fault: str, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint_last.pth"
    for turn in (1, 2):
        save_checkpoint(path, {"turn": turn})
    FAULTS.get(fault, lambda path: None)(path)
    good = 2 if fault == "none" else 1
    with monkeypatch.context() as patch:
        kill_at_replace(patch, moment)
        with pytest.raises(MemoryError):
            save_checkpoint(path, {"turn": 3})
    assert newest(path) == good
    save_checkpoint(path, {"turn": 4})
    assert newest(path) == 4 and load_checkpoint(previous(path))["turn"] == good


@pytest.mark.parametrize("moment", range(2))
def test_a_first_checkpoint_is_whole_or_not_there(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint_last.pth"
    kill_at_replace(monkeypatch, moment)
    with pytest.raises(MemoryError):
        save_checkpoint(path, {"turn": 1})
    assert not path.exists()


def kill_at_replace(patch: pytest.MonkeyPatch, number: int) -> None:
    """Die before the n-th rename, which is where a write takes effect."""
    replace, left = Path.replace, [number]

    def killed(source: Path, target: Path) -> Path:
        if left[0] == 0:
            raise MemoryError
        left[0] -= 1
        return replace(source, target)

    patch.setattr(Path, "replace", killed)


def newest(path: Path) -> int:
    """The turn of the newest good copy."""
    candidates = [name for name in (path, previous(path)) if name.exists()]
    return int(newest_good(candidates)[1]["turn"])


def test_weights_hash_knows_values_and_names_only() -> None:
    weights = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    same = weights_hash({"b": torch.ones(2, 2), "a": torch.arange(4.0)})
    assert weights_hash(weights) == same
    assert weights_hash({**weights, "b": torch.zeros(2, 2)}) != same
    assert weights_hash({"a": weights["a"], "c": weights["b"]}) != same
