"""A Hugging Face hub on this machine: the part of its HTTP interface that huggingface_hub calls for models."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from deeplab_jax.weights import download
from tests.support.server import running

Files = dict[str, bytes]
TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """A repository: its commits, and the branches that point to them."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add a commit that holds these files besides those of the branch, and return its hash."""
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        content = b"".join(name.encode() + hashlib.sha1(value).digest() for name, value in sorted(files.items()))
        name = hashlib.sha1(content).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name


class HubServer(ThreadingHTTPServer):
    """Serves `repositories` (owner/name to repository). Who writes needs `TOKEN`.

    Attributes:
      requests: (method, path) of every request.
      down: a status that every answer has, or 0.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.down = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Fault(Exception):
    """An answer that is an error: its status, and its code in the hub's words."""


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.server.down:
                raise _Fault(self.server.down, "")
            api, models, *words = path.split("/")
            if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise _Fault(401, "")
            if path == "api/repos/create":
                self._json(*self._create(json.loads(body)))
            elif path == "api/validate-yaml":
                self._json(200, {"errors": [], "warnings": []})
            elif (api, models) == ("api", "models"):
                self._json(200, self._api("/".join(words[:2]), words[2:], body))
            elif api == "api":
                raise _Fault(404, "")
            else:  # owner/name/resolve/revision/file
                self._file(f"{api}/{models}", *words[1:])
        except _Fault as fault:
            status, code = fault.args
            self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _repository(self, name: str) -> Repository:
        repository = self.server.repositories.get(name)
        if repository is None:
            raise _Fault(404, "RepoNotFound")
        return repository

    def _commit(self, repository: Repository, revision: str) -> tuple[str, Files]:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise _Fault(404, "RevisionNotFound")
        return commit, repository.commits[commit]

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))  # By the version of the package.
        self.server.repositories[name] = Repository(private=private)
        self.server.repositories[name].commit({".gitattributes": b""})
        return 200, {"url": f"{self.server.address}/{name}"}

    def _api(self, name: str, words: list[str], body: bytes) -> Any:
        repository = self._repository(name)
        what, revision = (words[0], "/".join(words[1:])) if words else ("revision", "main")
        if what == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return {"files": [{**file, "shouldIgnore": False} for file in files]}
        if what == "branch":
            repository.branches[revision] = repository.branches["main"]
            return {}
        if what == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self._commit(repository, revision)
            commit = repository.commit(files, revision)
            return {"commitUrl": f"{self.server.address}/{name}/commit/{commit}", "commitOid": commit}
        commit, files = self._commit(repository, revision)
        siblings = [{"rfilename": key, "size": len(value), "blobId": _id(value)} for key, value in files.items()]
        return {"id": name, "sha": commit, "private": repository.private, "siblings": siblings}

    def _file(self, name: str, revision: str, *file: str) -> None:
        repository = self._repository(name)
        if repository.gated:
            raise _Fault(403, "GatedRepo")
        commit, files = self._commit(repository, revision)
        content = files.get("/".join(file))
        if content is None:
            raise _Fault(404, "EntryNotFound")
        self._send(200, content, {"ETag": f'"{_id(content)}"', "X-Repo-Commit": commit})

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *values: object) -> None:
        """Print nothing."""


def _id(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def hub_here(folder: Path) -> Iterator[HubServer]:
    """Run a hub, to which huggingface_hub goes while the block runs, with empty caches in a folder and no token."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="pip install huggingface_hub")
    with running(HubServer()) as server, pytest.MonkeyPatch.context() as patch:
        for name in (download.OFFLINE, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv(download.FOLDER, str(folder / "ours"))
        for name, value in {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(folder / "theirs"),
            "HF_TOKEN_PATH": str(folder / "token"),
        }.items():
            patch.setattr(constants, name, value)
        yield server
