"""A stand-in of the hub's HTTP API, as far as ears are uploaded to it and downloaded from it."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class FakeHub:
    """Repositories in memory: every commit has all files, by their names."""

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """By repository and commit."""
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    """Commits by repository and branch."""
    gated: set[str] = field(default_factory=set)
    is_private: dict[str, bool] = field(default_factory=dict)
    token: str = "hf_write"
    """The one token that may write."""
    status: int = 0
    """Answer to every download, in place of the file."""
    fails_at_commit: bool = False
    """Whether commits are refused, after everything else was accepted."""
    address: str = ""

    def commit(
        self, repo: str, files: dict[str, bytes], branch: str = "main", deleted: Sequence[str] = ()
    ) -> str:
        """Adds files to a branch, deletes others, and returns the commit."""
        before = self.branches.setdefault(repo, {}).get(branch)
        kept = self.commits[repo][before] if before else {}
        whole = {**{name: content for name, content in kept.items() if name not in deleted}, **files}
        sha = hashlib.sha1(repr(sorted(whole.items())).encode()).hexdigest()
        self.commits.setdefault(repo, {})[sha] = whole
        self.branches[repo][branch] = sha
        return sha

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | str:
        """Returns a commit and its files, or the hub's code for what is missing."""
        if repo in self.gated:
            return "GatedRepo"
        if repo not in self.commits:
            return "RepoNotFound"
        sha = self.branches[repo].get(revision, revision)
        return (sha, self.commits[repo][sha]) if sha in self.commits[repo] else "RevisionNotFound"


@contextlib.contextmanager
def serve_hub() -> Generator[FakeHub]:
    """Serves an empty hub."""
    hub = FakeHub()

    class Handler(_Handler):
        served = hub

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    served: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            return self.answer({})
        if self.served.status:
            return self.refuse(self.served.status, "")
        if found := re.fullmatch(rf"/api/models/{_REPO}(/revision/(?P<revision>.+))?", path):
            repo = found["repo"]
            return self.answer_with_commit(found, lambda sha, files: describe_model(repo, sha, files))
        if found := re.fullmatch(rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", path):
            return self.answer_with_commit(
                found, lambda _, files: [describe_file(*file) for file in files.items()]
            )
        if found := re.fullmatch(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", path):
            return self.answer_with_file(found)
        return self.refuse(404, "EntryNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.served.token}":
            return self.refuse(403, "")
        if path == "/api/repos/create":
            repo = json.loads(body)
            name = "/".join(filter(None, (repo.get("organization"), repo["name"])))
            self.served.commit(name, {})
            self.served.is_private[name] = bool(repo.get("private")) or repo.get("visibility") == "private"
            return self.answer({"url": f"{self.served.address}/{name}", "name": name, "id": name})
        if found := re.fullmatch(rf"/api/models/{_REPO}/branch/(?P<branch>.+)", path):
            self.served.commit(found["repo"], {}, found["branch"])
            return self.answer({})
        if re.fullmatch(rf"/api/models/{_REPO}/preupload/(.+)", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.answer({"files": [describe_upload(name) for name in names]})
        if found := re.fullmatch(rf"/api/models/{_REPO}/commit/(?P<branch>.+)", path):
            if self.served.fails_at_commit:
                return self.refuse(400, "")
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            deleted = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
            sha = self.served.commit(found["repo"], files, found["branch"], deleted)
            return self.answer(
                {"commitUrl": f"{self.served.address}/{found['repo']}/commit/{sha}", "commitOid": sha}
            )
        return self.refuse(404, "EntryNotFound")

    def answer_with_commit(self, found: Any, describe: Any) -> None:
        commit = self.served.find(found["repo"], found["revision"] or "main")
        if isinstance(commit, str):
            return self.refuse(403 if commit == "GatedRepo" else 404, commit)
        return self.answer(describe(*commit))

    def answer_with_file(self, found: Any) -> None:
        commit = self.served.find(found["repo"], found["revision"])
        if isinstance(commit, str):
            return self.refuse(403 if commit == "GatedRepo" else 404, commit)
        sha, files = commit
        if found["name"] not in files:
            return self.refuse(404, "EntryNotFound")
        content = files[found["name"]]
        return self.send(
            200, content, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        )

    def answer(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code} if code else {})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def describe_model(repo: str, sha: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {"id": repo, "modelId": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]}


def describe_file(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def describe_upload(name: str) -> dict[str, Any]:
    return {"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None}
