"""The way to Label Studio and back over its API."""

import base64
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_studio_server import LEGACY, PERSONAL, Server
from practice_runs import human_config, make_folder, newest_query
from test_query_folder import pictures_of, write
from tiny import run_train, write_config

from med_sslal.__main__ import main
from med_sslal.practice.answers import QueryImage
from med_sslal.practice.journal import read_journal
from med_sslal.practice.label_studio_api import LabelStudio
from med_sslal.practice.query_folder import QueryFolder, read_query
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import read_json

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> QueryFolder:
    """That of a query."""
    root = tmp_path / "root"
    query = write(root / "a b", pictures_of(tmp_path / "data"))
    return QueryFolder.named(root / "a b", query.query_id)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Label Studio, and in the environment the token of one of its users."""
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", LEGACY)
    monkeypatch.chdir(tmp_path)
    server = Server(tmp_path / "root")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(action: str, folder: QueryFolder, url: str, *words: str | Path) -> int:
    return main(["query", action, str(folder.path), "--url", url, *map(str, words)])


@pytest.mark.parametrize("token", [LEGACY, PERSONAL])
def test_a_query_goes_out_once_and_comes_back(
    server: Server, folder: QueryFolder, capsys: Capture, token: str, tmp_path: Path
) -> None:
    server.project(f"{folder.path.name} of yesterday")
    assert ask("push", folder, server.url, "--token", token) == 0
    told = capsys.readouterr().out
    assert f"{server.url}/projects/2" in told and "query pull" in told and token not in told
    made = server.projects[1]
    assert made["title"] == folder.path.name
    assert made["label_config"] == folder.labeling_config.read_text()
    written, query = read_json(folder.label_studio), read_query(folder.path)
    for task, own, image in zip(server.tasks[1], written, query.images, strict=True):
        head, _, picture = task["data"].pop("image").partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(picture) == (folder.images / image.file_name).read_bytes()
        own["data"].pop("image")
        assert {**own, "id": task["id"]} == task
    # A second time, whatever the project is named by.
    for more in ((), ("--project", "2")):
        assert ask("push", folder, server.url, "--token", token, *more) == 2
        assert "has 5 task(s) already" in capsys.readouterr().err
    assert [len(tasks) for tasks in server.tasks] == [0, 5]
    assert ask("pull", folder, server.url, "--token", token) == 0
    out = Path(f"answers_{query.query_id}.json")
    assert f"python -m med_sslal import '{folder.path}' {out}" in capsys.readouterr().out
    assert [task["id"] for task in read_json(tmp_path / out)] == [1, 2, 3, 4, 5]


def test_pictures_from_the_server_s_disk_and_a_project_that_is_there(
    server: Server, folder: QueryFolder, capsys: Capture
) -> None:
    number = str(server.project("mine"))
    words = ("--project", number, "--local-root")
    for wrong in (folder.path, folder.path.parent.parent / "other"):
        assert ask("push", folder, server.url, *words, wrong) == 2
        assert "is not below" in capsys.readouterr().err
    # Above the one that the server has: no picture would load.
    assert ask("push", folder, server.url, *words, server.root.parent) == 2
    assert "does not give the picture" in capsys.readouterr().err
    assert server.tasks == [[]]
    assert ask("push", folder, server.url, *words, server.root) == 0
    assert server.storages[-1]["path"] == str(folder.path)
    image = read_query(folder.path).images[0]
    address = f"/data/local-files/?d=a%20b/{folder.path.name}/images/{image.file_name}"
    assert server.tasks[0][0]["data"]["image"] == address
    assert "RectangleLabels" in server.projects[0]["label_config"]
    assert ask("pull", folder, server.url, "--out", "here.json") == 2
    assert f"has no project named {folder.path.name}" in capsys.readouterr().err
    assert not Path("here.json").exists()
    assert ask("pull", folder, server.url, "--out", "here.json", "--project", number) == 0
    assert len(read_json(Path("here.json"))) == 5


def test_a_project_that_was_left_empty_is_filled(
    server: Server, folder: QueryFolder, capsys: Capture
) -> None:
    server.project(folder.path.name)
    assert ask("push", folder, server.url) == 0
    assert [len(tasks) for tasks in server.tasks] == [5]
    server.project(folder.path.name)
    for action in ("push", "pull"):
        assert ask(action, folder, server.url) == 2
        assert "2 projects are named" in capsys.readouterr().err


def test_a_picture_that_is_gone_or_another_one_goes_nowhere(
    server: Server, folder: QueryFolder, capsys: Capture
) -> None:
    picture = sorted(folder.images.iterdir())[1]
    picture.write_bytes(picture.read_bytes() + b" ")
    assert ask("push", folder, server.url) == 2
    picture.unlink()
    assert ask("push", folder, server.url) == 2
    told = f"error: {picture} is not the picture that the query was written with\n"
    assert capsys.readouterr().err == told * 2 and not server.projects


WEB_PAGE = (200, {}, b"<html>")
ECHO = (500, {}, f"no\n such   {LEGACY}".encode())
ELSEWHERE = (302, {"Location": "https://other.example/"}, b"")


@pytest.mark.parametrize(
    ("instead", "words", "told"),
    [
        (None, ["--token", "wrong"], "/api/projects refuses the token (401)"),
        (None, ["--token", "a.b.c"], "/api/token/refresh refuses the token (401)"),
        (None, ["--token", "two\nlines"], "the token must be one word"),
        (None, ["--project", "7"], "is not there (404): look at --url, and at"),
        ((403, {}, b""), [], "refuses the token (403)"),
        (WEB_PAGE, [], "answers something that is no JSON"),
        ((200, {}, b"[]"), [], "the server's answer has no 'results'"),
        (ELSEWHERE, [], "leads to https://other.example/"),
        (ECHO, [], "answers 500 Internal Server Error: no such ***"),
        (None, ["--url", "http://127.0.0.1:1"], "no connection to http://127.0.0.1:1"),
        (None, ["--url", "http://[x"], "no connection to http://[x"),
        (None, ["--url", "ftp://x"], "--url takes an address such as"),
        (None, ["--url", "http://me:secret@x"], "--url takes an address such as"),
    ],
)
def test_every_failure_is_one_sentence_without_the_token(
    server: Server, folder: QueryFolder, capsys: Capture, instead: Any, words: list[str], told: str
) -> None:
    server.instead = instead
    for action in ("push", "pull"):
        assert ask(action, folder, server.url, *words) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1 and error.startswith("error: ")
        assert not any(word in error for word in (LEGACY, "two\nlines", "a.b.c", "secret"))
    assert not server.projects and not list(Path.cwd().glob("answers_*"))


def test_a_token_is_needed_and_options_fit_the_action(
    server: Server, folder: QueryFolder, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_TOKEN")
    assert ask("push", folder, server.url) == 2
    assert "--token or in LABEL_STUDIO_TOKEN" in capsys.readouterr().err
    for action, option in (("push", "--out"), ("pull", "--local-root")):
        with pytest.raises(SystemExit):
            ask(action, folder, server.url, option, "x")
        assert "--local-root DIR goes with push" in capsys.readouterr().err
    assert not server.asked


def test_a_server_that_keeps_silent_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=r"no connection .*timed out"):
            LabelStudio(url, LEGACY, timeout_s=0.1).ask("GET", "/api/projects/1")


@pytest.fixture
def label_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LabelStudio]:
    """A real one, whose program the environment names, with a folder to read pictures from."""
    program = os.environ.get("MED_SSLAL_LABEL_STUDIO")
    if program is None:
        pytest.skip("MED_SSLAL_LABEL_STUDIO does not name the program label-studio")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    token = 5 * "01234567"
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", token)
    words = (
        f"start --data-dir {tmp_path / 'data'} --port {url.rpartition(':')[2]} --no-browser "
        "--internal-host 127.0.0.1 --username reader@example.org --password only-for-this-test "
        f"--user-token {token} --enable-legacy-api-token"
    )
    environment = {
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(tmp_path),
        **dict.fromkeys(("COLLECT_ANALYTICS", "LATEST_VERSION_CHECK"), "false"),
        **dict.fromkeys(("SENTRY_DSN", "FRONTEND_SENTRY_DSN"), ""),
    }
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [program, *words.split()],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        server, latest = LabelStudio(url, token), time.monotonic() + 600
        while True:
            assert process.poll() is None, (tmp_path / "log.txt").read_text()
            try:
                server.fetch("/health")
                break
            except UserError:
                assert time.monotonic() < latest
                time.sleep(1)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def region(image: QueryImage, box: list[float]) -> dict[str, Any]:
    """A box as a person's browser sends it."""
    x1, y1, x2, y2 = np.array(box) * 100 / np.array([image.width, image.height] * 2)
    value = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
    size = {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
    names = {"type": "rectanglelabels", "from_name": "label", "to_name": "image"}
    return {**names, **size, "value": {**value, "rectanglelabels": ["class0"]}}


@pytest.mark.slow
def test_a_real_label_studio_keeps_boxes_and_states(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    config = human_config(make_folder(tmp_path / "voc"), tmp_path / "runs")
    config["al_settings"]["args"]["budget_num"] = 5
    assert run_train("-c", write_config(tmp_path / "c.json", config), "--run-id", "h") == 0
    run = tmp_path / "runs" / "tiny" / "h"
    path, query = newest_query(run)
    folder, images = QueryFolder(path), {image.image_id: image for image in query.images}
    own = label_studio.ask("POST", "/api/projects", {"title": "of a person"})["id"]
    words = ("--project", str(own), "--local-root", tmp_path)
    for more in (words, ()):
        assert ask("push", folder, label_studio.url, *more) == 0
        assert ask("push", folder, label_studio.url, *more) == 2
    project = label_studio.project_titled(path.name)
    tasks = label_studio.ask("GET", f"/api/tasks?project={project}&fields=all")["tasks"]
    shown = [len(task["predictions"][0]["result"]) for task in tasks if task["predictions"]]
    assert shown == [len(i.shown.labels) for i in query.images if len(i.shown.labels)]
    boxes = [[3.3, 4.7, 20.123, 30.456], [40.01, 1.11, 63.9, 17.77]]
    drawn = [region(images[tasks[0]["data"]["image_id"]], box) for box in boxes]
    for task, kind, content in (
        (tasks[0], "annotations", {"result": drawn, "lead_time": 12.5}),
        (tasks[1], "annotations", {"result": []}),
        (tasks[2], "annotations", {"result": [], "was_cancelled": True}),
        (tasks[3], "drafts", {"result": drawn}),
    ):
        label_studio.ask("POST", f"/api/tasks/{task['id']}/{kind}", content)
    out = tmp_path / "answers.json"
    assert ask("pull", folder, label_studio.url, "--out", out) == 0
    assert len(read_json(out)) == 5
    assert main(["import", str(path), str(out)]) == 0
    held = read_journal(RunFolder(run).answers, query.class_names).standing()
    states = [held[task["data"]["image_id"]] for task in tasks[:4]]
    assert [answer.state for answer in states] == [
        "labelled", "confirmed_empty", "skipped", "in_progress",
    ]  # fmt: skip
    assert tasks[4]["data"]["image_id"] not in held and states[0].seconds == 12.5
    np.testing.assert_allclose(states[0].boxes, boxes, atol=0.01)
