"""Downloads over http and https that resume, are checked, and unpack without leaving their folder.

Nothing here knows a link: the user names the list.
"""

import hashlib
import logging
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from med_sslal.utils.errors import ConfigError, DataError, UserError
from med_sslal.utils.util import inside, stable_hash

logger = logging.getLogger(__name__)

# Called with the bytes (or files) done so far and their total, None where it is not known.
OnProgress = Callable[[int, int | None], None]

BLOCK = 1 << 20
TIMEOUT_S = 60.0
MAX_WAIT_S = 60.0
# A busy or broken server; any other 4xx stays what it is.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
MD5 = re.compile(r"[0-9a-fA-F]{32}")
URL = re.compile(r"""['"]?(https?://[^\s'",]+)['"]?,?""")
# As NIH's own script for the archives of DeepLesion names them.
DEFAULT_NAME = "Images_png_{:02d}.zip"


@dataclass(frozen=True)
class Link:
    """One file to fetch: where from, under which name, and its MD5 (hex) where known."""

    url: str
    file_name: str
    md5: str | None = None


class _Retry(Exception):
    """The transfer broke off in a way that may pass."""


class _NoFTP(urllib.request.FTPHandler):
    """Redirects are followed to http and https only."""

    def ftp_open(self, req: urllib.request.Request) -> Any:
        raise urllib.error.URLError("the link leads to ftp")


def read_links(path: Path, md5_file: Path | None = None) -> list[Link]:
    """Read a list of links.

    A line holds a URL, and beside it, optionally, a file name and an MD5, separated by blanks or
    commas; blank lines and `#` lines are skipped. NIH's download script (`.py`) serves as it is:
    there the lines count that hold a quoted URL and nothing else. A URL that ends in no file name
    gets the name of that script, Images_png_NN.zip by position. `md5_file` has lines with an MD5
    and a file name, as `md5sum` and NIH write them. DataError where a file cannot be read or holds
    no link, ConfigError where a line is none, or a name is used twice or leads out of the folder.
    """
    checksums = _read_md5(md5_file) if md5_file else {}
    links: list[Link] = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        text = line.strip()
        counts = URL.fullmatch(text) if path.suffix == ".py" else text and text[0] != "#"
        if not counts:
            continue
        where = f"{path}, line {number}"
        url, *rest = [word.strip("'\"") for word in re.split(r"[\s,]+", text) if word]
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigError(f"{where}: '{url}' is no http or https address")
        md5 = next((word.lower() for word in rest if MD5.fullmatch(word)), None)
        names = [word for word in rest if not MD5.fullmatch(word)]
        if len(names) > 1:
            raise ConfigError(f"{where}: expected a URL, a file name and an MD5; found '{text}'")
        name = names[0] if names else Path(unquote(urlsplit(url).path)).name
        if not names and "." not in name:
            name = DEFAULT_NAME.format(len(links) + 1)
        if not re.fullmatch(r"\w[\w.\-+]*", name):
            raise ConfigError(f"{where}: '{name}' is no plain file name")
        if name in {link.file_name for link in links}:
            raise ConfigError(f"{where}: file name '{name}' is used twice")
        links.append(Link(url, name, md5 or checksums.get(name)))
    if not links:
        raise DataError(f"{path} holds no link: one http(s) address a line is expected")
    return links


def _read_md5(path: Path) -> dict[str, str]:
    """File name to MD5, from lines such as `<md5>  <name>` or `MD5 (<name>) = <md5>`."""
    found = {}
    for line in _read_text(path).splitlines():
        md5 = MD5.search(line)
        name = re.search(r"[\w\-+]+(\.[\w\-+]+)+", MD5.sub(" ", line))
        if md5 and name:
            found[name.group()] = md5.group().lower()
    if not found:
        raise DataError(f"{path} holds no line with an MD5 and a file name")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text file") from error


def download(
    link: Link,
    folder: Path,
    on_progress: OnProgress = lambda done, total: None,
    *,
    retries: int = 5,
    wait_s: float = 1.0,
) -> Path:
    """Fetch a file into `folder`, going on where an earlier attempt broke off; returns its path.

    The content grows in a `.part` file and gets its name when it is whole and its MD5 is right. A
    file that is already there is checked and kept. After `retries` attempts without any new byte it
    gives up; the pause before the second one is `wait_s`, and doubles with each further one.
    DataError where the server refuses, keeps failing, or sends something else; UserError where the
    file cannot be written.
    """
    target = folder / link.file_name
    # The link is part of the name: two lists may give the same name to different files.
    part = folder / f"{link.file_name}.{stable_hash(link.url) % 16**8:08x}.part"
    if target.exists():
        if problem := _problem(link, target):
            raise DataError(f"{target} is there, but {problem}: delete it and run again")
        return target
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch(link.url, part, on_progress)
            break
        except _Retry as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures > retries:
                raise DataError(
                    f"{link.url}: {error}; gave up after {retries} retries. What has arrived is "
                    f"kept in {part}: run the same command again to go on"
                ) from error
            pause = min(wait_s * 2 ** (failures - 1), MAX_WAIT_S)
            logger.warning("%s: %s; next attempt in %.0f s", link.file_name, error, pause)
            time.sleep(pause)
    if problem := _problem(link, part):
        # Otherwise the next run would go on behind the wrong bytes.
        part.unlink()
        raise DataError(f"{link.file_name} from {link.url} was not kept: {problem}")
    part.replace(target)
    return target


def _fetch(url: str, part: Path, on_progress: OnProgress) -> None:
    """One attempt: append to `part` what is missing; _Retry where the connection broke off."""
    done = _size(part)
    headers = {"Accept-Encoding": "identity", "User-Agent": "med_sslal"}
    if done:
        headers["Range"] = f"bytes={done}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.build_opener(_NoFTP).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{done}":
            return
        if error.code == 416:
            part.unlink()
            raise _Retry("the server's file is shorter than the part here") from error
        problem = f"the server answers {error.code} {error.reason}"
        if error.code in PASSING:
            raise _Retry(problem) from error
        raise DataError(f"{url}: {problem}; is the link still valid?") from error
    except (OSError, HTTPException) as error:
        raise _Retry(f"no connection ({getattr(error, 'reason', error)})") from error
    with response:
        if response.status != 206:
            done = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            raise DataError(f"{url}: the server sends another range than asked for")
        length = response.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        try:
            with part.open("ab" if done else "wb") as stream:
                on_progress(done, total)
                for block in _blocks(response):
                    stream.write(block)
                    done += len(block)
                    on_progress(done, total)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(f"cannot write {part}: {error.strerror or error}") from error
    if total is not None and done < total:
        raise _Retry(f"the connection broke off after {done} of {total} bytes")


def _blocks(response: Any) -> Iterator[bytes]:
    try:
        while block := response.read(BLOCK):
            yield block
    except (OSError, HTTPException) as error:
        raise _Retry(f"the connection broke off ({error})") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _problem(link: Link, path: Path) -> str:
    """What is wrong with a whole file: not its MD5, or no zip archive; "" where it is right."""
    if link.md5 is not None:
        with path.open("rb") as stream:
            # A check against damage, not against forgery.
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
        if digest.hexdigest() != link.md5:
            return f"its MD5 is {digest.hexdigest()} and not {link.md5}"
    elif link.file_name.endswith(".zip") and not zipfile.is_zipfile(path):
        return "it is no zip archive (perhaps a web page: is the link still valid?)"
    return ""


def unzip(archive: Path, folder: Path, on_progress: OnProgress = lambda done, total: None) -> int:
    """Unpack an archive; nothing is written unless every name in it stays inside `folder`.

    Returns the number of files unpacked. DataError where the archive is damaged or encrypted, or a
    name in it leads out of `folder`; UserError for too little space, or where it cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if not member.is_dir()]
            for member in members:
                name = member.filename
                if stat.S_ISLNK(member.external_attr >> 16) or "\\" in name or ":" in name:
                    raise DataError(f"'{name}' is a link or no plain name")
                inside(folder, name)
            needed = sum(member.file_size for member in members)
            free = shutil.disk_usage(folder).free
            if needed > free:
                raise UserError(
                    f"{archive.name} needs {needed / 1e9:.1f} GB in {folder}, which has "
                    f"{free / 1e9:.1f} GB left"
                )
            for done, member in enumerate(members, start=1):
                content.extract(member, folder)
                on_progress(done, len(members))
    except DataError as error:
        raise DataError(f"{archive}: {error}; not unpacked") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from error
    except OSError as error:
        raise UserError(f"cannot unpack {archive} to {folder}: {error}") from error
    return len(members)
