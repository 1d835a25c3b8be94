"""DICOM files: what values become, how images are named, and that nothing says whose they are."""

import csv
import json
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from tiny import files_of, quick_config, run_train, write_config

from med_sslal.__main__ import main
from med_sslal.data.image_folder import ImageFolder
from med_sslal.utils.errors import DataError

ROOT_UID = "1.2.826.0.1.3680043.9999"
# What stands in headers and file names and may stand nowhere else.
PLANTED = (
    "Mustermann",
    "KH-4711-PID",
    "19630417",
    "20240229",
    "ACC-0815",
    ROOT_UID,
    "St. Elsewhere",
)


def write_dicom(
    path: Path, pixels: np.ndarray, *, series: int = 1, number: int = 1, **more: Any
) -> Path:
    """A DICOM file with a hospital's header; `more` are attributes, None takes one away.

    `syntax` is its transfer syntax. Pixels are [H, W], [H, W, 3] or [F, H, W] (NumberOfFrames).
    """
    data, syntax = Dataset(), more.pop("syntax", ExplicitVRLittleEndian)
    bits = 8 * pixels.itemsize
    attributes = {
        "PatientName": "Mustermann^Erika", "PatientID": f"KH-4711-PID-{series}",
        "PatientBirthDate": "19630417", "StudyDate": "20240229", "AccessionNumber": "ACC-0815",
        "InstitutionName": "St. Elsewhere", "StudyInstanceUID": f"{ROOT_UID}.1.{series}",
        "SeriesInstanceUID": f"{ROOT_UID}.2.{series}", "InstanceNumber": number,
        "SOPInstanceUID": f"{ROOT_UID}.3.{series}.{number}",
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        "Rows": pixels.shape[-2], "Columns": pixels.shape[-1], "SamplesPerPixel": 1,
        "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PhotometricInterpretation": "MONOCHROME2",
    }  # fmt: skip
    if pixels.shape[-1] == 3:
        attributes |= {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB",
                       "PlanarConfiguration": 0, "Rows": pixels.shape[0],
                       "Columns": pixels.shape[1]}  # fmt: skip
    for name, value in (attributes | more).items():
        if value is not None:
            setattr(data, name, value)
    data.add_new((0x0009, 0x0010), "LO", "St. Elsewhere")
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPInstanceUID = f"{ROOT_UID}.3"
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data["PixelData"].VR = "OW" if bits > 8 else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    if syntax in (RLELossless, JPEG2000Lossless):
        data.compress(syntax, generate_instance_uid=False)
    else:
        data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=True)
    return path


def folder_of(root: Path, **more: Any) -> ImageFolder:
    return ImageFolder(str(root / "in"), dicom_key=str(root / "key"), **more)


RAMP = np.arange(36 * 40, dtype=np.int16).reshape(36, 40) - 900
HU = (RAMP.astype(np.float64) * 2 - 100 + 1000) / 2000
EIGHT = (np.arange(36 * 40) % 192).astype(np.uint8).reshape(36, 40)
RGB = np.stack([EIGHT, EIGHT + 20, EIGHT + 40], axis=2)
SLOPE = {"RescaleSlope": "2", "RescaleIntercept": "-100"}


def group(**items: Any) -> Sequence:
    inner = Dataset()
    for name, value in items.items():
        setattr(inner, name, value)
    return Sequence([inner])


def enhanced() -> Sequence:
    """Of the first frame no group of its own, of the second its own slope."""
    second = Dataset()
    second.PixelValueTransformationSequence = group(RescaleSlope="1", RescaleIntercept="0")
    return Sequence([Dataset(), second])


@pytest.mark.parametrize(
    ("pixels", "header", "window", "expected"),
    [
        (RAMP, SLOPE, (-1000, 1000), [HU]),
        (RAMP, {**SLOPE, "PhotometricInterpretation": "MONOCHROME1"}, (-1000, 1000),
         [1 - HU.clip(0, 1)]),
        (RAMP, {**SLOPE, "syntax": ExplicitVRBigEndian}, (-1000, 1000), [HU]),
        (RAMP, {**SLOPE, "syntax": ImplicitVRLittleEndian}, (-1000, 1000), [HU]),
        (RAMP, {**SLOPE, "syntax": RLELossless}, (-1000, 1000), [HU]),
        (RAMP, {**SLOPE, "syntax": JPEG2000Lossless}, (-1000, 1000), [HU]),
        # PS3.3 C.11.2.1.2: (x - (c - 0.5)) / (w - 1) + 0.5.
        (RAMP, {"WindowCenter": "40", "WindowWidth": "401"}, None, [(RAMP - 39.5) / 400 + 0.5]),
        (RAMP, {"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "LINEAR_EXACT"}, None,
         [(RAMP - 40.0) / 400 + 0.5]),
        (RAMP, {"WindowCenter": ["40", "50"], "WindowWidth": ["400", "90"]}, (-900, 1100),
         [(RAMP + 900) / 2000]),
        (EIGHT, {}, None, [EIGHT / 255]),
        (EIGHT, {"PhotometricInterpretation": "MONOCHROME1"}, (0, 9), [1 - EIGHT / 255]),
        (EIGHT // 2, {"BitsStored": 7, "HighBit": 6, "RescaleSlope": "-1"}, None,
         [1 - (EIGHT // 2) / 127]),
        (RGB, {}, None, [RGB / 255]),
        (RGB, {"syntax": JPEG2000Lossless}, None, [RGB / 255]),
        (np.stack([EIGHT, EIGHT[::-1]]), {"NumberOfFrames": "2"}, None,
         [EIGHT / 255, EIGHT[::-1] / 255]),
        (np.stack([RAMP, RAMP]), {"NumberOfFrames": "2", "syntax": RLELossless,
          "SharedFunctionalGroupsSequence": group(
              PixelValueTransformationSequence=group(**SLOPE),
              FrameVOILUTSequence=group(WindowCenter="0.5", WindowWidth="2001")),
          "PerFrameFunctionalGroupsSequence": enhanced()}, None, [HU, (RAMP + 1000) / 2000]),
    ],
    ids=["HU", "MONOCHROME1", "big endian", "implicit", "RLE", "JPEG 2000", "own window",
         "exact window", "two windows and one of the config", "8 bits", "8 bits, 0 is white",
         "7 bits",
         "RGB", "RGB in JPEG 2000", "frames", "enhanced"],
)  # fmt: skip
def test_values_become_grey(
    tmp_path: Path,
    pixels: np.ndarray,
    header: dict[str, Any],
    window: Any,
    expected: list[np.ndarray],
) -> None:
    write_dicom(tmp_path / "in" / "x", pixels, **header)
    images = folder_of(tmp_path, window=window).images
    found = [images.read(image_id) for image_id in images.infos]
    assert len(found) == len(expected)
    if window is not None:
        other = folder_of(tmp_path, window=(-7, 8)).images.windowed(window)
        assert all(map(np.array_equal, found, map(other.read, other.infos)))
    for each, wanted in zip(found, expected, strict=True):
        wanted = wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, axis=2)
        assert each.dtype == np.float32
        np.testing.assert_allclose(each, wanted.clip(0, 1), atol=1e-6)


def test_series_patients_and_positions(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for series in (1, 2):
        for number in (1, 2, 10):
            write_dicom(root / f"{series}" / f"{number}.dcm", EIGHT, series=series, number=number,
                        PatientID="KH-4711-PID", PixelSpacing=["0.7", "0.7"])  # fmt: skip
    write_dicom(root / "clip", np.stack([EIGHT] * 3), series=3, NumberOfFrames=3, PatientID=None)
    (root / "DICOMDIR").write_bytes((root / "clip").read_bytes())
    (root / "notes.txt").write_text("no image")
    images = folder_of(tmp_path).images
    infos = list(images.infos.values())
    assert len(infos) == 9
    slices = [info for info in infos if info.spacing_mm == 0.7]
    assert len({info.group_id for info in slices}) == 1 and len({i.group_id for i in infos}) == 2
    by_series = {info.series_id: [] for info in slices}
    for info in slices:
        by_series[info.series_id].append(info.slice_index)
        assert info.image_id.startswith(f"{info.series_id}/")
    assert list(by_series.values()) == [[1, 2, 10]] * 2, "ids are in the order of the series"
    frames = [info for info in infos if info.spacing_mm is None]
    assert [frame.slice_index for frame in frames] == [0, 1, 2]
    assert len({frame.series_id for frame in frames}) == 1
    by_folder = folder_of(tmp_path, group_pattern="^(.)").images.infos
    assert len({info.group_id for info in by_folder.values()}) == 3
    again, key = folder_of(tmp_path).images.fingerprint(), tmp_path / "key"
    assert again == images.fingerprint()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    (listed,) = tmp_path.glob("key.*.csv")
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600
    with listed.open(newline="") as stream:
        files = {row["name"]: row["file"] for row in csv.DictReader(stream)}
    for image_id in images.infos:
        assert images.path(image_id) == root / files[image_id]
    key.unlink()
    other = folder_of(tmp_path).images.infos.keys()
    assert not other & images.infos.keys(), "another key, other names"


def change(**elements: Any) -> Callable[[Path], None]:
    """Write a file of 16 bits with these attributes."""
    return lambda path: write_dicom(path, RAMP, **elements) and None


def cut(path: Path) -> None:
    whole = write_dicom(path, RAMP, WindowCenter="1", WindowWidth="9").read_bytes()
    path.write_bytes(whole[:-40])


def of_syntax(path: Path, uid: str) -> None:
    data = dcmread(write_dicom(path, RAMP, WindowCenter="1", WindowWidth="9"))
    data.PixelData = encapsulate([data.PixelData])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = uid
    data.save_as(path, implicit_vr=False, little_endian=True)


def without_pixels(path: Path) -> None:
    data = dcmread(write_dicom(path, RAMP))
    del data.PixelData
    data.save_as(path)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no pixels": (without_pixels, "holds no pixels"),
    "unknown syntax": (lambda path: of_syntax(path, f"{ROOT_UID}.7"),
                       "has an unknown transfer syntax"),
    "no decoder": (lambda path: of_syntax(path, "1.2.840.10008.1.2.4.100"),
                   "the transfer syntax MPEG2 .* which cannot be decoded"),
    "two windows": (change(WindowCenter=["40", "-600"], WindowWidth=["400", "1500"]),
                    r"names 2 windows \(40 with width 400, -600 with width 1500\): set dataset"),
    "no window": (change(), "has 16 bits and names no window"),
    "sigmoid": (change(WindowCenter="1", WindowWidth="9", VOILUTFunction="SIGMOID"), "not linear"),
    "no width": (change(WindowCenter="1", WindowWidth="1"), "window of no width"),
    "table": (change(ModalityLUTSequence=group(LUTDescriptor=[1, 0, 8])), "modality LUT"),
    "palette": (change(PhotometricInterpretation="PALETTE COLOR"), "neither grey values nor"),
    # Where it stands it must say something (PS3.3 C.11.1, type 1C); absent it means "as stored".
    "empty slope": (change(RescaleSlope="", WindowCenter="1", WindowWidth="9"),
                    "has an empty RescaleSlope"),
    "empty intercept": (change(RescaleIntercept="", WindowCenter="1", WindowWidth="9"),
                        "has an empty RescaleIntercept"),
    "burnt in": (change(BurnedInAnnotation="YES"), "texts burnt in"),
    "no instance": (change(SOPInstanceUID=None), "has no SOPInstanceUID"),
    "cut": (cut, "is truncated"),
    "no DICOM": (lambda path: path.write_bytes(b"Mustermann"), "it is damaged, or no DICOM file"),
    "odd number": (lambda path: path.write_bytes(write_dicom(path, RAMP, InstanceNumber="4711")
                   .read_bytes().replace(b"4711", b"19.X")), "it is damaged, or no DICOM file"),
}  # fmt: skip


def test_a_name_that_leads_out_is_not_told(tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / "good", EIGHT)
    image = {"id": 1, "file_name": "../Mustermann/1.dcm"}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "in" / "labels.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="its picture leads out of") as caught:
        folder_of(tmp_path, labels="labels.json")
    assert "Mustermann" not in str(caught.value)


def test_all_that_is_bad_is_listed_at_once(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number, (name, (make, _)) in enumerate(BAD.items()):
        (root / f"Mustermann {number}").mkdir(parents=True)
        make(root / f"Mustermann {number}" / f"{name}.dcm")
    write_dicom(root / "good", EIGHT, series=2)
    write_dicom(root / "copy", EIGHT, series=2)
    with pytest.raises(DataError) as caught:
        folder_of(tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(BAD) + 1
    (listed,) = tmp_path.glob("key.*.csv")
    with listed.open(newline="") as stream:
        files = {row["name"]: row["file"] for row in csv.DictReader(stream)}
    for line in lines:
        name = Path(files[re.search("DICOM file ([0-9a-f]{16})", line)[1]]).stem
        sentence = "is another copy of" if name in ("good", "copy") else BAD[name][1]
        assert re.search(sentence, line), (name, line)
    assert not any(word in str(caught.value) for word in PLANTED)


def test_what_is_needed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dicom(tmp_path / "in" / "x", EIGHT)
    with pytest.raises(DataError, match=r"set dataset\.args\.dicom_key \(predict: --dicom-key\)"):
        ImageFolder(str(tmp_path / "in"))
    for text, mode, told in (
        ("x", 0o600, "is no key of this program"),
        (f"{'0' * 64}\n", 0o644, "others may read it: chmod 600"),
    ):
        (tmp_path / "key").write_text(text)
        (tmp_path / "key").chmod(mode)
        with pytest.raises(DataError, match=told):
            folder_of(tmp_path)
    with pytest.raises(DataError, match="cannot be read or made: No such file"):
        ImageFolder(str(tmp_path / "in"), dicom_key=str(tmp_path / "none" / "key"))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match="the extra 'dicom': python -m pip install pydicom"):
        folder_of(tmp_path)


def test_nothing_says_whose_the_images_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run, its test and detections on files with names, ids and dates in headers and names."""
    generator, root = np.random.default_rng(0), tmp_path / "in"
    entries, boxes = [], []
    for number in range(16):
        pixels = generator.integers(0, 900, (32, 32), dtype=np.int16)
        pixels[8:20, 6:18] = 2000
        name = f"Mustermann_KH-4711-PID-{number}/19630417/{ROOT_UID}.3.{number}.1.dcm"
        write_dicom(root / name, pixels, series=number + 10, **SLOPE)
        if number < 12:
            entries.append({"id": number, "file_name": name})
            boxes.append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [6, 8, 12, 12]}
            )
    for number, (make, _) in enumerate(BAD.values()):
        (root / f"Mustermann{number}").mkdir()
        make(root / f"Mustermann{number}" / "bad.dcm")
    # A header that is good and pixels that are not: that shows in the run.
    spoilt = write_dicom(root / "Mustermann" / "spoilt.dcm", pixels, series=99, syntax=RLELossless,
                         **SLOPE)  # fmt: skip
    content = spoilt.read_bytes()
    entries.append({"id": 99, "file_name": "Mustermann/19630417.dcm"})
    labels = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "mass"}]}
    (root / "labels.json").write_text(json.dumps(labels))
    config = quick_config(root, tmp_path / "runs")
    config["image_size"] = 32
    config["trainer"] |= {"epochs": 1, "verbosity": 2}
    config["al_settings"]["num_cycles"] = 0
    config["al_settings"]["args"]["init_num"] = "labelled"
    args = {"root": str(root), "labels": "labels.json", "window": [-1000, 4000], "eval_split": 0.5,
            "dicom_key": str(tmp_path / "key"), "on_bad_sample": "skip"}  # fmt: skip
    config["dataset"] = {"type": "ImageFolder", "args": args}
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--run-id", "r") == 0
    run = tmp_path / "runs" / "tiny" / "r"
    spoilt.write_bytes(content[:-600] + b"\0" * 600)
    words = ["predict", "-r", str(run), "--images", str(root), "--out", str(tmp_path / "out")]
    assert main([*words, "--threshold", "0.01"]) == 0
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(found["images"]) == 16 + 1, "one that wants a window has it here, and has copies"
    assert found["annotations"] and files_of(tmp_path / "out" / "overlays")
    skipped = (tmp_path / "out" / "skipped.txt").read_text()
    assert "its pixels cannot be decoded" in skipped and len(skipped.splitlines()) == len(BAD)
    said = capfd.readouterr()
    told = said.out + said.err + "".join(files_of(run) | files_of(tmp_path / "out"))
    for word in PLANTED:
        assert word not in told
        for base in (run, tmp_path / "out"):
            for name in files_of(base):
                assert word.encode() not in (base / name).read_bytes(), (word, name)
    key = (tmp_path / "key").read_bytes().strip()
    assert not any(key in file.read_bytes() for file in run.rglob("*") if file.is_file())
    assert any("Mustermann" in file.read_text() for file in tmp_path.glob("key.*.csv"))
