"""The routes of tests/minihub.py: the requests of huggingface_hub for models, Spaces and data sets, and their answers."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

from hub_metadata import card_problems

LARGE = (".safetensors", ".bin", ".onnx", ".data", ".pt2", ".npz")  # .gitattributes of a new repository


class Rejected(Exception):
    """An answer other than 200: status, message, and the Hub's name for the error in X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None, **more):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **more}


@dataclass
class Repo:
    """A repository. commits: {sha: {"files": {path: entry}, "parent", "message"}}; an entry is {"oid", "sha256", "size", "lfs"}."""

    repo_type: str
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
            raise Rejected(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def files(self, revision: str) -> dict:
        return self.commits[self.resolve(revision)]["files"]


class Routes:
    """Part of a request handler with hub, headers, query and body. Each route returns the answer and its headers, or raises Rejected."""

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
        ("POST", r"/(?:(?P<repo_type>spaces|datasets)/)?NAME\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "put"),
        ("POST", r"/lfs/verify", "verify"),
        ("GET", r"/(?:(?P<repo_type>spaces|datasets)/)?NAME/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )  # fmt: skip

    def route(self, method: str, path: str):
        for expected, pattern, name in self.ROUTES:
            pattern = pattern.replace("/T/", "/(?P<repo_type>models|spaces|datasets)/").replace("NAME", r"(?P<name>[\w.-]+/[\w.-]+?)")
            if method == expected and (match := re.fullmatch(pattern, path)):
                parameters = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if "name" in parameters:
                    parameters["repo_type"] = parameters.get("repo_type", "models")[:-1]
                return getattr(self, name)(**parameters)
        raise Rejected(404, f"nothing at {path}")

    # Users and rights

    def user(self) -> dict | None:
        header = self.headers.get("Authorization", "")
        if not header:
            return None
        if header.removeprefix("Bearer ") not in self.hub.tokens:
            raise Rejected(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[header.removeprefix("Bearer ")]

    def writer(self, owner: str) -> dict:
        user = self.user()
        if user is None:
            raise Rejected(401, "Invalid username or password.")
        if not user["write"] or owner not in (user["name"], *user["orgs"]):
            raise Rejected(403, f"You don't have the rights to write under the namespace {owner}")
        return user

    def repo(self, repo_type: str, name: str, write: bool = False) -> Repo:
        user = self.user()
        repo = self.hub.repo(name, repo_type)
        if repo.private and (user is None or name.split("/")[0] not in (user["name"], *user["orgs"])):
            raise Rejected(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.writer(name.split("/")[0])
        return repo

    # Requests

    def whoami(self):
        user = self.user()
        if user is None:
            raise Rejected(401, "Invalid username or password.")
        return {"type": "user", "name": user["name"], "orgs": [{"name": name} for name in user["orgs"]]}, {}

    def create(self):
        requested = json.loads(self.body)
        repo_type, owner = requested.get("type") or "model", requested.get("organization")
        user = self.writer(owner or (self.user() or {}).get("name", ""))
        name = f"{owner or user['name']}/{requested['name']}"
        url = f"{self.hub.url}/{'' if repo_type == 'model' else repo_type + 's/'}{name}"
        if f"{repo_type}s/{name}" in self.hub.repos:
            raise Rejected(409, f"You already created this {repo_type} repo", url=url)
        if repo_type == "space" and requested.get("sdk") not in ("gradio", "docker", "static"):
            raise Rejected(400, "sdk must be one of gradio, docker, static")
        private = requested.get("visibility") == "private" or bool(requested.get("private"))
        repo = self.hub.repos[f"{repo_type}s/{name}"] = Repo(repo_type, name, private)
        attributes = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE).encode()
        repo.commit("main", {".gitattributes": self.hub.store(attributes, False)}, "initial commit")
        self.hub.save()
        return {"url": url, "name": name}, {}

    def validate(self):
        requested = json.loads(self.body)
        errors, warnings = card_problems(requested["content"], requested.get("repoType", "model"))
        problems = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        return problems, {"status": 400 if errors else 200}

    def auth_check(self, repo_type, name, write=None):
        self.repo(repo_type, name, write is not None)
        return {}, {}

    def info(self, repo_type, name, revision="main"):
        repo = self.repo(repo_type, name)
        sha = repo.resolve(revision)
        siblings = [{"rfilename": path} for path in repo.commits[sha]["files"]]
        return {"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}, {}

    def refs(self, repo_type, name):
        repo = self.repo(repo_type, name)
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in repo.branches.items()]
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in repo.tags.items()]
        return {"branches": branches, "tags": tags, "converts": []}, {}

    def mark(self, repo_type, name, what, revision):
        repo, body = self.repo(repo_type, name, write=True), json.loads(self.body or b"{}")
        refs, new, start = (
            (repo.branches, revision, body.get("startingPoint", "main")) if what == "branch" else (repo.tags, body["tag"], revision)
        )
        if new in refs:
            raise Rejected(409, f"Reference already exists: {new}")
        refs[new] = repo.resolve(start)
        self.hub.save()
        return {}, {}

    def tree(self, repo_type, name, revision, path=""):
        files = self.repo(repo_type, name).files(revision)
        below = {p: entry for p, entry in files.items() if not path or p.startswith(path + "/")}
        if path and not below:
            raise Rejected(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [self.row(p, entry) for p, entry in below.items()], {}
        start = len(path) + 1 if path else 0
        folders = sorted({p[:start] + p[start:].split("/")[0] for p in below if "/" in p[start:]})
        rows = [{"type": "directory", "path": p, "oid": hashlib.sha1(p.encode()).hexdigest(), "size": 0} for p in folders]
        return rows + [self.row(p, entry) for p, entry in below.items() if "/" not in p[start:]], {}

    def paths_info(self, repo_type, name, revision):
        files = self.repo(repo_type, name).files(revision)
        json_body = "json" in self.headers.get("Content-Type", "")
        requested = json.loads(self.body)["paths"] if json_body else parse_qs(self.body.decode()).get("paths", [])
        return [self.row(path, files[path]) for path in requested if path in files], {}

    @staticmethod
    def row(path: str, entry: dict) -> dict:
        large = {"lfs": {"oid": entry["sha256"], "size": entry["size"], "pointerSize": entry["pointer"]}} if entry["lfs"] else {}
        return {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"], **large}

    def resolve(self, repo_type, name, revision, path):
        repo = self.repo(repo_type, name)
        sha = repo.resolve(revision)
        entry = repo.commits[sha]["files"].get(path)
        if entry is None:
            raise Rejected(404, f"{path} does not exist on {revision}", "EntryNotFound", commit=sha)
        data = self.hub.blob(entry["sha256"]).read_bytes()
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": f'"{entry["sha256"]}"', "X-Linked-Size": str(entry["size"])}
        if requested := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(requested[1]), min(int(requested[2] or len(data) - 1), len(data) - 1)
            if first >= len(data):
                raise Rejected(416, "Range not satisfiable")
            return data[first : last + 1], headers | {"status": 206, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return data, headers

    def preupload(self, repo_type, name, revision):
        files = self.repo(repo_type, name, write=True).files(revision)
        rows = []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(LARGE) or file["size"] > 10_000_000
            entry = files.get(file["path"])
            oid = None if entry is None else entry["sha256"] if entry["lfs"] else entry["oid"]
            rows.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        return {"files": rows}, {}

    def batch(self, repo_type, name):
        self.repo(repo_type, name, write=True)
        objects = json.loads(self.body)["objects"]
        for lfs_object in objects:
            if not self.hub.blob(lfs_object["oid"]).exists():
                upload = {"href": f"{self.hub.url}/lfs/{lfs_object['oid']}?X-Signature={self.hub.signature}"}
                lfs_object["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/verify"}}
        return {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def put(self, oid):
        if self.query.get("X-Signature") != [self.hub.signature]:
            raise Rejected(403, "SignatureDoesNotMatch")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Rejected(400, "BadDigest")
        self.hub.store(self.body, True)
        return b"", {}

    def verify(self):
        requested = json.loads(self.body)
        blob = self.hub.blob(requested["oid"])
        if self.user() is None or not blob.exists() or blob.stat().st_size != requested["size"]:
            raise Rejected(400, "no object of this size")
        return {}, {}

    def commit(self, repo_type, name, revision):
        repo = self.repo(repo_type, name, write=True)
        if revision not in repo.branches:
            raise Rejected(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repo.branches[revision]):
            raise Rejected(412, "The branch has moved since")
        files = dict(repo.files(revision))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                if value["path"] == "README.md" and (errors := card_problems(content.decode(), repo_type)[0]):
                    raise Rejected(400, "; ".join(errors))
                files[value["path"]] = self.hub.store(content, False)
            elif line["key"] == "lfsFile":
                if not self.hub.blob(value["oid"]).exists():
                    raise Rejected(400, f"LFS pointer of {value['path']} points to a file that does not exist")
                files[value["path"]] = self.hub.entry(value["oid"], value["size"], True)
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Rejected(404, "A file with this name doesn't exist", "EntryNotFound")
            elif line["key"] == "deletedFolder":
                files = {path: entry for path, entry in files.items() if not path.startswith(value["path"].rstrip("/") + "/")}
        sha = repo.commit(revision, files, header["summary"])  # after all checks
        self.hub.save()
        prefix = "" if repo_type == "model" else f"{repo_type}s/"
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{prefix}{name}/commit/{sha}", "hookOutput": ""}, {}
