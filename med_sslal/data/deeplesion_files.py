"""Where DeepLesion's slices lie: folders per series, nested once more, or flat."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from med_sslal.data.deeplesion_csv import FILE_NAME
from med_sslal.utils.util import inside

# Places below the root, best first: as NIH's archives unpack, nested by some unpackers, the
# archive of key slices, and slices right in the root.
PLACES = ("Images_png", "Images_png/Images_png", "Key_slices", ".")
SERIES = re.compile(r"\d{6}_\d{2,}_\d{2,}", re.ASCII)
SLICE = re.compile(r"(\d{3,})\.png", re.ASCII)


class SliceFiles:
    """Finds the slices of a series; folders are listed once, no file name is ever guessed."""

    def __init__(self, root: Path) -> None:
        """List the places below `root` where slices may lie; a place may be a link."""
        self._folders: dict[str, Path] = {}
        self._flat: dict[str, dict[int, Path]] = defaultdict(dict)
        self._listed: dict[str, Mapping[int, Path]] = {}
        for place in PLACES:
            folder = root / place if place != "." else root
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                name = FILE_NAME.fullmatch(path.name)
                if name:
                    self._flat[name.group(1)].setdefault(int(name.group(5)), path)
                elif SERIES.fullmatch(path.name) and path.name not in self._folders:
                    self._folders[path.name] = inside(folder, path.name)

    def __bool__(self) -> bool:
        """True where any slice or folder of slices was found."""
        return bool(self._folders or self._flat)

    def of_series(self, series: str) -> Mapping[int, Path]:
        """Slice index to file for every slice of `PPPPPP_SS_SS` that exists; may be empty."""
        if series not in self._listed:
            found = dict(self._flat.get(series, {}))
            folder = self._folders.get(series)
            if folder is not None and folder.is_dir():
                for path in folder.iterdir():
                    name = SLICE.fullmatch(path.name)
                    if name:
                        found[int(name.group(1))] = path
            self._listed[series] = found
        return self._listed[series]
