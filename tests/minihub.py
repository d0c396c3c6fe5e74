"""A Hub on loopback: what huggingface_hub's client asks of huggingface.co, answered from bare git repositories.

python tests/minihub.py FOLDER [PORT]

Enough for models, LFS files, tags and lists; not for Xet: the client needs HF_HUB_DISABLE_XET=1. The one valid token
is hf_test, its user is acme. `MiniHub.cut` breaks a connection, to see what a client leaves behind.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, USER = "hf_test", "acme"
POINTER = b"version https://git-lfs.github.com/spec/v1\n"
AUTHOR = {f"GIT_{role}_{what}": USER for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


class Refused(Exception):
    """An answer that is no success: status, the client's error code, and a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """A file of a commit. An LFS file is a pointer in git; `sha256` says what it points at."""

    path: str
    oid: str
    size: int
    sha256: str = ""

    def json(self) -> dict:
        lfs = {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": 130}
        return {"type": "file", "path": self.path, "oid": self.oid, "size": self.size} | (
            {"lfs": lfs} if self.sha256 else {}
        )


@dataclass(frozen=True)
class Repo:
    """A model repository: a bare git repository, with LFS objects beside it."""

    id: str
    folder: Path
    lfs: Path

    def git(self, *words: str, stdin: bytes = b"", **env: str) -> bytes:
        done = subprocess.run(
            ["git", "-C", self.folder, *words], input=stdin, capture_output=True, env=os.environ | AUTHOR | env
        )
        if done.returncode:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {done.stderr.decode().strip()}")
        return done.stdout

    def line(self, *words: str, stdin: bytes = b"", **env: str) -> str:
        return self.git(*words, stdin=stdin, **env).decode().strip()

    @property
    def private(self) -> bool:
        return (self.folder / "private").exists()

    def create(self, private: bool) -> None:
        self.folder.mkdir(parents=True)
        if private:
            (self.folder / "private").touch()
        self.git("init", "-q", "--bare", "-b", "main")
        rules = self.line("hash-object", "-w", "--stdin", stdin=b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        tree = self.line("mktree", stdin=f"100644 blob {rules}\t.gitattributes\n".encode())
        self.git("update-ref", "refs/heads/main", self.line("commit-tree", tree, "-m", "initial commit"))

    def commit_of(self, revision: str) -> str:
        return self.line("rev-parse", "--verify", "-q", f"{revision}^{{commit}}")

    def files(self, commit: str) -> dict[str, File]:
        found = {}
        for row in self.git("ls-tree", "-r", "-l", "-z", commit).decode().split("\0")[:-1]:
            about, path = row.split("\t", 1)
            _, _, oid, size = about.split()
            found[path] = File(path, oid, int(size))
            if 100 < int(size) < 200 and (text := self.git("cat-file", "blob", oid)).startswith(POINTER):
                sha256, size = re.search(rb"sha256:(\w+)\nsize (\d+)", text).groups()
                found[path] = File(path, oid, int(size), sha256.decode())
        return found

    def read(self, file: File) -> bytes:
        return (self.lfs / file.sha256).read_bytes() if file.sha256 else self.git("cat-file", "blob", file.oid)

    def write(self, branch: str, header: dict, changes: list[dict]) -> str:
        head = self.commit_of(f"refs/heads/{branch}")
        if header.get("parentCommit", head) != head:
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        with tempfile.TemporaryDirectory() as scratch:
            index = {"GIT_INDEX_FILE": f"{scratch}/index"}
            self.git("read-tree", head, **index)
            for change in changes:
                value = change["value"]
                match change["key"]:
                    case "file":
                        content = base64.b64decode(value["content"])
                    case "lfsFile":
                        if not (self.lfs / value["oid"]).exists():
                            raise Refused(400, "", f"LFS object {value['oid']} is missing")
                        content = POINTER + f"oid sha256:{value['oid']}\nsize {value['size']}\n".encode()
                    case _:
                        self.git("rm", "--cached", "-r", "-q", "--", value["path"], **index)
                        continue
                oid = self.line("hash-object", "-w", "--stdin", stdin=content)
                self.git("update-index", "--add", "--cacheinfo", f"100644,{oid},{value['path']}", **index)
            tree = self.line("write-tree", **index)
        message = f"{header['summary']}\n\n{header.get('description') or ''}"
        commit = self.line("commit-tree", tree, "-p", head, "-m", message)
        self.git("update-ref", f"refs/heads/{branch}", commit, head)
        return commit

    def refs(self, kind: str) -> list[dict]:
        about = "%(refname:lstrip=2) %(refname) %(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end)"
        rows = self.line("for-each-ref", f"--format={about}", f"refs/{kind}").splitlines()
        return [dict(zip(("name", "ref", "targetCommit"), row.split(), strict=True)) for row in rows]

    def json(self, revision: str = "main") -> dict:
        commit = self.commit_of(revision)
        files = self.files(commit)
        card = {}
        if "README.md" in files:
            front = re.match(rb"---\n(.*?)\n---", self.read(files["README.md"]), re.DOTALL)
            card = yaml.safe_load(front[1]) if front else {}
        tags = [*card.get("tags", []), *([f"base_model:{card['base_model']}"] if "base_model" in card else [])]
        return {
            "_id": "0",
            "id": self.id,
            "author": self.id.split("/")[0],
            "sha": commit,
            "private": self.private,
            "tags": tags,
            "cardData": card,
            "siblings": [{"rfilename": path} for path in files],
        }


class MiniHub(ThreadingHTTPServer):
    """The server; `with MiniHub(folder) as hub:` runs it in a thread."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.folder, self.writing, self.asked, self.sent = folder, threading.Lock(), [], 0
        self._cut = (0, False)
        self.full = False
        (folder / "lfs").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "MiniHub":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client's process needs to come here and nowhere else."""
        home = str(self.folder / "home")
        told = {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1"}
        return os.environ | told | {"HF_HUB_OFFLINE": "0", "TZ": "UTC"}

    def forget_cache(self) -> None:
        shutil.rmtree(self.folder / "home", ignore_errors=True)

    def cut(self, n: int, answered: bool = False) -> None:
        """Break the connection at the n-th request from now on: before it is heard, or half-way through the answer."""
        self.asked, self._cut = [], (n, answered)

    def cuts(self) -> str:
        at, answered = self._cut
        return ("late" if answered else "early") if len(self.asked) == at else ""

    def repo(self, id_: str, token: bool = True) -> Repo:
        repo = Repo(id_, self.folder / f"{id_}.git", self.folder / "lfs")
        if not repo.folder.exists() or (repo.private and not token):
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return repo


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MiniHub

    def log_message(self, *_: object) -> None:
        """Tests look at `MiniHub.asked`."""

    def do_GET(self) -> None:
        with self.server.writing:  # one at a time: as atomic as the real one
            self.server.asked.append(f"{self.command} {self.path}")
            if (cut := self.server.cuts()) == "early":
                self.close_connection = True
                return
            self.body = self._read()
            try:
                answer = self._answer()
            except Refused as error:
                told = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
                answer = said({"error": str(error)}, status=error.status, **told)
        self._send(answer, half=cut == "late")

    do_POST = do_PUT = do_HEAD = do_GET

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, answer: Answer, half: bool) -> None:
        self.send_response(answer.status)
        told = {"Content-Type": "application/json", "Content-Length": str(len(answer.body))}
        for key, value in (told | answer.headers).items():
            self.send_header(key, value)
        self.close_connection = half
        if half and (self.command == "HEAD" or not answer.body):
            return  # the headers are still in the buffer: nothing is sent
        self.end_headers()
        if self.command != "HEAD":
            self.server.sent += self.wfile.write(answer.body[: len(answer.body) // 2] if half else answer.body)

    @cached_property
    def _routes(self) -> list:
        repo = r"([\w.-]+/[\w.-]+)"
        return [
            ("POST", "/api/validate-yaml", self._validate),
            ("GET", "/api/models", self._list),
            ("POST", "/api/repos/create", self._create),
            ("PUT", r"/lfs/([0-9a-f]{64})", self._store),
            ("POST", f"/{repo}.git/info/lfs/objects/batch", self._batch),
            ("GET", f"/{repo}/resolve/([^/]+)/(.+)", self._download),
            ("GET", f"/api/models/{repo}", lambda id_: said(self._repo(id_).json())),
            ("GET", f"/api/models/{repo}/revision/([^/]+)", lambda id_, rev: said(self._repo(id_).json(rev))),
            ("GET", f"/api/models/{repo}/tree/([^/]+)", self._tree),
            ("GET", f"/api/models/{repo}/refs", self._refs),
            ("POST", f"/api/models/{repo}/preupload/([^/]+)", self._preupload),
            ("POST", f"/api/models/{repo}/commit/([^/]+)", self._commit),
            ("POST", f"/api/models/{repo}/tag/([^/]+)", self._tag),
        ]

    def _answer(self) -> Answer:
        path = urlsplit(self.path).path
        for method, pattern, route in self._routes:
            if method in (self.command, "GET" if self.command == "HEAD" else "") and (
                found := re.fullmatch(pattern, path)
            ):
                if method != "GET" and not self._known and not path.startswith(("/api/validate", "/lfs/")):
                    raise Refused(401, "", "Invalid username or password.")
                return route(*map(unquote, found.groups()))
        raise Refused(404, "", f"no route {self.command} {path}")

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, id_: str) -> Repo:
        return self.server.repo(id_, self._known)

    def _validate(self) -> Answer:
        card = yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1])
        good = re.fullmatch(r"[a-z0-9.-]+", card.get("license", "mit"))
        errors = [] if good else [{"message": '"license" must be one of [apache-2.0, mit, ...]'}]
        return said({"errors": errors, "warnings": []}, status=400 if errors else 200)

    def _list(self) -> Answer:
        query = parse_qs(urlsplit(self.path).query)
        author, wanted = query.get("author", ["*"])[0], set(query.get("filter", []))
        ids = sorted(f"{path.parent.name}/{path.stem}" for path in self.server.folder.glob(f"{author}/*.git"))
        repos = [self.server.repo(id_) for id_ in ids]
        rows = [repo.json() for repo in repos if self._known or not repo.private]
        return said([row for row in rows if wanted <= set(row["tags"])])

    def _create(self) -> Answer:
        asked = json.loads(self.body)
        id_ = f"{asked.get('organization') or USER}/{asked['name']}"
        repo = Repo(id_, self.server.folder / f"{id_}.git", self.server.folder / "lfs")
        url = f"{self.server.url}/{id_}"
        if repo.folder.exists():
            return said({"error": "You already created this model repo", "url": url}, status=409)
        repo.create(bool(asked.get("private")) or asked.get("visibility") == "private")
        return said({"url": url, "name": id_, "id": "0"})

    def _store(self, sha256: str) -> Answer:
        if self.server.full:
            raise Refused(413, "", f"no space left for {TOKEN}")  # some servers tell too much
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise Refused(400, "", "hash mismatch")
        (self.server.folder / "lfs" / sha256).write_bytes(self.body)
        return said({})

    def _batch(self, id_: str) -> Answer:
        repo, objects = self._repo(id_), []
        for one in json.loads(self.body)["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
            there = (repo.lfs / one["oid"]).exists()
            objects.append({"oid": one["oid"], "size": one["size"]} | ({} if there else upload))
        return said({"transfer": "basic", "objects": objects}, **{"Content-Type": "application/vnd.git-lfs+json"})

    def _download(self, id_: str, revision: str, path: str) -> Answer:
        repo = self._repo(id_)
        commit = repo.commit_of(revision)
        if (file := repo.files(commit).get(path)) is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content, tag = repo.read(file), f'"{file.sha256 or file.oid}"'
        told = {"Content-Type": "application/octet-stream", "ETag": tag, "X-Repo-Commit": commit}
        if file.sha256:
            told |= {"X-Linked-Etag": tag, "X-Linked-Size": str(file.size)}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            begin = int(asked[1])
            part = content[begin : int(asked[2]) + 1 if asked[2] else None]
            span = f"bytes {begin}-{begin + len(part) - 1}/{len(content)}"
            return Answer(part, 206, told | {"Content-Range": span})
        return Answer(content, 200, told)

    def _tree(self, id_: str, revision: str) -> Answer:
        repo = self._repo(id_)
        return said([file.json() for file in repo.files(repo.commit_of(revision)).values()])

    def _refs(self, id_: str) -> Answer:
        repo = self._repo(id_)
        return said({"branches": repo.refs("heads"), "tags": repo.refs("tags"), "converts": [], "pullRequests": []})

    def _preupload(self, id_: str, revision: str) -> Answer:
        repo, rows = self._repo(id_), []
        there = repo.files(repo.commit_of(revision))
        for file in json.loads(self.body)["files"]:
            lfs = file["path"].endswith(".safetensors") or file["size"] > 10_000_000
            row = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            old = there.get(file["path"])
            rows.append(row | ({"oid": old.sha256 or old.oid} if old else {}))
        return said({"files": rows})

    def _commit(self, id_: str, branch: str) -> Answer:
        header, *changes = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        commit = self._repo(id_).write(branch, header["value"], changes)
        url = f"{self.server.url}/{id_}/commit/{commit}"
        return said({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _tag(self, id_: str, revision: str) -> Answer:
        repo, asked = self._repo(id_), json.loads(self.body)
        if asked["tag"] in [tag["name"] for tag in repo.refs("tags")]:
            raise Refused(409, "", "Tag already exists")
        repo.git("tag", "-a", "-m", asked.get("message") or asked["tag"], asked["tag"], repo.commit_of(revision))
        return said({})


def said(value: object, status: int = 200, **headers: str) -> Answer:
    return Answer(json.dumps(value).encode(), status, headers)


if __name__ == "__main__":
    with MiniHub(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0) as running:
        print(running.url, flush=True)
        threading.Event().wait()
