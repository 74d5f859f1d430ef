"""A local stand-in for the hub: repositories that are folders, and a log of what was fetched.

Knows: the few requests that huggingface_hub makes. Does not know: models.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import pytest

COMMIT = "a" * 40
PATIENCE_S = 300.0
"""How long a file is held back from who does not leave: no pass of a test waits for it."""


@attrs.define
class LocalHub:
    """folder: with repositories, organisation/name. bodies: file -> bytes of it that were sent.

    restricted: repositories whose owners let nobody in. token: the only one that is let in with; ""
    where nobody needs one. does_ranges: whether a part of a file can be had. failing: file -> the
    code that it is answered with. stuck: the file, or "part of" it, that never comes whole; `asked`
    is set when it was asked for, and its name is in `waited` if somebody waits on until the end.
    """

    folder: Path
    bodies: dict[str, int] = attrs.field(factory=dict)
    restricted: tuple[str, ...] = ()
    token: str = ""
    does_ranges: bool = True
    failing: dict[str, int] = attrs.field(factory=dict)
    stuck: str = ""
    asked: threading.Event = attrs.field(factory=threading.Event)
    let_go: threading.Event = attrs.field(factory=threading.Event)
    waited: list[str] = attrs.field(factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One GET or HEAD."""
        given = request.headers.get("Authorization")
        if self.token and given not in (None, f"Bearer {self.token}"):
            said = "Invalid credentials in Authorization header"
            _send(request, 401, **{"X-Error-Message": said})
            return
        parts = request.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._answer_about(request, "/".join(parts[2:4]), parts[4:])
        elif "/".join(parts[:2]) in self.restricted:
            _send(request, 403 if given else 401, **{"X-Error-Code": "GatedRepo"})
        elif "resolve" in parts:
            at = parts.index("resolve")
            self._answer_file(request, "/".join(parts[:at]), "/".join(parts[at + 2 :]))
        else:
            _send(request, 404)

    def _answer_about(self, request: BaseHTTPRequestHandler, repo: str, more: list[str]) -> None:
        folder = self.folder / repo
        if not folder.is_dir():
            _send(request, 404, **{"X-Error-Code": "RepoNotFound"})
        elif more[:1] == ["revision"] and more[1] not in ("main", COMMIT):
            _send(request, 404, **{"X-Error-Code": "RevisionNotFound"})
        else:
            files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            sizes = {name: (folder / name).stat().st_size for name in files}
            siblings = [
                {"rfilename": name, "size": size, "blobId": _blob_id(folder / name)}
                for name, size in sizes.items()
            ]
            said = {"id": repo, "sha": COMMIT, "siblings": siblings}
            _send(request, 200, json.dumps(said).encode(), **{"Content-Type": "application/json"})

    def _answer_file(self, request: BaseHTTPRequestHandler, repo: str, name: str) -> None:
        path = self.folder / repo / name
        if not path.is_file():
            _send(request, 404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        if name in self.failing:
            _send(request, self.failing[name])
            return
        data = path.read_bytes()
        headers = {
            "ETag": f'"{_blob_id(path)}"',
            "X-Repo-Commit": COMMIT,
        }
        size = len(data)
        begin, _, end = request.headers.get("Range", "").removeprefix("bytes=").partition("-")
        begin = begin if self.does_ranges else ""
        if begin and int(begin) >= size:
            _send(request, 416, **{"Content-Range": f"bytes */{size}"})
            return
        if begin:
            data = data[int(begin) : int(end or size) + 1]
            headers["Content-Range"] = f"bytes {begin}-{int(begin) + len(data) - 1}/{size}"
        if request.command == "GET" and self.stuck == f"{'part of ' * bool(begin)}{name}":
            _send(request, 206 if begin else 200, **{**headers, "Content-Length": str(len(data))})
            self.asked.set()
            if not self.let_go.wait(PATIENCE_S):
                self.waited.append(name)
            request.close_connection = True
            return
        if request.command == "GET":
            self.bodies[name] = self.bodies.get(name, 0) + len(data)
        _send(request, 206 if begin else 200, data, **headers)


def _send(request: BaseHTTPRequestHandler, code: int, data: bytes = b"", **headers: str) -> None:
    request.send_response(code)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)


def _blob_id(path: Path) -> str:
    """As git has it."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving(hub: LocalHub, patch: pytest.MonkeyPatch, cache: Path) -> Iterator[None]:
    """Runs it, as the hub that this process asks, with a cache of its own."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Silent."""

        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_GET

    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # It looks that often whether it is to end, which every test waits for.
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    try:
        yield
    finally:
        hub.let_go.set()
        server.shutdown()
        server.server_close()
