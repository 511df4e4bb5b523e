"""A stand-in for the hub on this machine: it keeps what is pushed to it, and serves it again."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """
    Repositories by name, each a dict from file names to bytes; a revision is the number of its commits.

    Attributes:
        repositories (`dict[str, dict[str, bytes]]`): What was pushed.
        commits (`list[tuple[str, str, dict[str, bytes]]]`): Repository, message and files of every commit.
        unknown (`list[str]`): Requests that it has no answer to.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Request)
        self.repositories, self.commits, self.blobs, self.unknown = {}, [], {}, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def revision(self, name: str) -> str:
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()


class Request(BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks for in creating, committing, looking up and downloading."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, content: bytes | dict | list = b"", status: int = 200, **headers: str):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code: str):
        self.answer({"error": "not here"}, 404, X_Error_Code=code, X_Error_Message="not here")

    def dispatch(self):
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, answer in ROUTES:
            if method in (self.command, "GET" if self.command == "HEAD" else "") and (
                found := re.fullmatch(pattern, path)
            ):
                return answer(self, *found.groups())
        self.server.unknown.append(f"{self.command} {path}")
        return self.missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = dispatch

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        self.server.repositories.setdefault(name, {})
        self.answer({"url": f"{self.server.url}/{name}", "id": name, "name": name})

    def preupload(self, name: str, revision: str):
        files = json.loads(self.body)["files"]
        modes = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in files}
        said = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self.answer({"files": said})

    def batch(self, name: str):
        asked = json.loads(self.body)["objects"]
        objects = [{**one, "actions": {"upload": {"href": f"{self.server.url}/blobs/{one['oid']}"}}} for one in asked]
        self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def upload(self, oid: str):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.blobs[oid] = self.body
        self.answer()

    def commit(self, name: str, revision: str):
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        self.server.repositories[name] |= files
        self.server.commits.append((name, lines[0]["value"]["summary"], files))
        revision = self.server.revision(name)
        self.answer(
            {"commitUrl": f"{self.server.url}/{name}/commit/{revision}", "commitOid": revision, "hookOutput": ""}
        )

    def information(self, name: str, revision: str | None = None):
        if name not in self.server.repositories:
            return self.missing("RepoNotFound")
        files = self.server.repositories[name]
        siblings = [{"rfilename": file} for file in files]
        return self.answer({"id": name, "sha": self.server.revision(name), "siblings": siblings})

    def tree(self, name: str, revision: str, folder: str = ""):
        if name not in self.server.repositories:
            return self.missing("RepoNotFound")
        files = {path: data for path, data in self.server.repositories[name].items() if path.startswith(folder)}
        return self.answer(
            [{"type": "file", "path": path, "size": len(data), "oid": etag(data)} for path, data in files.items()]
        )

    def resolve(self, name: str, revision: str, path: str):
        if name not in self.server.repositories:
            return self.missing("RepoNotFound")
        if (content := self.server.repositories[name].get(path)) is None:
            return self.missing("EntryNotFound")
        return self.answer(content, X_Repo_Commit=self.server.revision(name), ETag=f'"{etag(content)}"')

    def valid(self):
        self.answer({"errors": [], "warnings": []})

    def harnesses(self):
        self.missing("EntryNotFound")  # programs that huggingface_hub would name in its requests


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("POST", "/api/repos/create", Request.create),
    ("POST", "/api/validate-yaml", Request.valid),
    ("GET", "/api/agent-harnesses", Request.harnesses),
    ("POST", rf"/api/models/{NAME}/preupload/(.+)", Request.preupload),
    ("POST", rf"/api/models/{NAME}/commit/(.+)", Request.commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Request.batch),
    ("PUT", r"/blobs/(\w+)", Request.upload),
    ("GET", rf"/api/models/{NAME}/tree/([^/]+)/?(.*)", Request.tree),
    ("GET", rf"/api/models/{NAME}/revision/(.+)", Request.information),
    ("GET", rf"/api/models/{NAME}", Request.information),
    ("GET", rf"/{NAME}/resolve/([^/]+)/(.+)", Request.resolve),
)


@contextmanager
def running_hub():
    """A stand-in that answers until the block ends."""
    hub = Hub()
    Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
