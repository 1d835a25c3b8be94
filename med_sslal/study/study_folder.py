"""What lies where in a study's folder."""

from pathlib import Path

from med_sslal.trainer.run_folder import RunFolder

FORMAT_VERSION = 3

STUDY_FILE = "study.json"
RESULTS_FILE = "results.json"
TABLE_FILE = "results.csv"
CONFIGS, LOGS = "configs", "logs"
SHARED = "cycle0"
"""The arm whose runs train cycle 0 for all others."""

RESERVED = (SHARED, CONFIGS, LOGS)

UNITS = {"images": "labelled_images", "boxes": "labelled_boxes"}
"""X-axis of a comparison to its column of a run's rows."""


def run_folder(folder: Path, arm: str, seed: int) -> RunFolder:
    """Where the run of an arm and seed lies in a study's folder."""
    return RunFolder(folder / arm / f"s{seed}")
