"""A stand-in for the Hugging Face hub on this machine: the HTTP interface, as far as download and push need it.

Repositories are dictionaries in memory. Paths, headers and JSON are those that huggingface_hub 1.0, 1.33 and 2.4 use.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Hash -> path -> content."""
    refs: dict[str, str] = field(default_factory=dict)
    """Branch or tag -> hash."""
    messages: list[str] = field(default_factory=list)

    def add(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        """Commit files on a branch, over those that it has."""
        before = self.commits.get(self.refs.get(branch, ""), {})
        commit = hashlib.sha1(f"{len(self.commits)} {branch} {sorted(files)}".encode()).hexdigest()
        self.commits[commit], self.refs[branch] = before | files, commit
        self.messages.append(message)
        return commit

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs[branch]]


class LocalHub:
    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens = {"writer": True, "reader": False}
        """Token -> whether it may write."""
        self.large: dict[str, bytes] = {}
        """Files of LFS by their SHA-256."""
        self.requests: list[str] = []
        self.broken = False
        """Answer everything with 500."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                hub.requests.append(f"{self.command} {urlsplit(self.path).path}")
                length = int(self.headers.get("Content-Length") or 0)
                status, headers, body = hub.answer(
                    self.command, unquote(urlsplit(self.path).path), self.headers, self.rfile.read(length)
                )
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.store = f"http://localhost:{self.server.server_port}"  # another host, as that of the hub's large files
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, files: dict[str, bytes], branch: str = "main", **options: Any) -> str:
        repository = self.repositories.setdefault(name, Repository(**options))
        return repository.add(files, branch)

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.broken:
            return self.error(500, "", "the hub is down")
        token = (headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            return self.error(401, "", "Invalid credentials in Authorization header")
        if match := re.fullmatch(r"/large/(\w+)", path):
            assert not token, "the token must not leave the hub"
            if method == "PUT":
                assert hashlib.sha256(body).hexdigest() == match[1]
                self.large[match[1]] = body
                return 200, {}, b""
            return 200, {}, self.large[match[1]]
        if method != "POST":
            return self.read(path, token)
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return self.json({"errors": [], "warnings": []})
        if not token:
            return self.error(401, "", "Invalid username or password.")
        if not self.tokens[token]:
            return self.error(403, "", "You do not have the right to write")
        return self.write(path, body)

    def read(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        resolve = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/(.+?)/([^/]+)", path)
        info = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/(.+))?", path)
        match = resolve or info
        repository = self.repositories.get(match[1]) if match else None
        if not match or not repository or (repository.private and not token):
            return self.error(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.gated and resolve:
            return self.error(403 if token else 401, "GatedRepo", "Access to this model is restricted")
        commit = repository.refs.get(match[2] or "main", match[2])
        if commit not in repository.commits:
            return self.error(404, "RevisionNotFound", f"Invalid rev id: {commit}")
        files = repository.commits[commit]
        if info:
            siblings = [{"rfilename": name} for name in files]
            return self.json({"id": match[1], "sha": commit, "private": repository.private, "siblings": siblings})
        known = {"X-Repo-Commit": commit}
        if match[3] not in files:
            return self.error(404, "EntryNotFound", "Entry not found", known)
        content = files[match[3]]
        digest = hashlib.sha256(content).hexdigest()
        if match[3].endswith(".safetensors"):
            self.large[digest] = content
            known |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"', "Content-Length": "0"}
            return 302, known | {"Location": f"{self.store}/large/{digest}"}, b""
        return 200, known | {"ETag": f'"{digest[:40]}"'}, content

    def write(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            exists = name in self.repositories
            private = asked.get("private") or asked.get("visibility") == "private"  # version 1, version 2
            if not exists:
                self.add(name, {".gitattributes": b""}, private=bool(private))
            return self.json({"url": f"{self.url}/{name}"}, 409 if exists else 200)
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.store}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.json({"transfer": "basic", "objects": objects})
        match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit|branch)/(.+)", path)
        assert match, path
        repository = self.repositories[match[1]]
        if match[2] == "branch":
            exists = match[3] in repository.refs
            repository.refs.setdefault(match[3], repository.refs["main"])
            return self.error(409, "", "Reference already exists") if exists else self.json({})
        if match[2] == "preupload":
            return self.json({"files": [self.mode(file["path"]) for file in json.loads(body)["files"]]})
        header, *lines = map(json.loads, body.splitlines())
        if header["value"].get("parentCommit", repository.refs[match[3]]) != repository.refs[match[3]]:
            return self.error(412, "", "A commit has happened since")
        files = {}
        for line in lines:
            value = line["value"]
            large = line["key"] == "lfsFile"
            files[value["path"]] = self.large[value["oid"]] if large else base64.b64decode(value["content"])
        commit = repository.add(files, match[3], header["value"]["summary"])
        return self.json({"commitUrl": f"{self.url}/{match[1]}/commit/{commit}", "commitOid": commit})

    def mode(self, name: str) -> dict[str, Any]:
        large = name.endswith((".safetensors", ".png", ".jpg"))
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def json(self, value: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def error(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        found = {"X-Error-Code": code, "X-Error-Message": message} | (headers or {})
        return status, {name: value for name, value in found.items() if value}, b"{}"
