"""Time `predict` on DICOM files against the bare loop, and look for planted names in its files.

python -m benchmarks.dicom RUN PICTURES [N]

RUN is a run on pictures, and PICTURES a folder of some, of which N (1000) become DICOM files of 16
bits. The bare loop runs the same detector over batches that lie in memory; the two take turns.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from med_sslal.__main__ import main
from med_sslal.base.types import Batch, ImageInfo, UnlabelledSample
from med_sslal.cli.trained import load_trained
from med_sslal.data.pictures import find_pictures, picture_size, read_picture
from med_sslal.model.inference import stream

PLANTED = ("Doe^Jane", "MRN-4711", "19630417", "1.2.826.0.1.3680043.9999")
TURNS = 2


def measure(run: str, pictures: Path, n: int) -> None:
    """Print images per second of CPU and of wall time, and how many planted words were found."""
    paths, trained = list(find_pictures(pictures)[0].values())[:n], load_trained(run, "cpu")
    samples = []
    for path in paths:
        info = ImageInfo(path.name, path.name, "", picture_size(path))
        image, _, frame = trained.resize(read_picture(path, info.orig_size), None, info, 0)
        samples.append(UnlabelledSample(image, frame))
    size = trained.compute.batch_size
    batches = [Batch.collate(samples[i : i + size]) for i in range(0, len(samples), size)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number, path in enumerate(paths):
            write_dicom(folder / "in", path, number)

        def bare() -> None:
            for _ in stream(trained.model, batches, "cpu", trained.compute.dtype):
                pass

        def ours() -> None:
            words = ["--out", str(folder / f"out{len(seconds['predict'])}"), "--device", "cpu"]
            words += ["--dicom-key", str(folder / "key"), "--images", str(folder / "in")]
            assert main(["predict", "-r", run, "--threshold", "0.05", *words]) == 0

        seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "predict": []}
        both: dict[str, Callable[[], None]] = {"bare": bare, "predict": ours}
        for _ in range(TURNS):
            for what, do in both.items():
                started = time.perf_counter(), time.process_time()
                do()
                wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
                seconds[what].append((wall, cpu))
        for place, kind in enumerate(("wall", "CPU")):
            rates = [
                len(paths) / statistics.median([t[place] for t in each])
                for each in seconds.values()
            ]
            told = f"bare {rates[0]:.1f}, predict {rates[1]:.1f}, ratio {rates[1] / rates[0]:.3f}"
            sys.stdout.write(f"images per second of {kind} time: {told}\n")
        files = [path for path in folder.glob("out*/**/*") if path.is_file()]
        said = [word for path in files for word in PLANTED if word.encode() in path.read_bytes()]
        sys.stdout.write(f"planted words in {len(files)} files: {len(said)}\n")


def write_dicom(folder: Path, picture: Path, number: int) -> None:
    """A picture as a slice of 16 bits whose header and path say whose it is."""
    grey = read_picture(picture, picture_size(picture))[..., 0]
    stored = (grey * 4080 - 1000).astype(np.int16)
    data, (name, patient, date, uid) = Dataset(), PLANTED
    data.PatientName, data.PatientID = name, f"{patient}-{number // 20}"
    data.PatientBirthDate = data.StudyDate = date
    data.SeriesInstanceUID = f"{uid}.2.{number // 20}"
    data.SOPInstanceUID, data.InstanceNumber = f"{uid}.3.{number}", number % 20
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.Rows, data.Columns = grey.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept = "1", "1000"
    data.WindowCenter, data.WindowWidth = "2040.5", "4081"
    data.PixelData = stored.tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / f"{patient}-{number // 20}" / f"{date}_{number}.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


if __name__ == "__main__":
    measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1000)
