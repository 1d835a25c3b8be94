"""Atomic and versioned files, hashes, seeds derived from names, cores."""

import csv
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import random
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from med_sslal.utils.errors import DataError, UserError

# What is written under another name first ends in it, so that what a kill left can be told.
UNFINISHED = ".partial"

logger = logging.getLogger(__name__)


def atomic_write(
    path: Path, content: bytes | memoryview | Callable[[BinaryIO], object], mode: int = 0o644
) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    A function as `content` is called with an open binary file of a temporary name in the same
    folder, which must exist; UserError where it cannot be written (read-only, full, missing).
    """
    temporary = _unfinished(path)
    try:
        # As the mode and the user's umask have it.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as stream:
            content(stream) if callable(content) else stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _unfinished(path: Path) -> Path:
    """A name beside a path that nothing has yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")


def take_alone(stream: IO[Any], path: Path, busy: str) -> None:
    """Lock an open file for this process; UserError, with the sentence `busy`, where it is taken.

    The kernel frees the lock however the process ends, and where the process closes any stream of
    that file; no child inherits it. A disk that knows no locks, as some network disks do, is warned
    of.
    """
    try:
        alone = _is_free(lambda: fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB))
    except OSError as error:
        logger.warning("cannot lock %s: %s", path, error.strerror)
        return
    if not alone:
        stream.close()
        raise UserError(busy)


def is_taken(stream: IO[Any]) -> bool:
    """Whether another process has locked an open file; OSError where the disk knows no locks."""
    return not _is_free(lambda: os.lockf(stream.fileno(), os.F_TEST, 0))


def _is_free(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def open_alone(path: Path, busy: str) -> BinaryIO:
    """Open a file, made where it is missing, to be read and added to by this process alone.

    UserError where it cannot be written, and as of `take_alone`.
    """
    try:
        stream = path.open("a+b")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    take_alone(stream, path, busy)
    return stream


@contextmanager
def whole_folder(folder: Path, what: str) -> Iterator[Path]:
    """Make a folder that has its name only when all is in it; an error leaves nothing.

    Yields the folder to fill, of a temporary name beside it. UserError, in which `what` stands
    before the path, where it cannot be made, or is there already.
    """
    partial = _unfinished(folder)
    try:
        partial.mkdir(parents=True)
        yield partial
        fsync_folder(partial)
        partial.rename(folder)
        fsync_folder(folder.parent)
    except OSError as error:
        raise UserError(f"cannot write {what} {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder."""
    for path in folder.glob(f".*{UNFINISHED}"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write `content` atomically as JSON; NaN and infinity are refused (`ValueError`)."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    atomic_write(path, text.encode())


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a JSON file written by this program; DataError where it is missing or none.

    `object_hook` is called with each object as soon as it is parsed; its result takes the place.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=object_hook)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", path) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", path) from error


def write_versioned(path: Path, version: int, content: Mapping[str, Any]) -> None:
    """Write a JSON object with the version of its format, as `write_json` does."""
    write_json(path, {"format_version": version, **content})


def read_versioned(
    path: Path,
    newest: int,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
    *,
    oldest: int = 1,
) -> dict[str, Any]:
    """As `read_json`, an object whose `format_version` lies between `oldest` and `newest`."""
    content: dict[str, Any] = read_json(path, object_hook)
    check_version(content, newest, path, oldest=oldest)
    return content


def check_version(
    content: Any,
    newest: int,
    where: Path | str,
    error: type[UserError] = DataError,
    *,
    oldest: int = 1,
) -> None:
    """Refuse content of a version other than `oldest` to `newest`, or of none, told of `where`."""
    version = content.get("format_version") if isinstance(content, Mapping) else None
    if type(version) is not int:
        raise error(f"{where} is no such file of this program: it has no format_version")
    text = f"{where} has format_version {version}, this program reads"
    if version > newest:
        raise error(f"{text} up to {newest}: update the program")
    if version < oldest:
        raise error(f"{text} from {oldest} on: make it again with a run of this version")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV: the columns in the order of their first appearance, None as an empty field."""
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    # csv writes None as nothing.
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stable_hash(*parts: str | int) -> int:
    """A 63-bit hash of the parts, the same in every process and on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    # A name of a file need not be UTF-8.
    content = text.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def numpy_generator(*parts: str | int) -> np.random.Generator:
    """A NumPy generator that depends on nothing but `parts`."""
    return np.random.default_rng(stable_hash(*parts))


def python_generator(*parts: str | int) -> random.Random:
    """A standard-library generator that depends on nothing but `parts`."""
    return random.Random(stable_hash(*parts))


def usable_cores() -> int:
    """Cores that this process may use; all of the machine where the system keeps no such list."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def inside(root: Path, relative: str) -> Path:
    """Join a relative name from an annotation file to the data root.

    DataError where it leads out (absolute, `..`, or a link that leaves), holds a null byte, or can
    be no file's name.
    """
    path = root / relative
    try:
        leaves = "\0" in relative or not path.resolve().is_relative_to(root.resolve())
    except UnicodeEncodeError as error:
        raise DataError(f"file name {relative!r} is not UTF-8, and no file can have it") from error
    if leaves:
        raise DataError(f"file name '{relative}' leads out of the data root {root}")
    return path
