"""Downloads against a local server: progress, resume, checks, unpacking."""

import argparse
import hashlib
import io
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from med_sslal.cli import args
from med_sslal.cli.download import run
from med_sslal.data.download import Link, download, read_links, unzip
from med_sslal.utils.errors import ConfigError, DataError, UserError

CONTENT = bytes(range(256)) * 12000


class Server(ThreadingHTTPServer):
    """Serves `files`; `breaks` lists after how many bytes the next answers break off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.statuses: list[int] = []
        self.ranges: list[str | None] = []
        self.redirects: dict[str, str] = {}
        self.supports_range = True
        self.sends_length = True

    def handle_error(self, *args: object) -> None:
        """A client that goes away is part of these tests."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, name = self.server, self.path.lstrip("/")
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if name in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[name])
            self.end_headers()
            return
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        if name not in server.files:
            self.send_error(404)
            return
        body = server.files[name]
        start = int(re.findall(r"\d+", wanted)[0]) if wanted and server.supports_range else 0
        if start >= len(body) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.sends_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + server.breaks.pop(0) if server.breaks else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def make_zip(names: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return stream.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_whole_file_with_progress(server: Server, tmp_path: Path):
    server.files["a.bin"] = CONTENT
    steps: list[tuple[int, int | None]] = []
    link = Link(server.url("a.bin"), "a.bin", md5(CONTENT))
    path = download(link, tmp_path, lambda *step: steps.append(step))
    assert path == tmp_path / "a.bin" and path.read_bytes() == CONTENT
    assert steps[0] == (0, len(CONTENT)) and steps[-1] == (len(CONTENT), len(CONTENT))
    assert len(steps) > 2 and [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    # Already there: no second request.
    assert download(link, tmp_path) == path and len(server.ranges) == 1


def test_goes_on_where_the_connection_broke_off(server: Server, tmp_path: Path):
    server.files["a.bin"] = CONTENT
    server.breaks = [1000, 500_000]
    link = Link(server.url("a.bin"), "a.bin", md5(CONTENT))
    assert download(link, tmp_path, wait_s=0).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=501000-"]


def test_a_second_run_resumes_the_part(server: Server, tmp_path: Path):
    server.files["a.bin"] = CONTENT
    server.breaks = [1000]
    link = Link(server.url("a.bin"), "a.bin")
    with pytest.raises(DataError, match="run the same command again"):
        download(link, tmp_path, retries=0)
    assert [p.stat().st_size for p in tmp_path.glob("a.bin.*.part")] == [1000]
    assert download(link, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-"]


@pytest.fixture
def part(server: Server, tmp_path: Path) -> Path:
    """What an interrupted download of a.bin left behind: its first 1000 bytes."""
    server.files["a.bin"] = CONTENT
    server.breaks = [1000]
    with pytest.raises(DataError):
        download(Link(server.url("a.bin"), "a.bin"), tmp_path, retries=0)
    (path,) = tmp_path.iterdir()
    return path


@pytest.mark.parametrize(
    ("left", "requests"),
    [
        pytest.param(CONTENT, 2, id="whole"),
        pytest.param(CONTENT + b"more", 3, id="longer than the server's file"),
        pytest.param(b"", 2, id="empty"),
    ],
)
def test_odd_parts(server: Server, tmp_path: Path, part: Path, left, requests):
    part.write_bytes(left)
    path = download(Link(server.url("a.bin"), "a.bin"), tmp_path, wait_s=0)
    assert path.read_bytes() == CONTENT and len(server.ranges) == requests


def test_the_part_of_another_link_is_left_alone(server: Server, tmp_path: Path, part: Path):
    server.files["other"] = CONTENT[::-1]
    path = download(Link(server.url("other"), "a.bin"), tmp_path)
    assert path.read_bytes() == CONTENT[::-1] and part.stat().st_size == 1000


@pytest.mark.parametrize("sends_length", [True, False])
def test_server_without_ranges_starts_over(server: Server, tmp_path: Path, part, sends_length):
    server.supports_range, server.sends_length = False, sends_length
    assert download(Link(server.url("a.bin"), "a.bin"), tmp_path).read_bytes() == CONTENT


def test_busy_server_is_asked_again(server: Server, tmp_path: Path):
    server.files["a.bin"] = CONTENT
    server.statuses = [503, 429, 500]
    assert download(Link(server.url("a.bin"), "a.bin"), tmp_path, wait_s=0).exists()
    server.statuses = [503] * 9
    with pytest.raises(DataError, match=r"503.*gave up after 2 retries"):
        download(Link(server.url("a.bin"), "b.bin"), tmp_path, retries=2, wait_s=0)


def test_server_that_is_not_there(tmp_path: Path, server: Server):
    url = server.url("a.bin")
    server.server_close()
    with pytest.raises(DataError, match="no connection"):
        download(Link(url, "a.bin"), tmp_path, retries=1, wait_s=0)


def test_refusals(server: Server, tmp_path: Path):
    server.files["page.zip"] = b"<html>please log in</html>"
    server.files["a.bin"] = CONTENT
    secret = tmp_path / "secret"
    secret.write_text("x")
    server.redirects = {"local": secret.as_uri(), "ftp": "ftp://127.0.0.1/a", "ok": "/a.bin"}
    out = tmp_path / "out"
    out.mkdir()
    for name, words in (("none.bin", "404"), ("page.zip", "web page"), ("local", "302")):
        with pytest.raises(DataError, match=words):
            download(Link(server.url(name), name), out, wait_s=0)
    with pytest.raises(DataError):
        download(Link(server.url("ftp"), "ftp"), out, retries=0, wait_s=0)
    with pytest.raises(DataError, match="MD5"):
        download(Link(server.url("a.bin"), "a.bin", "0" * 32), out)
    assert not list(out.iterdir())
    assert download(Link(server.url("ok"), "a.bin"), out).read_bytes() == CONTENT
    with pytest.raises(DataError, match="is there, but"):
        download(Link(server.url("a.bin"), "a.bin", "0" * 32), out)
    with pytest.raises(UserError, match="cannot write"):
        download(Link(server.url("a.bin"), "a.bin"), tmp_path / "missing")


SUM = "0123456789abcdef0123456789ABCDEF"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        pytest.param("l.txt", "# a\n\nhttps://h/x/a.zip\n", [("a.zip", None)], id="plain"),
        pytest.param("l.txt", f"https://h/a.zip b.zip {SUM}", [("b.zip", SUM.lower())], id="all"),
        pytest.param("l.txt", f"https://h/s, b.zip, {SUM},", [("b.zip", SUM.lower())], id="csv"),
        pytest.param("l.txt", f"https://h/a.zip {SUM}", [("a.zip", SUM.lower())], id="md5 only"),
        pytest.param("l.txt", "http://h/a.zip?dl=1", [("a.zip", None)], id="query"),
        pytest.param(
            "l.py",
            "import urllib\nlinks = [\n 'https://h/static/abc',\n 'https://h/static/def'\n]\n"
            "md5_link = 'https://h/static/md5'\nfor link in links:\n    print('x')\n",
            [("Images_png_01.zip", None), ("Images_png_02.zip", None)],
            id="script",
        ),
    ],
)
def test_read_links(tmp_path: Path, name, text, expected):
    (tmp_path / name).write_text(text)
    links = read_links(tmp_path / name)
    assert [(link.file_name, link.md5) for link in links] == expected
    assert all(link.url.startswith("http") and "'" not in link.url for link in links)


@pytest.mark.parametrize(
    "line", [f"{SUM}  a.zip", f"MD5 (a.zip) = {SUM}", f"a.zip: {SUM}", f"{SUM} *./x/a.zip"]
)
def test_md5_files(tmp_path: Path, line):
    (tmp_path / "links").write_text("https://h/a.zip\nhttps://h/b.zip\n")
    (tmp_path / "md5").write_text(f"{line}\n")
    links = read_links(tmp_path / "links", tmp_path / "md5")
    assert [link.md5 for link in links] == [SUM.lower(), None]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        pytest.param("file:///etc/passwd", ConfigError, "line 1.*no http", id="local file"),
        pytest.param("\nftp://h/a.zip", ConfigError, "line 2.*no http", id="ftp"),
        pytest.param("a.zip", ConfigError, "no http", id="no address"),
        pytest.param("https://h/a.zip ../a.zip", ConfigError, "no plain", id="leaves"),
        pytest.param("https://h/a.zip .hidden", ConfigError, "no plain", id="hidden"),
        pytest.param("https://h/a.zip\nhttps://i/a.zip", ConfigError, "twice", id="twice"),
        pytest.param("https://h/a.zip b c", ConfigError, "expected a URL", id="too much"),
        pytest.param("# nothing\n", DataError, "holds no link", id="empty"),
    ],
)
def test_bad_lists(tmp_path: Path, text, error, words):
    (tmp_path / "links.txt").write_text(text)
    with pytest.raises(error, match=words):
        read_links(tmp_path / "links.txt")


def test_missing_or_binary_lists(tmp_path: Path):
    (tmp_path / "links.txt").write_text("https://h/a.zip")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read"):
        read_links(tmp_path / "none.txt")
    with pytest.raises(DataError, match="no text"):
        read_links(tmp_path / "binary")
    with pytest.raises(DataError, match="holds no line with an MD5"):
        read_links(tmp_path / "links.txt", tmp_path / "links.txt")


def link_member() -> bytes:
    member = zipfile.ZipInfo("Images_png/link")
    member.external_attr = 0o120777 << 16
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/good.txt", b"good")
        archive.writestr(member, "/etc")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(make_zip({"a/good.txt": b"x", "../evil.txt": b"x"}), id="parent"),
        pytest.param(make_zip({"a/good.txt": b"x", "a/../../evil.txt": b"x"}), id="hidden parent"),
        pytest.param(make_zip({"a/good.txt": b"x", "/tmp/evil.txt": b"x"}), id="absolute"),
        pytest.param(make_zip({"a/good.txt": b"x", "..\\evil.txt": b"x"}), id="backslash"),
        pytest.param(make_zip({"a/good.txt": b"x", "C:/evil.txt": b"x"}), id="drive"),
        pytest.param(link_member(), id="link"),
        pytest.param(b"PK\x03\x04 rubbish", id="no archive"),
        pytest.param(make_zip({"a/good.txt": b"x" * 999})[:-40], id="truncated"),
    ],
)
def test_bad_archives_write_nothing(tmp_path: Path, content):
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip"):
        unzip(tmp_path / "a.zip", out)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "deep", "out"]


def test_unzip_through_a_link_that_leaves(tmp_path: Path):
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.mkdir()
    (out / "a").symlink_to(other)
    (tmp_path / "a.zip").write_bytes(make_zip({"a/evil.txt": b"x"}))
    with pytest.raises(DataError, match="leads out"):
        unzip(tmp_path / "a.zip", out)
    assert not list(other.iterdir())


def test_damaged_content_of_an_archive(tmp_path: Path):
    content = bytearray(make_zip({"a.txt": bytes(range(256)) * 4}))
    content[60] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unzip(tmp_path / "a.zip", tmp_path)


def parse(*words: str) -> argparse.Namespace:
    return args.parse(["download", *words])


def test_command(server: Server, tmp_path: Path, capsys):
    first = make_zip({"Images_png/000001_01_01/001.png": b"one"})
    second = make_zip({"Images_png/000002_01_01/001.png": b"two"})
    server.files = {"static/abc": first, "static/def": second, "DL_info.csv": b"File_name\n"}
    (tmp_path / "links.txt").write_text(
        f"{server.url('static/abc')}\n{server.url('static/def')}\n{server.url('DL_info.csv')}\n"
    )
    (tmp_path / "md5.txt").write_text(
        f"{md5(first)}  Images_png_01.zip\n{md5(second)}  Images_png_02.zip\n"
    )
    out = tmp_path / "new" / "DeepLesion"
    words = ("deeplesion", "--links", str(tmp_path / "links.txt"), "--out", str(out))
    args = parse(*words, "--md5", str(tmp_path / "md5.txt"))
    server.breaks = [30]
    assert run(args) == 0
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert files == [
        ".downloaded.json",
        "DL_info.csv",
        "Images_png/000001_01_01/001.png",
        "Images_png/000002_01_01/001.png",
    ]
    assert (out / "Images_png" / "000002_01_01" / "001.png").read_bytes() == b"two"
    assert "no MD5 is known for 1 of 3" in capsys.readouterr().out
    # A second run fetches nothing.
    requests = len(server.ranges)
    assert run(args) == 0 and len(server.ranges) == requests
    # Another list may not pass for done because its files get the same names.
    (tmp_path / "links.txt").write_text(server.url("static/ghi"))
    with pytest.raises(DataError, match=r"Images_png_01\.zip from another link"):
        run(args)


def test_command_without_annotation_file(server: Server, tmp_path: Path, capsys):
    server.files = {"a.zip": make_zip({"Images_png/000001_01_01/001.png": b"one"})}
    (tmp_path / "links.txt").write_text(server.url("a.zip"))
    out = tmp_path / "out"
    words = ("deeplesion", "--links", str(tmp_path / "links.txt"), "--out", str(out))
    assert run(parse(*words, "--keep-archives")) == 0
    assert (out / "a.zip").is_file()
    assert "DL_info.csv was not among the files" in capsys.readouterr().out
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot make"):
        run(parse(*words[:3], "--out", str(tmp_path / "file" / "out")))


def test_command_starts_without_torch():
    code = "import sys, med_sslal.cli.download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
