"""Decoded slices on disk, so that an epoch reads them without decoding PNG again."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from med_sslal.data.slices import decode_slice
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import atomic_write

logger = logging.getLogger(__name__)


class SliceCache:
    """A folder of decoded slices, one uint16 .npy file each, read memory-mapped.

    A file is named after its source's path, size and modification time, so a changed source is
    never served from the cache. It is written under a temporary name and renamed: several
    workers and runs may share the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Use `folder`; it is made when the first slice is stored.

        Raises:
            DataError: There is a file of that name.
        """
        if folder.exists() and not folder.is_dir():
            raise DataError(f"dataset.args.cache_dir {folder} is a file; name a folder")
        self.folder = folder

    def read(self, path: Path) -> np.ndarray:
        """The same array as `decode_slice(path)`, uint16 [H, W], read-only.

        Raises:
            DataError: The source is missing or damaged, or the cache cannot be written.
        """
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"image file {path} cannot be read: {error.strerror}") from error
        key = f"{path.resolve()}\x1f{state.st_size}\x1f{state.st_mtime_ns}"
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        # Two levels: one folder of 100,000 files is slow on many file systems.
        file = self.folder / name[:2] / f"{name}.npy"
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError) as error:
            logger.warning("cached slice %s is damaged (%s): made again", file, error)
        pixels = decode_slice(path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, lambda stream: np.save(stream, pixels))
        except (OSError, UserError) as error:
            raise DataError(
                f"cannot write the slice cache {self.folder} ({error}): set another "
                "dataset.args.cache_dir, or null to go without"
            ) from error
        return pixels
