"""What the Hub answers: the requests of the real huggingface_hub client for models and Spaces, as tests/minihub.py serves them."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

from hub_metadata import card_problems

LARGE = (".safetensors", ".bin", ".onnx", ".data", ".pt2", ".npz")  # .gitattributes of a new repository


class Refused(Exception):
    """An answer other than 200: status, message, and the Hub's word for it in X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None, **more):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **more}


@dataclass
class Repo:
    """commits: {sha: {"files": {path: entry}, "parent", "message"}}; an entry is {"oid", "sha256", "size", "lfs"}."""

    kind: str
    name: str
    private: bool
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)

    def commit(self, branch: str, files: dict, message: str) -> str:
        parent = self.branches.get(branch)
        sha = hashlib.sha1(json.dumps([files, parent, message], sort_keys=True).encode()).hexdigest()
        self.commits[sha] = {"files": files, "parent": parent, "message": message}
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        if sha is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def files(self, revision: str) -> dict:
        return self.commits[self.resolve(revision)]["files"]


class Routes:
    """Part of a request handler, which has: hub, headers, query, body. Each route returns the answer and its headers, or raises Refused."""

    ROUTES = (  # method, path, function; T: models, spaces or datasets
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/T/NAME/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/T/NAME/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/T/NAME/(?P<what>branch|tag)/(?P<revision>[^/]+)", "mark"),
        ("POST", r"/api/T/NAME/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", r"/api/T/NAME/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
        ("GET", r"/api/T/NAME/auth-check(?P<write>/write)?", "auth_check"),
        ("GET", r"/api/T/NAME/refs", "refs"),
        ("GET", r"/api/T/NAME(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("POST", r"/(?:(?P<kind>spaces|datasets)/)?NAME\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "put"),
        ("POST", r"/lfs/verify", "verify"),
        ("GET", r"/(?:(?P<kind>spaces|datasets)/)?NAME/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )  # fmt: skip

    def route(self, method: str, path: str):
        for expected, pattern, name in self.ROUTES:
            pattern = pattern.replace("/T/", "/(?P<kind>models|spaces|datasets)/").replace("NAME", r"(?P<name>[\w.-]+/[\w.-]+?)")
            if method == expected and (match := re.fullmatch(pattern, path)):
                found = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if "name" in found:
                    found["kind"] = found.get("kind", "models")[:-1]
                return getattr(self, name)(**found)
        raise Refused(404, f"nothing at {path}")

    # Who asks

    def user(self) -> dict | None:
        header = self.headers.get("Authorization", "")
        if not header:
            return None
        if header.removeprefix("Bearer ") not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[header.removeprefix("Bearer ")]

    def writer(self, owner: str) -> dict:
        user = self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if not user["write"] or owner not in (user["name"], *user["orgs"]):
            raise Refused(403, f"You don't have the rights to write under the namespace {owner}")
        return user

    def repo(self, kind: str, name: str, write: bool = False) -> Repo:
        user = self.user()
        repo = self.hub.repo(name, kind)
        if repo.private and (user is None or name.split("/")[0] not in (user["name"], *user["orgs"])):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.writer(name.split("/")[0])
        return repo

    # What they ask for

    def whoami(self):
        user = self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        return {"type": "user", "name": user["name"], "orgs": [{"name": name} for name in user["orgs"]]}, {}

    def create(self):
        asked = json.loads(self.body)
        kind, owner = asked.get("type") or "model", asked.get("organization")
        user = self.writer(owner or (self.user() or {}).get("name", ""))
        name = f"{owner or user['name']}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if f"{kind}s/{name}" in self.hub.repos:
            raise Refused(409, f"You already created this {kind} repo", url=url)
        if kind == "space" and asked.get("sdk") not in ("gradio", "docker", "static"):
            raise Refused(400, "sdk must be one of gradio, docker, static")
        repo = self.hub.repos[f"{kind}s/{name}"] = Repo(kind, name, asked.get("visibility") == "private" or bool(asked.get("private")))
        attributes = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE).encode()
        repo.commit("main", {".gitattributes": self.hub.store(attributes, False)}, "initial commit")
        self.hub.save()
        return {"url": url, "name": name}, {}

    def validate(self):
        asked = json.loads(self.body)
        errors, warnings = card_problems(asked["content"], asked.get("repoType", "model"))
        found = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        return found, {"status": 400 if errors else 200}

    def auth_check(self, kind, name, write=None):
        self.repo(kind, name, write is not None)
        return {}, {}

    def info(self, kind, name, revision="main"):
        repo = self.repo(kind, name)
        sha = repo.resolve(revision)
        siblings = [{"rfilename": path} for path in repo.commits[sha]["files"]]
        return {"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}, {}

    def refs(self, kind, name):
        repo = self.repo(kind, name)
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in repo.branches.items()]
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in repo.tags.items()]
        return {"branches": branches, "tags": tags, "converts": []}, {}

    def mark(self, kind, name, what, revision):
        repo, asked = self.repo(kind, name, write=True), json.loads(self.body or b"{}")
        refs, new, start = (
            (repo.branches, revision, asked.get("startingPoint", "main")) if what == "branch" else (repo.tags, asked["tag"], revision)
        )
        if new in refs:
            raise Refused(409, f"Reference already exists: {new}")
        refs[new] = repo.resolve(start)
        self.hub.save()
        return {}, {}

    def tree(self, kind, name, revision, path=""):
        files = self.repo(kind, name).files(revision)
        below = {p: entry for p, entry in files.items() if not path or p.startswith(path + "/")}
        if path and not below:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [self.row(p, entry) for p, entry in below.items()], {}
        start = len(path) + 1 if path else 0
        folders = sorted({p[:start] + p[start:].split("/")[0] for p in below if "/" in p[start:]})
        rows = [{"type": "directory", "path": p, "oid": hashlib.sha1(p.encode()).hexdigest(), "size": 0} for p in folders]
        return rows + [self.row(p, entry) for p, entry in below.items() if "/" not in p[start:]], {}

    def paths_info(self, kind, name, revision):
        files = self.repo(kind, name).files(revision)
        json_body = "json" in self.headers.get("Content-Type", "")
        asked = json.loads(self.body)["paths"] if json_body else parse_qs(self.body.decode()).get("paths", [])
        return [self.row(path, files[path]) for path in asked if path in files], {}

    @staticmethod
    def row(path: str, entry: dict) -> dict:
        large = {"lfs": {"oid": entry["sha256"], "size": entry["size"], "pointerSize": entry["pointer"]}} if entry["lfs"] else {}
        return {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"], **large}

    def resolve(self, kind, name, revision, path):
        repo = self.repo(kind, name)
        sha = repo.resolve(revision)
        entry = repo.commits[sha]["files"].get(path)
        if entry is None:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound", commit=sha)
        data = self.hub.blob(entry["sha256"]).read_bytes()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": f'"{entry["sha256"]}"', "X-Linked-Size": str(entry["size"])}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            if first >= len(data):
                raise Refused(416, "Range not satisfiable")
            return data[first : last + 1], headers | {"status": 206, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return data, headers

    def preupload(self, kind, name, revision):
        there = self.repo(kind, name, write=True).files(revision)
        rows = []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(LARGE) or file["size"] > 10_000_000
            entry = there.get(file["path"])
            oid = None if entry is None else entry["sha256"] if entry["lfs"] else entry["oid"]
            rows.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        return {"files": rows}, {}

    def batch(self, kind, name):
        self.repo(kind, name, write=True)
        objects = json.loads(self.body)["objects"]
        for thing in objects:
            if not self.hub.blob(thing["oid"]).exists():
                upload = {"href": f"{self.hub.url}/lfs/{thing['oid']}?X-Signature={self.hub.signature}"}
                thing["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/verify"}}
        return {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def put(self, oid):
        if self.query.get("X-Signature") != [self.hub.signature]:
            raise Refused(403, "SignatureDoesNotMatch")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "BadDigest")
        self.hub.store(self.body, True)
        return b"", {}

    def verify(self):
        asked = json.loads(self.body)
        blob = self.hub.blob(asked["oid"])
        if self.user() is None or not blob.exists() or blob.stat().st_size != asked["size"]:
            raise Refused(400, "the object is not there in this size")
        return {}, {}

    def commit(self, kind, name, revision):
        repo = self.repo(kind, name, write=True)
        if revision not in repo.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repo.branches[revision]):
            raise Refused(412, "The branch has moved since")
        files = dict(repo.files(revision))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                if value["path"] == "README.md" and (errors := card_problems(content.decode(), kind)[0]):
                    raise Refused(400, "; ".join(errors))
                files[value["path"]] = self.hub.store(content, False)
            elif line["key"] == "lfsFile":
                if not self.hub.blob(value["oid"]).exists():
                    raise Refused(400, f"LFS pointer of {value['path']} points to a file that does not exist")
                files[value["path"]] = self.hub.entry(value["oid"], value["size"], True)
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            elif line["key"] == "deletedFolder":
                files = {path: entry for path, entry in files.items() if not path.startswith(value["path"].rstrip("/") + "/")}
        sha = repo.commit(revision, files, header["summary"])  # only now, when nothing can be refused any more
        self.hub.save()
        prefix = "" if kind == "model" else f"{kind}s/"
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{prefix}{name}/commit/{sha}", "hookOutput": ""}, {}
