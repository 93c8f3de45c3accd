"""A small hub on 127.0.0.1 that speaks the HTTP which huggingface_hub's downloads and uploads use, without Xet."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"
Files = dict[str, bytes]


@dataclass
class Repository:
    """Its commits, and the branches that point to them."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    cuts: int = 0
    """How many answers with its weights still end in the middle."""

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add a commit whose files are those of `branch` and `files`, and return its hash."""
        files = self.commits.get(self.branches.get(branch, ""), {}) | files
        name = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name


class SmallHub(ThreadingHTTPServer):
    """Repositories in memory. `requests` has the method and path of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.uploads: Files = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: Files, **settings: int) -> str:
        """Add a repository with one commit, and return the commit's hash."""
        self.repositories[name] = Repository(**settings)
        return self.repositories[name].commit(files)


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    """Run a hub without repositories."""
    with SmallHub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
        yield hub
        hub.shutdown()


class RefusalError(Exception):
    """An error answer: its status and the code that huggingface_hub looks for."""


class Handler(BaseHTTPRequestHandler):
    """Answer one request. `ROUTES` has a method for each of the hub's routes."""

    server: SmallHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        """Log nothing."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, answer in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (found := re.fullmatch(pattern, path)):
                try:
                    return answer(self, **found.groupdict())
                except RefusalError as refusal:
                    status, code = refusal.args
                    return self._send({"error": code}, status, {"X-Error-Code": code})
        return self._send({"error": "no such route"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 - names of http.server

    def _send(self, content: object, status: int = 200, headers: dict[str, str] | None = None, cut: int = 0) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) - cut])
            self.close_connection = bool(cut)

    def _repository(self, name: str) -> Repository:
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if (found := self.server.repositories.get(name)) is None or (found.private and not authorized):
            raise RefusalError(404 if authorized else 401, "RepoNotFound")
        if found.gated and not authorized:
            raise RefusalError(403, "GatedRepo")
        return found

    def _commit(self, name: str, revision: str) -> tuple[str, Files]:
        found = self._repository(name)
        commit = found.branches.get(revision, revision)
        if commit not in found.commits:
            raise RefusalError(404, "RevisionNotFound")
        return commit, found.commits[commit]

    def resolve(self, repo: str, revision: str, file: str) -> None:
        commit, files = self._commit(repo, revision)
        if file not in files:
            raise RefusalError(404, "EntryNotFound")
        content, found = files[file], self.server.repositories[repo]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        start = int(re.sub(r"bytes=(\d+)-", r"\1", self.headers.get("Range", "0")))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and file.endswith(".safetensors") and found.cuts > 0
        found.cuts -= cut
        self._send(content[start:], 206 if start else 200, headers, (len(content) - start) // 2 if cut else 0)

    def info(self, repo: str, revision: str = "main") -> None:
        commit, files = self._commit(repo, revision)
        self._send({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def tree(self, repo: str, revision: str) -> None:
        _, files = self._commit(repo, revision)
        entries = [(name, len(content), hashlib.sha1(content).hexdigest()) for name, content in files.items()]
        self._send([{"type": "file", "path": name, "size": size, "oid": oid} for name, size, oid in entries])

    def create(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise RefusalError(401, "Unauthorized")
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        new = name not in self.server.repositories
        if new:
            self.server.add(name, {}, private=bool(asked.get("private")) or asked.get("visibility") == "private")
        self._send({"url": f"{self.server.url}/{name}"}, 200 if new else 409)

    def branch(self, repo: str, branch: str) -> None:
        found = self._repository(repo)
        if branch in found.branches:
            raise RefusalError(409, "Conflict")
        found.branches[branch] = found.branches["main"]
        self._send({})

    def validate(self) -> None:
        self._send({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        self._commit(repo, revision)
        names = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {True: "lfs", False: "regular"}
        self._send({"files": [
            {"path": name, "uploadMode": modes[name.endswith(".safetensors")], "shouldIgnore": False} for name in names
        ]})  # fmt: skip

    def batch(self, repo: str) -> None:
        self._repository(repo)
        objects = json.loads(self.body)["objects"]
        actions = [{"upload": {"href": f"{self.server.url}/storage/{each['oid']}"}} for each in objects]
        self._send({"transfer": "basic", "objects": [
            each | {"authenticated": True, "actions": action} for each, action in zip(objects, actions, strict=True)
        ]})  # fmt: skip

    def store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.uploads[oid] = self.body
        self._send({})

    def receive(self, repo: str, revision: str) -> None:
        found = self._repository(repo)
        self._commit(repo, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        of = {kind: [line["value"] for line in lines if line["key"] == kind] for kind in ("file", "lfsFile")}
        files = {value["path"]: base64.b64decode(value["content"]) for value in of["file"]}
        files |= {value["path"]: self.server.uploads[value["oid"]] for value in of["lfsFile"]}
        commit = found.commit(files, revision)
        self._send({"commitUrl": f"{self.server.url}/{repo}/commit/{commit}", "commitOid": commit})


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("GET", rf"/{REPO}/resolve/(?P<revision>.+)/(?P<file>[^/]+)", Handler.resolve),
    ("GET", rf"/api/models/{REPO}", Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/(?P<revision>.+)", Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>.+)", Handler.tree),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/models/{REPO}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/storage/(?P<oid>\w+)", Handler.store),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>.+)", Handler.receive),
]
