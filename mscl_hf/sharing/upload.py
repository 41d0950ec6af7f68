"""Push a model folder to the Hub in one commit. A push that fails changes neither the folder nor the repository."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token

from ..config import HubConfig
from ..records.redact import without_secrets
from ..training.run import Run
from .hub_errors import NO_TOKEN, is_transient, reason, repeat

NEEDED_ON_HUB = ("scoring", "model card")  # steps of a run
PUSH_FAILED = 76  # exit status of a run whose model is complete but was not pushed
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")
NAME_PLACEHOLDER = "PATH_OR_HUB_NAME"  # stands for the model's name in its card; replaced when the model is pushed
PROCESSOR = "preprocessor_config.json"
EXPORTS = ("*.onnx", "*.onnx.data", "*.pt2")
# Files of a run folder that are published; checkpoints/, run.json and results.json hold local paths and are not.
MODEL_FILES = (
    "config.json", *WEIGHTS, *EXPORTS, PROCESSOR, "README.md", "*_mscl.py", "load.py", "predictions.png", "confusion.png",
    "training.png", "classes.png", "features.png", "provenance.json", "model.json", "log.jsonl",
)  # fmt: skip


class PushError(OSError):
    """A push that failed, described in one sentence without secrets. The repository has no new commit."""


def check_token(options: HubConfig) -> None:
    """Raise ValueError without a token to push with. Called before the data are checked, which can take minutes."""
    if options.push_to_hub is not None:
        _token(HfApi(), ValueError)


def check_can_push(options: HubConfig, log: Callable[[str], None] = print, api: HfApi | None = None) -> None:
    """Check the token, write access and the license, and create the repository and branch, before training starts.

    Raises ValueError where a push would fail. A Hub that is out of reach is only a warning, since it may be back at the end.
    """
    if options.push_to_hub is None:
        return
    api = api or HfApi()
    token = _token(api, ValueError)
    try:
        _open_repository(api, options.push_to_hub, "model", options.private, options.revision)
        if options.license is not None:
            _check_license(options.license)
    except Exception as error:
        message = without_secrets(f"cannot push to {options.push_to_hub}: {reason(error)}", token)
        if not is_transient(error):
            raise ValueError(message) from None
        log(f"warning: {message}; the run continues and pushes at its end")


def push_result(folder: Path, options: HubConfig, log: Callable[[str], None] = print, api: HfApi | None = None) -> None:
    """Push the model in `folder` if options.push_to_hub is set. Called by the main process."""
    if options.push_to_hub is not None:
        push_or_exit(model_files(folder), options, ["--folder", str(folder)], log=log, api=api)


def push_run(run: Run, options: HubConfig) -> None:
    """Push the model of a finished run if options.push_to_hub is set, and its scores and card are written."""
    if run.is_main:
        with run.step("push"):
            if options.push_to_hub is not None:
                failed = [name for name in NEEDED_ON_HUB if name in run.failed]
                if failed:
                    raise ValueError(f"{' and '.join(failed)} failed, and a model is not pushed without its card and its scores")
            push_result(run.out, options)


def push_or_exit(
    files: dict[str, Path], options: HubConfig, arguments: Sequence[str], *, repo_type: str = "model",
    log: Callable[[str], None] = print, api: HfApi | None = None,
) -> None:  # fmt: skip
    """Push and log the URL; after a failure log the reason and the `mscl-push` command to repeat it, and exit with PUSH_FAILED.

    arguments: of `mscl-push` for these files, without the options.
    """
    try:
        url = push_files(
            files, options.push_to_hub, repo_type=repo_type, private=options.private, revision=options.revision, log=log, api=api
        )
    except PushError as error:
        words = ["mscl-push", *arguments, "--push-to-hub", options.push_to_hub, *["--private"] * options.private]
        words += ["--revision", options.revision] if options.revision else []
        log(f"not pushed: {error}\nThe files on disk are unchanged. To push them later:\n\n    {shlex.join(words)}\n")
        sys.exit(PUSH_FAILED)
    log(f"pushed: {url}")


def model_files(folder: Path, patterns: Sequence[str] = MODEL_FILES) -> dict[str, Path]:
    """Return {name in the repository: file} for the folder of a run or an export. Raises ValueError where it holds no model."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the output folder of a finished run, or of an export")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if not any(fnmatch(name, pattern) for name in names for pattern in (*WEIGHTS, *EXPORTS)):
        raise ValueError(f"the folder {folder} holds no model (no model.safetensors, *.onnx or *.pt2); give that of a finished run")
    files = {name: folder / name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
    if link := next((name for name, file in files.items() if links_outside(file)), None):
        raise ValueError(f"{link} in {folder} is a link to a file outside the folder; replace it by the file itself, or remove it")
    return files


def links_outside(file: Path) -> bool:
    """Whether a file is a link out of its folder, to a file that may be private. Links of the Hub's cache to its blobs are not."""
    folder, target = file.parent.resolve(), file.resolve()
    in_cache = folder.parent.name == "snapshots" and target.parent == folder.parent.parent / "blobs"
    return not (target.is_relative_to(folder) or in_cache)


def push_files(
    files: dict[str, Path], repo_id: str, *, repo_type: str = "model", private: bool = False, revision: str | None = None,
    message: str = "Push by mscl_hf", log: Callable[[str], None] = print, api: HfApi | None = None,
) -> str:  # fmt: skip
    """Push all files in one commit and return its URL; no new commit where the repository has them already. Raises PushError.

    files: {path in the repository: file}. Files of an earlier push that are missing here are deleted if they are weights (an old
    model.safetensors would be preferred to new shards), or modules of the package in a Space.
    """
    api = api or HfApi()
    token = _token(api, PushError)

    def push() -> str:
        _open_repository(api, repo_id, repo_type, private, revision)
        replaced = WEIGHTS if repo_type == "model" else ("mscl_hf/*",)
        existing = api.list_repo_files(repo_id, revision=revision, repo_type=repo_type)
        stale = [name for name in existing if name not in files and any(fnmatch(name, pattern) for pattern in replaced)]
        # New operations for each attempt: where only the answer to a commit was lost, they find nothing left to commit.
        operations = [CommitOperationAdd(name, _content(name, path, repo_id)) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        # upload_folder would make several commits where it uses xet.
        return api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision).commit_url

    try:
        return repeat(push, lambda text: log(without_secrets(text, token)))
    except Exception as error:  # of any type: the training before it is complete
        raise PushError(without_secrets(reason(error), token)) from None  # the original message may hold the token


def updated_processor(file: Path) -> bytes:
    """Return a preprocessor_config.json; an earlier version's gets do_convert_rgb, without which images that are not RGB fail."""
    stored = file.read_bytes()
    try:
        fields = json.loads(stored)
        is_old = fields.get("do_convert_rgb") is None and len(fields["image_mean"]) == 3
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):  # not written by mscl_hf
        return stored
    return f"{json.dumps(fields | {'do_convert_rgb': True}, indent=2, sort_keys=True)}\n".encode() if is_old else stored


def _content(name: str, path: Path, repo_id: str) -> str | bytes:
    """Return what is committed as `name`: the path of the file, or the content of an updated model card or processor."""
    if name == PROCESSOR:
        return updated_processor(path)
    text = path.read_text(encoding="utf-8") if name == "README.md" else ""
    return text.replace(NAME_PLACEHOLDER, repo_id).encode() if NAME_PLACEHOLDER in text else str(path)


def _token(api: HfApi, error_cls: type[Exception]) -> str:
    token = api.token or get_token()
    if not token:
        raise error_cls(NO_TOKEN)
    return token


def _open_repository(api: HfApi, repo_id: str, repo_type: str, private: bool, revision: str | None) -> None:
    """Create the repository and the branch where they are missing, and check that the token may write."""
    sdk = "gradio" if repo_type == "space" else None
    # None instead of False: an organization's default may be private.
    api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True, space_sdk=sdk)
    api.auth_check(repo_id, repo_type=repo_type, write=True)  # create_repo succeeds for an existing repository without write access
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(f"{repo_id} exists and is public; make it private on the Hub first, or leave out --private")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)


def _check_license(name: str) -> None:
    """Raise ValueError where the Hub would reject a model card with this license."""
    try:
        ModelCard(f"---\nlicense: {json.dumps(name)}\n---\n").validate("model")
    except ValueError as error:
        raise ValueError(f"--license is {name!r}; expected a name that the Hub knows, such as apache-2.0, cc-by-4.0 or other") from error
