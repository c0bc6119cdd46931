"""A Hub on loopback, in memory: the part of the real one's HTTP that pushing and loading use, and faults on demand.

It knows tokens, private and gated repositories, branches, pull requests, parent commits and large files, and keeps a log of
every request. `Hub.fault` plants what a network does: an error status, a cut connection, a lost answer.
"""

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITE_TOKEN, READ_TOKEN, OTHER_TOKEN = "hf_writeTokenOfTester", "hf_readTokenOfTester", "hf_writeTokenOfSomebodyElse"
USERS = {WRITE_TOKEN: ("tester", "write"), READ_TOKEN: ("tester", "read"), OTHER_TOKEN: ("somebody", "write")}
LARGE = (".safetensors", ".bin", ".pt", ".png")
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def digest(*parts: bytes) -> str:
    return hashlib.sha1(b"".join(parts)).hexdigest()


@dataclass(frozen=True)
class File:
    """Content, and whether it is stored as a large file (LFS)."""

    data: bytes
    large: bool = False

    @property
    def oid(self) -> str:
        """What git calls the content."""
        return digest(b"blob %d\0" % len(self.data), self.data)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass
class Repo:
    """Commits by their id, and what branches and pull requests point at."""

    owner: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pulls: int = 0

    def add(self, ref: str, files: dict[str, File]) -> str:
        commit = digest(uuid.uuid4().bytes)
        self.commits[commit] = files
        self.refs[ref] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """The commit of a branch, a pull request or a commit id."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        commit = self.find(revision)
        assert commit is not None, f"no revision {revision}"
        return {path: file.data for path, file in self.commits[commit].items()}


@dataclass
class Fault:
    """What happens to the next `times` requests that match.

    Attributes:
        status: answer with this status, before anything is done.
        cut: close the connection: in the middle of the "upload" of the request's body, "before" the request is handled,
            "after" it was (the answer is lost), or in the "middle" of the answer's body.
        call: called before the request is handled as usual.
    """

    method: str
    path: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "planted fault"
    code: str | None = None
    cut: str | None = None
    call: Callable[[], None] | None = None
    times: int = 1

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and re.search(self.path, path) is not None


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None
    body: bytes


class Hub:
    """The state of the server. `large=False` stores every file in git, as a server without LFS or Xet would."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.url = ""
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.large = True
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []

    def fault(self, method: str, path: str, **what: Any) -> Fault:
        """Plant a fault for requests of `method` whose path matches the pattern."""
        planted = Fault(method, path, **what)
        self.faults.append(planted)
        return planted

    def create(self, name: str, files: Mapping[str, bytes | str] | None = None, **options: Any) -> Repo:
        """A repository with one commit; text files are written as they are given."""
        repo = self.repos[name] = Repo(owner=name.split("/")[0], **options)
        content = {path: data.encode() if isinstance(data, str) else data for path, data in (files or {}).items()}
        repo.add("main", {path: self.file(path, data) for path, data in content.items()})
        return repo

    def file(self, path: str, data: bytes) -> File:
        return File(data, large=self.large and path.endswith(LARGE))

    def requests(self, method: str, pattern: str) -> list[Request]:
        return [one for one in self.log if one.method == method and re.search(pattern, one.path)]

    def uploaded(self) -> list[bytes]:
        """Every byte sequence that ever arrived: large objects, and the contents of commits, decoded."""
        contents = list(self.objects.values())
        for request in self.log:
            contents.append(request.body)
            if "/commit/" in request.path:
                for line in request.body.splitlines():
                    value = json.loads(line)["value"]
                    contents.append(json.dumps(value).encode())
                    if "content" in value:
                        contents.append(base64.b64decode(value["content"]))
        return contents


class Answer(Exception):
    """Ends the handling of a request."""

    def __init__(self, status: int, body: Any = b"", headers: Mapping[str, str] | None = None):
        self.status, self.headers = status, dict(headers or {})
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"


def refusal(status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(status, {"error": message}, {**named, **(headers or {})})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr; the hub has its own log."""

    def handle_any(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        with self.hub.lock:
            fault = next((one for one in self.hub.faults if one.matches(self.command, path)), None)
            if fault is not None:
                fault.times -= 1
        if fault is not None and fault.cut == "upload":
            self.rfile.read(int(self.headers.get("Content-Length") or 2) // 2)
            return self.cut()
        body = self.read_body()
        header = self.headers.get("Authorization") or ""
        token = header.removeprefix("Bearer ") or None
        with self.hub.lock:
            self.hub.log.append(Request(self.command, self.path, token, body))
        if fault is not None and fault.call is not None:
            fault.call()
        if fault is not None and fault.cut == "before":
            return self.cut()
        if fault is not None and fault.status is not None:
            return self.send(refusal(fault.status, fault.message, fault.code, fault.headers))
        try:
            with self.hub.lock:
                routes(self.hub, self.command, address.path, query, token, body, self.server.server_port)  # type: ignore[attr-defined]
        except Answer as answer:
            if fault is not None and fault.cut == "after":
                return self.cut()
            self.send(answer, half=fault is not None and fault.cut == "middle")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_any

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def send(self, answer: Answer, *, half: bool = False) -> None:
        headers = {
            "Content-Type": answer.kind,
            "Content-Length": str(len(answer.body)),
            "X-Request-Id": uuid.uuid4().hex,
        }
        self.send_response(answer.status)
        for name, value in {**headers, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if half:
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.wfile.flush()
            return self.cut()
        self.wfile.write(answer.body)


def routes(hub: Hub, method: str, raw: str, query: Any, token: str | None, body: bytes, port: int) -> None:
    """Raises the answer to a request."""
    path = unquote(raw)
    if path.startswith("/_objects/"):
        large_object(hub, method, path, body)
    if token is not None and token not in USERS:
        raise refusal(401, "Invalid credentials in Authorization header")
    if path == "/api/whoami-v2":
        who_am_i(token)
    if path == "/api/repos/create":
        create_repo(hub, token, json.loads(body))
    if path == "/api/validate-yaml":
        found = validated(json.loads(body)["content"])
        raise Answer(400 if found["errors"] else 200, found)
    if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
        proposable(hub, match[1], token)
        lfs_batch(hub, json.loads(body))
    if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/(.+))?)?", path):
        repo_api(hub, method, match[1], match[2], match[3] or "main", query, token, body)
    if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", raw):
        resolve(hub, *map(unquote, match.groups()), token, port)
    raise refusal(404, f"no route {method} {path}")


def who_am_i(token: str | None) -> None:
    if token is None:
        raise refusal(401, "Invalid username or password.")
    name, role = USERS[token]
    access = {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}
    raise Answer(200, {"type": "user", "name": name, "fullname": name, "orgs": [], "auth": access})


def create_repo(hub: Hub, token: str | None, asked: Mapping[str, Any]) -> None:
    if token is None:
        raise refusal(401, "Invalid username or password.")
    user, role = USERS[token]
    owner = asked.get("organization") or user
    name = f"{owner}/{asked['name']}"
    if role != "write" or owner != user:
        raise refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}.")
    if name in hub.repos:
        raise Answer(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
    private = bool(asked.get("private")) or asked.get("visibility") == "private"
    hub.create(name, {".gitattributes": "*.safetensors filter=lfs\n"}, private=private)
    raise Answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": uuid.uuid4().hex[:24]})


def validated(content: str) -> dict[str, Any]:
    """The real Hub refuses a base model or a data set that is no repository's name."""
    front = content.split("---\n")[1] if content.startswith("---\n") else ""
    metadata = yaml.safe_load(front) or {}
    errors = []
    for key in ("base_model", "datasets"):
        values = metadata.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            if not REPO_ID.fullmatch(str(value)):
                errors.append({"message": f'"{key}" with value "{value}" is not valid. Use a model id from the Hub.'})
    return {"errors": errors, "warnings": []}


def readable(hub: Hub, name: str, token: str | None) -> Repo:
    repo = hub.repos.get(name)
    user = USERS[token][0] if token else None
    if repo is None or (repo.private and repo.owner != user):
        raise refusal(404 if token else 401, "Repository not found", "RepoNotFound")
    return repo


def writable(hub: Hub, name: str, token: str | None) -> Repo:
    if token is None:
        raise refusal(401, "Invalid username or password.")
    repo = readable(hub, name, token)
    if USERS[token] != (repo.owner, "write"):
        raise refusal(403, f"Forbidden: pass `create_pr=1` or use a token that can write to {name}.")
    return repo


def proposable(hub: Hub, name: str, token: str | None) -> None:
    """Whoever may read a repository and write somewhere may propose a change to it."""
    readable(hub, name, token)
    if token is None or USERS[token][1] != "write":
        raise refusal(403 if token else 401, "Forbidden: your token cannot write.")


def repo_api(
    hub: Hub, method: str, name: str, action: str | None, rest: str, query: Any, token: str | None, body: bytes
) -> None:
    repo = readable(hub, name, token)
    if action in (None, "revision"):
        describe(name, repo, rest)
    if action == "tree":
        list_files(repo, *rest.split("/", 1))
    if action == "refs":
        list_refs(repo)
    if action in ("preupload", "commit") and rest not in repo.refs:
        raise refusal(404, f"Invalid rev id: {rest}", "RevisionNotFound")
    if action == "discussions" and method == "GET":
        list_discussions(name, repo)
    pull_request = query.get("create_pr") == ["1"]
    (proposable if pull_request else writable)(hub, name, token)
    if action == "preupload":
        files = json.loads(body)["files"]
        head = repo.commits[repo.refs[rest]]
        raise Answer(200, {"files": [upload_mode(hub, head, one["path"]) for one in files]})
    if action == "commit":
        commit(hub, name, repo, rest, pull_request, body)
    if action == "branch" and method == "POST":
        if rest in repo.refs:
            raise refusal(409, "Reference already exists")
        repo.refs[rest] = repo.refs["main"]
        raise Answer(200, {})
    if action == "branch" and method == "DELETE":
        del repo.refs[rest]
        raise Answer(200, {})
    raise refusal(404, f"no action {method} {action}")


def describe(name: str, repo: Repo, revision: str) -> None:
    sha = repo.find(revision)
    if sha is None:
        raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
    facts = {"_id": "0" * 24, "id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings}
    raise Answer(200, {**facts, "tags": [], "downloads": 0, "likes": 0, "gated": "auto" if repo.gated else False})


def list_files(repo: Repo, revision: str, folder: str | None = None) -> None:
    sha = repo.find(revision) or repo.find(f"{revision}/{folder}")  # refs/pr/1 holds slashes
    if sha is None:
        raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    found = []
    for path, file in sorted(repo.commits[sha].items()):
        if folder is None or path.startswith(f"{folder}/"):
            large = {"lfs": {"oid": file.sha256, "size": len(file.data), "pointerSize": 134}} if file.large else {}
            found.append({"type": "file", "path": path, "size": len(file.data), "oid": file.oid, **large})
    if folder is not None and not found:
        raise refusal(404, f"{folder} does not exist", "EntryNotFound")
    raise Answer(200, found)


def list_refs(repo: Repo) -> None:
    named: dict[str, list[Any]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
    for ref, sha in repo.refs.items():
        pull = ref.startswith("refs/pr/")
        entry = {"name": ref, "ref": ref if pull else f"refs/heads/{ref}", "targetCommit": sha}
        named["pullRequests" if pull else "branches"].append(entry)
    raise Answer(200, named)


def list_discussions(name: str, repo: Repo) -> None:
    """Every pull request is open here."""
    shared = {
        "title": "Change",
        "author": {"name": "tester"},
        "createdAt": "2020-01-01T00:00:00.000Z",
        "status": "open",
    }
    place = {"repo": {"name": name, "type": "model"}, "isPullRequest": True}
    found = [{"num": number, **shared, **place} for number in range(1, repo.pulls + 1)]
    raise Answer(200, {"discussions": found, "count": len(found), "start": 0, "numClosedDiscussions": 0})


def upload_mode(hub: Hub, head: Mapping[str, File], path: str) -> dict[str, Any]:
    mode = "lfs" if hub.large and path.endswith(LARGE) else "regular"
    known = head.get(path)
    oid = {} if known is None else {"oid": known.sha256 if known.large else known.oid}
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, **oid}


def lfs_batch(hub: Hub, asked: Mapping[str, Any]) -> None:
    objects = []
    for one in asked["objects"]:
        entry: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in hub.objects:
            upload, verify = (f"{hub.url}/_objects/{action}/{one['oid']}" for action in ("up", "verify"))
            entry["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        objects.append(entry)
    raise Answer(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})


def large_object(hub: Hub, method: str, path: str, body: bytes) -> None:
    action, oid = path.split("/")[2:]
    if action == "up":
        if hashlib.sha256(body).hexdigest() != oid:
            raise refusal(400, "the content is not what its name says")
        hub.objects[oid] = body
        raise Answer(200)
    if action == "verify" or oid not in hub.objects:
        raise Answer(200 if oid in hub.objects else 404)
    raise Answer(200, hub.objects[oid], {"ETag": f'"{oid}"'})


def commit(hub: Hub, name: str, repo: Repo, ref: str, pull_request: bool, body: bytes) -> None:
    files = dict(repo.commits[repo.refs[ref]])
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header" and value.get("parentCommit") not in (None, repo.refs[ref]):
            raise refusal(412, "A commit has happened since. Please refresh and try again.")
        if item["key"] == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]))
        elif item["key"] == "lfsFile":
            if value["oid"] not in hub.objects:
                raise refusal(400, "LFS pointer pointed to a file that does not exist")
            files[value["path"]] = File(hub.objects[value["oid"]], large=True)
        elif item["key"] == "deletedFile":
            files.pop(value["path"], None)
    answer: dict[str, Any] = {"success": True, "hookOutput": ""}
    if pull_request:
        repo.pulls += 1
        ref = f"refs/pr/{repo.pulls}"
        answer["pullRequestUrl"] = f"{hub.url}/{name}/discussions/{repo.pulls}"
    sha = repo.add(ref, files)
    raise Answer(200, {**answer, "commitOid": sha, "commitUrl": f"{hub.url}/{name}/commit/{sha}"})


def resolve(hub: Hub, name: str, revision: str, path: str, token: str | None, port: int) -> None:
    repo = readable(hub, name, token)
    user = USERS[token][0] if token else None
    if repo.gated and user != repo.owner:
        raise refusal(403 if token else 401, f"Access to model {name} is restricted.", "GatedRepo")
    sha = repo.find(revision)
    if sha is None:
        raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    file = repo.commits[sha].get(path)
    if file is None:
        raise refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})
    headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    if file.large:
        hub.objects.setdefault(file.sha256, file.data)
        # on another host name, as the real one's storage: the client takes an address on its own for a moved repository
        place = f"http://localhost:{port}/_objects/down/{file.sha256}"
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data)), "Location": place}
        raise Answer(302, b"", {**headers, **linked, "ETag": f'"{file.sha256}"'})
    raise Answer(200, file.data, {**headers, "ETag": f'"{file.oid}"'})


def start() -> tuple[Hub, ThreadingHTTPServer]:
    """A server in a thread of this process; `Hub.url` is its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub, server
