"""Fetch a data set from links that the user names."""

import argparse
import zipfile
from pathlib import Path

from tqdm import tqdm

from med_sslal.data.download import OnProgress, download, read_links, unzip
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import read_json, write_json

# Name and link of every file that is done: archives are deleted once they are unpacked.
RECORD = ".downloaded.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("dataset", choices=["deeplesion"], help="what to fetch")
    parser.add_argument(
        "--links",
        type=Path,
        required=True,
        metavar="FILE",
        help="list of links: NIH's download script as it is, or one URL a line with an optional "
        "file name and MD5 beside it",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/DeepLesion"),
        metavar="DIR",
        help="where to (default %(default)s)",
    )
    parser.add_argument(
        "--md5", type=Path, metavar="FILE", help="MD5 sums by file name, as NIH ships them"
    )
    parser.add_argument(
        "--keep-archives", action="store_true", help="keep the zip files after unpacking"
    )


def run(args: argparse.Namespace) -> int:
    """Download and unpack; run again after an interruption, it goes on where it stopped."""
    links = read_links(args.links, args.md5)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {args.out}: {error.strerror or error}") from error
    record = args.out / RECORD
    finished = read_json(record) if record.exists() else {}
    if not isinstance(finished, dict):
        raise DataError(f"{record} is damaged: delete it")
    for link in links:
        if finished.get(link.file_name, link.url) != link.url:
            raise DataError(
                f"{args.out} has {link.file_name} from another link "
                f"({finished[link.file_name]}): write another file name beside {link.url}"
            )
    without = sum(link.md5 is None for link in links)
    if without:
        print(f"no MD5 is known for {without} of {len(links)} file(s): these are not checked")
    for number, link in enumerate(links, start=1):
        label = f"{number}/{len(links)} {link.file_name}"
        if link.file_name in finished:
            print(f"{label}: done before")
            continue
        with tqdm(desc=label, unit="B", unit_scale=True) as bar:
            path = download(link, args.out, _advance(bar))
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            with tqdm(desc=f"{label}, unpacking", unit="file") as bar:
                unzip(path, args.out, _advance(bar))
        finished[link.file_name] = link.url
        write_json(record, finished)
        if is_archive and not args.keep_archives:
            path.unlink()
    if not (args.out / "DL_info.csv").is_file():
        print(f"DL_info.csv was not among the files: copy it from NIH's page to {args.out}")
    print(f"done: {args.out}")
    return 0


def _advance(bar: tqdm) -> OnProgress:
    """A callback that moves a progress bar to a count (backwards too: a transfer may restart)."""

    def advance(done: int, total: int | None) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return advance
