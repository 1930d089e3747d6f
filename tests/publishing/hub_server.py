"""A Hugging Face Hub on loopback: enough of its API for huggingface_hub, transformers and hf_hub_download.

Repositories live in memory. Every object is checked against the hash under which it arrives. `Fault` says which request
fails, how, and how often.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM = 28_000
"""Bytes from which a file is kept as a large file; the real Hub decides by .gitattributes and at 10 MB."""

WRITE, READ, STRANGER = "hf_write", "hf_read", "hf_stranger"
ACCOUNTS = {WRITE: ("user", "write"), READ: ("user", "read"), STRANGER: ("stranger", "write")}

_NOW = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """The hash of the blob that git keeps: of a large file its pointer."""
        kept = self.content
        if self.lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(kept)}\n"
            kept = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()


@dataclass
class PullRequest:
    title: str
    author: str
    base: str
    forked_at: str
    status: str = "draft"


@dataclass
class Repository:
    """Commits by id, and the branches that name them."""

    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, PullRequest] = field(default_factory=dict)
    moves: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        names = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{self.branches.get(branch)} {len(self.commits)}\n{names}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.moves.append(branch)
        return oid

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a user finds there, without what the Hub itself puts there."""
        commit = self.commits[self.find(revision)]
        return {path: blob.content for path, blob in commit.items() if path != ".gitattributes"}


@dataclass
class Fault:
    """What goes wrong with requests.

    Attributes:
        method: of the requests that are hit.
        path: regular expression that their path matches.
        status: answer instead of the right one; None leaves it.
        headers: of that answer.
        message: what the answer says.
        times: how many requests are hit.
        after: how many matching requests pass before.
        cut: "request": the line breaks while the body arrives; "response": while the answer is sent; "end": the answer
            ends in the middle; "answered": the request is carried out, and the line breaks before the answer.
        stall: seconds of silence before the answer.
        change: changes the answer's body, or for uploads what arrives.
        act: something that happens first, for example a commit by somebody else.
    """

    method: str
    path: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    times: int = 1
    after: int = 0
    cut: str = ""
    stall: float = 0.0
    change: Callable[[bytes], bytes] | None = None
    act: Callable[[], object] | None = None

    def hits(self, method: str, path: str) -> bool:
        if method != self.method or not re.search(self.path, path) or not self.times:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are what some tests want."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


class HubServer:
    """The server; use it as a context manager.

    Attributes:
        repositories: by `user/name`.
        objects: large files by their SHA-256.
        requests: methods and paths, in order.
        faults: what goes wrong.
        announced: hashes that loaders are told by path, where they are not the right ones.
        part_size: size of the parts in which larger files must be sent; None takes them whole.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.announced: dict[str, str] = {}
        self.part_size: int | None = None
        self.lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.storage = f"http://localhost:{self.port}"  # large files come from another host than the API

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create(self, repo_id: str, *, private: bool = False, **files: bytes) -> Repository:
        """Make a repository with files, a double underscore in a name being a dot."""
        repository = self.repositories[repo_id] = Repository(private)
        blobs = {path.replace("__", "."): Blob(content, lfs=False) for path, content in files.items()}
        repository.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False), **blobs})
        return repository

    def count(self, method: str, path: str) -> int:
        return sum(method == called and re.search(path, asked) is not None for called, asked in self.requests)


class Refused(Exception):  # noqa: N818 - an answer, not an error of the server
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    ROUTES: tuple[tuple[str, str, str], ...] = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create_repository"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "information"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/storage/(?P<oid>\w+)(/(?P<part>\d+))?", "receive"),
        ("POST", r"/storage/(?P<oid>\w+)/complete", "assemble"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)", "create_branch"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/discussions", "discussions"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/discussions/(?P<number>\d+)", "discussion"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/discussions/(?P<number>\d+)/status", "set_status"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/discussions/(?P<number>\d+)/merge", "merge"),
        ("(?:GET|HEAD)", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/storage/(?P<oid>\w+)", "large_file"),
    )

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - names that http.server looks for

    def answer(self) -> None:
        url = urlsplit(self.path)
        path = url.path
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            fault = next((fault for fault in self.hub.faults if fault.hits(self.command, path)), None)
        if fault and fault.act:
            fault.act()
        if fault and fault.stall:
            threading.Event().wait(fault.stall)
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.cut == "request":
            self.rfile.read(length // 2)
            return self.hang_up()
        self.body = self.rfile.read(length) if length else self.chunks()
        if fault and fault.change and self.command == "PUT":
            self.body = fault.change(self.body)
        try:
            if fault and fault.status:
                raise Refused(fault.status, fault.message)
            status, headers, content = self.route(path)
        except Refused as refused:
            content = json.dumps({"error": refused.message}).encode()
            headers = {"Content-Type": "application/json", "X-Error-Message": refused.message}
            status = refused.status
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            headers |= fault.headers if fault else {}
        if fault and fault.change and self.command != "PUT":
            content = fault.change(content)
        if fault and fault.cut == "answered":
            return self.hang_up()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault and fault.cut in ("response", "end"):
            self.wfile.write(content[: len(content) // 2])
            return self.hang_up(reset=fault.cut == "response")
        self.wfile.write(content)
        return None

    def chunks(self) -> bytes:
        """A body of unknown length, in chunks."""
        body = b""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return body

    def hang_up(self, reset: bool = True) -> None:
        self.wfile.flush()
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def route(self, path: str) -> tuple[int, dict[str, str], bytes]:
        for method, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and re.fullmatch(method, self.command):
                parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                with self.hub.lock:
                    result = getattr(self, name)(**parts)
                if isinstance(result, tuple):
                    return result
                return 200, {"Content-Type": "application/json"}, json.dumps(result).encode()
        raise Refused(404, f"there is no {self.command} {path}")

    # Who asks

    def account(self) -> tuple[str, str] | None:
        word = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if word and word not in ACCOUNTS:
            raise Refused(401, "Invalid credentials in Authorization header")
        return ACCOUNTS.get(word)

    def reading(self, repo: str) -> Repository:
        repository, account = self.hub.repositories.get(repo), self.account()
        hidden = repository and repository.private and (account is None or account[0] != repo.split("/")[0])
        if repository is None or hidden:
            raise Refused(404 if account else 401, "Repository not found", "RepoNotFound")
        return repository

    def writing(self, repo: str) -> tuple[Repository, str]:
        repository, account = self.reading(repo), self.account()
        proposing = self.query.get("create_pr") == "1"
        if account is None:
            raise Refused(401, "Invalid username or password.")
        if account[1] != "write" or (account[0] != repo.split("/")[0] and not proposing):
            raise Refused(403, "You don't have the rights to write here")
        return repository, account[0]

    def at(self, repository: Repository, revision: str) -> tuple[str, dict[str, Blob]]:
        commit = repository.find(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repository.commits[commit]

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    # Accounts and repositories

    def whoami(self) -> Any:
        account = self.account()
        if account is None:
            raise Refused(401, "Invalid username or password.")
        token = {"displayName": "test", "role": account[1]}
        return {"type": "user", "name": account[0], "orgs": [], "auth": {"type": "access_token", "accessToken": token}}

    def create_repository(self) -> Any:
        account, wanted = self.account(), self.json()
        if account is None:
            raise Refused(401, "Invalid username or password.")
        owner = wanted.get("organization") or account[0]
        if account != (owner, "write"):
            raise Refused(403, f"You don't have the rights to create a model under the namespace {owner}")
        repo = f"{owner}/{wanted['name']}"
        if repo in self.hub.repositories:
            return 409, {"Content-Type": "application/json"}, json.dumps({"url": f"{self.hub.url}/{repo}"}).encode()
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.hub.create(repo, private=private)
        return {"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo}

    def validate_card(self) -> Any:
        if not self.json()["content"].startswith("---\n"):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        return {"errors": [], "warnings": []}

    def information(self, repo: str, revision: str = "main") -> Any:
        repository = self.reading(repo)
        commit, files = self.at(repository, revision)
        siblings = [{"rfilename": path} for path in files]
        return {
            "_id": "1",
            "id": repo,
            "modelId": repo,
            "private": repository.private,
            "sha": commit,
            "siblings": siblings,
        }

    def create_branch(self, repo: str, branch: str) -> Any:
        repository, _ = self.writing(repo)
        if branch in repository.branches:
            raise Refused(409, "Reference already exists")
        commit, _ = self.at(repository, self.json().get("startingPoint", "main"))
        repository.branches[branch] = commit
        return {}

    # What a revision holds

    def entry(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
        return entry

    def tree(self, repo: str, revision: str, path: str = "") -> Any:
        """Two entries a page, so that whoever stops at the first page is found out."""
        _, files = self.at(self.reading(repo), revision)
        inside = f"{path}/" if path else ""
        entries = [self.entry(name, blob) for name, blob in sorted(files.items()) if name.startswith(inside)]
        if path and not entries:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        if self.query.get("recursive") != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(inside)]
        start = int(self.query.get("cursor", 0))
        headers = {"Content-Type": "application/json"}
        if entries[start + 2 :]:
            where = (
                f"{self.hub.url}{urlsplit(self.path).path}?recursive={self.query.get('recursive')}&cursor={start + 2}"
            )
            headers["Link"] = f'<{where}>; rel="next"'
        return 200, headers, json.dumps(entries[start : start + 2]).encode()

    def paths_info(self, repo: str, revision: str) -> Any:
        _, files = self.at(self.reading(repo), revision)
        wanted = parse_qs(self.body.decode())["paths"]
        return [self.entry(path, files[path]) for path in wanted if path in files]

    def resolve(self, repo: str, revision: str, path: str) -> Any:
        commit, files = self.at(self.reading(repo), revision)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        blob = files[path]
        if blob.lfs:
            headers |= {
                "X-Linked-Etag": f'"{self.hub.announced.get(path, blob.sha256)}"',
                "X-Linked-Size": str(len(blob.content)),
            }
            return 302, {**headers, "Location": f"{self.hub.storage}/storage/{blob.sha256}"}, b""
        headers |= {"ETag": f'"{blob.oid}"', "Content-Length": str(len(blob.content))}
        return 200, headers, blob.content

    def large_file(self, oid: str) -> Any:
        if self.headers.get("Authorization"):
            raise Refused(400, "a token was sent to the storage")
        content = self.hub.objects[oid]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None:
            return 200, {"ETag": f'"{oid}"'}, content
        start = int(wanted[1])
        return 206, {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}, content[start:]

    # Uploads

    def preupload(self, repo: str, revision: str) -> Any:
        repository, _ = self.writing(repo)
        _, files = self.at(repository, revision)
        answer = []
        for file in self.json()["files"]:
            lfs = file["size"] >= LFS_FROM and not file["path"].endswith(".py")  # code is text, which git keeps itself
            blob = files.get(file["path"])
            oid = None if blob is None else blob.sha256 if blob.lfs else blob.oid
            answer.append(
                {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            )
        return {"files": answer}

    def batch(self, repo: str) -> Any:
        self.reading(repo)
        objects = []
        for wanted in self.json()["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry: dict[str, Any] = {"oid": oid, "size": size}
            objects.append(entry)
            if oid in self.hub.objects:
                continue
            upload: dict[str, Any] = {"href": f"{self.hub.storage}/storage/{oid}"}
            if self.hub.part_size and size > self.hub.part_size:
                count = -(-size // self.hub.part_size)
                parts = {str(number): f"{upload['href']}/{number}" for number in range(1, count + 1)}
                upload = {
                    "href": f"{self.hub.url}/storage/{oid}/complete",
                    "header": {"chunk_size": str(self.hub.part_size), **parts},
                }
            entry["actions"] = {"upload": upload}
        return {"transfer": "multipart" if self.hub.part_size else "basic", "objects": objects}

    def receive(self, oid: str, part: str = "") -> Any:
        if part:
            self.hub.parts[oid, int(part)] = self.body
            return 200, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}, b""
        return self.keep(oid, self.body)

    def assemble(self, oid: str) -> Any:
        content = b""
        for part in self.json()["parts"]:
            piece = self.hub.parts[oid, part["partNumber"]]
            if part["etag"].strip('"') != hashlib.md5(piece).hexdigest():
                raise Refused(400, "a part has another etag")
            content += piece
        return self.keep(oid, content)

    def keep(self, oid: str, content: bytes) -> Any:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "The content does not match the SHA-256 under which it was announced")
        self.hub.objects[oid] = content
        return {}

    def commit(self, repo: str, revision: str) -> Any:
        repository, author = self.writing(repo)
        head, files = self.at(repository, revision)
        header, *operations = map(json.loads, self.body.splitlines())
        parent = header["value"].get("parentCommit")
        if parent and parent != head:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(files)
        for operation in operations:
            path = operation["value"]["path"]
            if operation["key"] == "deletedFile":
                if files.pop(path, None) is None:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            elif operation["key"] == "file":
                files[path] = Blob(base64.b64decode(operation["value"]["content"]), lfs=False)
            else:
                if operation["value"]["oid"] not in self.hub.objects:
                    raise Refused(
                        400, "Your push was rejected because an LFS pointer points to a file that does not exist"
                    )
                files[path] = Blob(self.hub.objects[operation["value"]["oid"]], lfs=True)
        answer = {"success": True}
        if self.query.get("create_pr") == "1":
            number = len(repository.pull_requests) + 1
            repository.pull_requests[number] = PullRequest(header["value"]["summary"], author, revision, head)
            repository.branches[f"refs/pr/{number}"] = head
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{number}"
            revision = f"refs/pr/{number}"
        oid = repository.commit(revision, files)
        return {**answer, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"}

    # Pull requests

    def request_fields(self, repo: str, number: int) -> dict[str, Any]:
        request = self.hub.repositories[repo].pull_requests[number]
        return {
            "num": number,
            "title": request.title,
            "author": {"name": request.author},
            "createdAt": _NOW,
            "status": request.status,
            "isPullRequest": True,
            "repo": {"name": repo, "type": "model"},
        }

    def discussions(self, repo: str) -> Any:
        """One a page, newest first."""
        numbers = sorted(self.reading(repo).pull_requests, reverse=True)
        start = int(self.query.get("p", 0))
        found = [self.request_fields(repo, number) for number in numbers[start : start + 1]]
        return {"discussions": found, "count": len(numbers), "start": start}

    def discussion(self, repo: str, number: str) -> Any:
        self.reading(repo)
        fields = self.request_fields(repo, int(number))
        base = self.hub.repositories[repo].pull_requests[int(number)].base
        return {**fields, "changes": {"base": base}, "filesWithConflicts": [], "events": [], "diff": ""}

    def set_status(self, repo: str, number: str) -> Any:
        repository, account = self.reading(repo), self.account()
        author = repository.pull_requests[int(number)].author
        if account is None or account[0] not in (author, repo.split("/")[0]):
            raise Refused(403, "You may not change this pull request")
        status = self.json()["status"]
        repository.pull_requests[int(number)].status = status
        event = {
            "id": "1",
            "type": "status-change",
            "createdAt": _NOW,
            "data": {"status": status},
        }
        return {"newStatus": {**event, "author": {"name": author}}}

    def merge(self, repo: str, number: str) -> Any:
        repository, _ = self.writing(repo)
        request = repository.pull_requests[int(number)]
        if request.status != "open":
            raise Refused(400, f"This pull request is {request.status}")
        if repository.branches[request.base] != request.forked_at:
            raise Refused(409, "This pull request has conflicts")
        repository.commit(request.base, repository.commits[repository.branches[f"refs/pr/{number}"]])
        request.status = "merged"
        return {}
