"""A local hub: the part of the Hugging Face API that a push and a download use, on the loopback device."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Repository:
    """Commits, each a whole tree, and the branches that point to them."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], *, branch: str, message: str = "by hand") -> str:
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def tree(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        oid = self.branches.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


@dataclass
class Hub:
    """Repositories, and a record of what was asked for."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    refuse: int | None = None
    owner: str = "ann"

    def downloads(self) -> set[str]:
        found = (
            re.fullmatch(r"/\S+/resolve/[^/]+/(.+)", path)
            for method, path in self.requests
            if method == "GET"
        )
        return {match[1] for match in found if match}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def reply(self, content: bytes | dict[str, Any] | list[Any], status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refusal(self, code: str, status: int = 404) -> None:
        self.reply({"error": code}, status, X_Error_Code=code)

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.hub.requests.append((self.command, path))
        self.hub.tokens.add(self.headers.get("Authorization"))
        if self.hub.refuse is not None:
            self.reply({"error": "refused"}, self.hub.refuse)
            return
        for method, pattern, act in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                act(self, body, **match.groupdict())
                return
        self.reply({"error": f"the fake knows no {self.command} {path}"}, 501)

    do_GET = do_POST = do_HEAD = answer  # noqa: N815

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted.get('organization') or self.hub.owner}/{wanted['name']}"
        exists = name in self.hub.repositories
        repository = self.hub.repositories.setdefault(
            name,
            Repository(
                private=wanted.get("visibility", "private" if wanted.get("private") else "public")
                == "private"
            ),
        )
        if not exists:
            repository.commit({".gitattributes": b""}, branch="main", message="initial")
        self.reply({"url": f"{self.hub.url}/{name}", "name": name}, 409 if exists else 200)

    def branch(self, body: bytes, repo: str, name: str) -> None:
        branches = self.hub.repositories[repo].branches
        exists = name in branches
        branches.setdefault(name, branches["main"])
        self.reply({}, 409 if exists else 200)

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        files = json.loads(body)["files"]
        self.reply(
            {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        )

    def receive(self, body: bytes, repo: str, revision: str) -> None:
        repository = self.hub.repositories[repo]
        files = dict(repository.tree(revision)[1])
        message = ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files, branch=revision, message=message)
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repo not in self.hub.repositories:
            self.refusal("RepoNotFound")
            return None
        found = self.hub.repositories[repo].tree(revision)
        if found is None:
            self.refusal("RevisionNotFound")
        return found

    def listing(self, body: bytes, repo: str, revision: str) -> None:
        if found := self.find(repo, revision):
            self.reply([{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in found[1].items()])

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        if found := self.find(repo, revision):
            siblings = [{"rfilename": path} for path in found[1]]
            self.reply(
                {"_id": "0", "id": repo, "modelId": repo, "sha": found[0], "siblings": siblings, "tags": []}
            )

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        if found := self.find(repo, revision):
            oid, files = found
            if path not in files:
                self.reply({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
                return
            etag = hashlib.sha1(files[path]).hexdigest()
            self.reply(files[path], ETag=f'"{etag}"', X_Repo_Commit=oid, Accept_Ranges="none")

    def validate(self, body: bytes) -> None:
        assert json.loads(body)["content"].startswith("---\n")
        self.reply({"errors": [], "warnings": []})


NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/models/{NAME}/branch/(?P<name>.+)", Handler.branch),
    ("POST", rf"/api/models/{NAME}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"/api/models/{NAME}/commit/(?P<revision>.+)", Handler.receive),
    ("GET", rf"/api/models/{NAME}/tree/(?P<revision>.+)", Handler.listing),
    ("GET", rf"/api/models/{NAME}/revision/(?P<revision>.+)", Handler.info),
    ("GET", rf"/api/models/{NAME}", Handler.info),
    ("GET HEAD", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]


def _point_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no token, and no address of a hub that answers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _point_to(monkeypatch, "http://127.0.0.1:9")  # the port of a service that nobody runs
    return tmp_path / "cache"


@pytest.fixture
def fake_hub(cache, monkeypatch) -> Iterator[Hub]:
    """A hub in a thread, at the address that ``huggingface_hub`` turns to."""
    hub = Hub("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    _point_to(monkeypatch, hub.url)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
