"""Fetch a data set from links that the user names."""

import zipfile
from argparse import Namespace

from tqdm import tqdm

from med_sslal.data.download import OnProgress, download, read_links, unzip
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import read_json, write_json

# Name and link of every file that is done: archives are deleted once they are unpacked.
RECORD = ".downloaded.json"


def run(args: Namespace) -> int:
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
