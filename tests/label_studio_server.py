"""Plays Label Studio's API as it is documented: projects, storages, import, export, tokens."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

LEGACY, PERSONAL = "0123456789abcdef", "head.body.signature"


class Server(ThreadingHTTPServer):
    """Serves pictures from `root`; `instead` answers everything: a status, headers, a body."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.projects: list[dict[str, Any]] = []
        self.tasks: list[list[Any]] = []
        self.storages: list[dict[str, Any]] = []
        self.instead: tuple[int, dict[str, str], bytes] | None = None
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def project(self, title: str) -> int:
        """Make an empty one, as a person does in the browser; returns its number."""
        self.projects.append({"id": len(self.projects) + 1, "title": title, "label_config": ""})
        self.tasks.append([])
        return len(self.projects)

    def handle_error(self, *args: object) -> None:
        """A client that goes away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.reply("GET")

    def do_POST(self) -> None:
        self.reply("POST")

    def do_PATCH(self) -> None:
        self.reply("PATCH")

    def reply(self, method: str) -> None:
        server, address = self.server, urlsplit(self.path)
        server.asked.append(f"{method} {address.path}")
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        known = self.headers["Authorization"] in (f"Token {LEGACY}", "Bearer short-lived")
        options = {name: each[0] for name, each in parse_qs(address.query).items()}
        status, headers, body = 200, {}, b""
        if server.instead is not None:
            status, headers, body = server.instead
        elif address.path == "/api/token/refresh":
            status = 200 if content == {"refresh": PERSONAL} else 401
            body = json.dumps({"access": "short-lived"}).encode()
        elif not known:
            status = 401
        elif address.path == "/data/local-files/":
            picture = server.root / options["d"]
            status = 200 if picture.is_file() and server.storages else 404
            body = picture.read_bytes() if status == 200 else b""
        else:
            status, answer = self.answer(method, address.path.split("/")[2:], options, content)
            body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def answer(
        self, method: str, parts: list[str], options: dict[str, str], content: Any
    ) -> tuple[int, Any]:
        server = self.server
        if parts == ["storages", "localfiles"]:
            server.storages.append(content)
            return 201, content
        if parts == ["projects"] and method == "POST":
            number = server.project("")
            server.projects[-1] |= content
            return 201, server.projects[number - 1]
        if parts == ["projects"]:
            title = options["title"].lower()
            found = [each for each in server.projects if title in each["title"].lower()]
            return 200, {"count": len(found), "results": found}
        number = int(parts[1])
        if not 1 <= number <= len(server.projects):
            return 404, {"detail": "No Project matches the given query."}
        project, tasks = server.projects[number - 1], server.tasks[number - 1]
        if parts[2:] == ["import"]:
            tasks += [{"id": len(tasks) + 1 + n, **task} for n, task in enumerate(content)]
            return 201, {"task_count": len(content)}
        if parts[2:] == ["export"]:
            assert options == {"exportType": "JSON", "download_all_tasks": "true"}
            return 200, [{"annotations": [], "drafts": [], **task} for task in tasks]
        if method == "PATCH":
            project |= content
        return 200, {**project, "task_number": len(tasks)}
