"""Label Studio's API: a query goes into a project, and all its tasks come out again."""

import hashlib
import json
import re
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from med_sslal.practice.formats.label_studio import label_studio_tasks, labeling_config
from med_sslal.practice.query_folder import QueryFolder, read_query
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import sha256_file

# An import is answered when all its tasks are stored.
TIMEOUT_S = 120.0
# What the server takes in one request.
MAX_BYTES = 200_000_000
# No name and password in it, which messages would show.
_ADDRESS = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")
_REFRESH = "/api/token/refresh"
_STRANGE = "it is no Label Studio, or one of a version that this program does not know"


class LabelStudio:
    """A server, and the token of a user of it, which no message and no other address gets.

    Args:
        url: Address of its first page, http or https.
        token: A legacy token, or a personal access token.
        timeout_s: For how long it may keep silent.

    Raises:
        UserError: Of every method: nothing answers there, it refuses, or it is another server.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = TIMEOUT_S) -> None:
        if not _ADDRESS.fullmatch(url):
            raise UserError("--url takes an address such as http://localhost:8080")
        # What the error of a wrong header says would show it.
        if not token.isascii() or not token.isprintable() or len(token.split()) != 1:
            raise UserError("the token must be one word, as Account & Settings shows it")
        self.url, self._timeout_s = url.rstrip("/"), timeout_s
        self._token, self._authorization = token, f"Token {token}"
        # A personal access token is a JWT, which buys short-lived ones.
        if token.count(".") == 2:
            bought = self.ask("POST", _REFRESH, {"refresh": token})
            self._authorization = f"Bearer {_field(bought, 'access', str)}"

    def ask(self, method: str, path: str, content: Any = None) -> Any:
        """What it answers to one request, as JSON."""
        body = None if content is None else json.dumps(content, allow_nan=False).encode()
        if body is not None and len(body) > MAX_BYTES:
            raise UserError(
                f"the query has {len(body)} bytes with its pictures in it, and Label Studio takes "
                f"{MAX_BYTES} at once: let it read them from its disk, with --local-root"
            )
        text = self.fetch(path, method, body)
        try:
            return json.loads(text)
        except ValueError as error:
            raise UserError(
                f"{self._where(path)} answers something that is no JSON: --url takes the address "
                "of Label Studio's first page"
            ) from error

    def fetch(self, path: str, method: str = "GET", body: bytes | None = None) -> bytes:
        """What it answers to one request, as it comes."""
        headers = {"Content-Type": "application/json", "User-Agent": "med_sslal"}
        if path != _REFRESH:
            headers["Authorization"] = self._authorization
        try:
            request = urllib.request.Request(f"{self.url}{path}", body, headers, method=method)
            with urllib.request.build_opener(_Stay).open(request, timeout=self._timeout_s) as given:
                content: bytes = given.read()
        except urllib.error.HTTPError as error:
            with error:
                refusal = _refusal(error).replace(self._token, "***")
            raise UserError(f"{self._where(path)} {refusal}") from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"no connection to {self.url} ({reason}): is Label Studio running there?"
            ) from error
        return content

    def _where(self, path: str) -> str:
        return f"{self.url}{path.partition('?')[0]}"

    def project_titled(self, title: str) -> int | None:
        """The number of the project of this title; None without one, UserError of several."""
        page = self.ask("GET", f"/api/projects?{urlencode({'title': title, 'page_size': 100})}")
        # The server finds parts of titles, too.
        rows = [row for row in _field(page, "results", list) if _field(row, "title", str) == title]
        if len(rows) > 1:
            raise UserError(f"{len(rows)} projects are named {title}: name one with --project ID")
        return _field(rows[0], "id", int) if rows else None


class _Stay(urllib.request.HTTPRedirectHandler):
    """No redirect is followed: the token would go along."""

    def redirect_request(self, *args: Any) -> None:
        return None


def push_query(
    server: LabelStudio, folder: Path, project: int | None = None, local_root: Path | None = None
) -> int:
    """Make a project of a query, or fill an empty one; returns its number.

    Args:
        server: Where to.
        folder: The query's.
        project: Number of a project without tasks; None: the one named query_<id>, which is made.
        local_root: The folder that the server serves pictures from, with the query's below it;
            None: the tasks hold the pictures themselves.

    Raises:
        DataError: The query's folder is damaged, or a picture in it is another one.
        UserError: It lies elsewhere, the project has tasks, or the server refuses.
    """
    query, place = read_query(folder), QueryFolder(folder.resolve())
    for image in query.images:
        file = place.images / image.file_name
        if not file.is_file() or sha256_file(file) != image.sha256:
            raise DataError(f"{file} is not the picture that the query was written with")
    title = f"query_{query.query_id}"
    start = None if local_root is None else _served_as(place.path, local_root.resolve())
    pictures = place.addresses(query, start)
    tasks = label_studio_tasks(query, pictures)
    interface = {"label_config": labeling_config(query.class_names, pictures).decode()}
    if project is None:
        project = server.project_titled(title)
    if project is None:
        made = server.ask("POST", "/api/projects", {"title": title, **interface})
        project = _field(made, "id", int)
    elif n_tasks := _field(server.ask("GET", f"/api/projects/{project}"), "task_number", int):
        raise UserError(
            f"project {project} of {server.url} has {n_tasks} task(s) already, which would come "
            "twice: pull them, or name another one with --project ID"
        )
    else:
        server.ask("PATCH", f"/api/projects/{project}", interface)
    if start:
        storage = {"project": project, "path": str(place.path), "use_blob_urls": True}
        server.ask("POST", "/api/storages/localfiles", {"title": title, **storage})
        first = query.images[0]
        _check_served(server, pictures[first.image_id][0], first.sha256)
    server.ask("POST", f"/api/projects/{project}/import", tasks)
    return project


def pull_tasks(server: LabelStudio, folder: Path, project: int | None = None) -> list[Any]:
    """All tasks of a query's project, answered or not, as Label Studio exports them.

    `project` None is the one named query_<id>. UserError without one, or where the server refuses.
    """
    title = f"query_{read_query(folder).query_id}"
    if project is None:
        project = server.project_titled(title)
    if project is None:
        raise UserError(
            f"{server.url} has no project named {title}: push the query, or name its project with "
            "--project ID"
        )
    options = urlencode({"exportType": "JSON", "download_all_tasks": "true"})
    tasks = server.ask("GET", f"/api/projects/{project}/export?{options}")
    if not isinstance(tasks, list):
        raise UserError(f"{server.url} exports no list of tasks: {_STRANGE}")
    return tasks


def _served_as(folder: Path, root: Path) -> str:
    """How Label Studio names the pictures of a query's folder on its own disk."""
    if folder == root or not folder.is_relative_to(root):
        raise UserError(
            f"{folder} is not below {root}: --local-root takes the folder that Label Studio has as "
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, and the query must lie in it"
        )
    return f"/data/local-files/?d={quote(folder.relative_to(root).as_posix())}"


def _check_served(server: LabelStudio, picture: str, sha256: str) -> None:
    """Refuse a root that is not the server's: no picture would load."""
    try:
        given = hashlib.sha256(server.fetch(picture)).hexdigest()
    except UserError as error:
        given = str(error)
    if given != sha256:
        raise UserError(
            f"Label Studio does not give the picture {picture} ({given}): --local-root takes what "
            "it has as LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which is on its own disk"
        )


def _refusal(error: urllib.error.HTTPError) -> str:
    """Why the server refuses, after its address."""
    if 300 <= error.code < 400:
        return f"leads to {error.headers.get('Location')}: give --url as it is there"
    if error.code in (401, 403):
        return (
            f"refuses the token ({error.code}): take one from Account & Settings; a legacy token "
            "works only where the organization allows it"
        )
    if error.code == 404:
        return "is not there (404): look at --url, and at --project"
    try:
        told = error.read(2000).decode(errors="replace")
    except (OSError, HTTPException):
        told = ""
    return f"answers {error.code} {error.reason}: {' '.join(told.split())[:300]}"


def _field(content: Any, name: str, kind: type) -> Any:
    value = content.get(name) if isinstance(content, dict) else None
    if type(value) is not kind:
        raise UserError(f"the server's answer has no '{name}': {_STRANGE}")
    return value
