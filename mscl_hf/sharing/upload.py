"""Push a model folder to the Hub: one commit, repeated where that helps; a failed push harms neither the run nor the repository."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from fnmatch import fnmatch
from pathlib import Path
from random import SystemRandom
from time import sleep as _sleep  # by a name of its own: tests let no time pass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, hf_raise_for_status, parse_ratelimit_headers

from ..config import HubConfig
from ..records.redact import without_secrets
from ..training.run import Run

PUSH_FAILED = 76  # exit status of a run that ended well, but whose push did not
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")
UNNAMED = "PATH_OR_HUB_NAME"  # stands in a model card for the name that the model gets by a push
PROCESSOR = "preprocessor_config.json"
EXPORTS = ("*.onnx", "*.onnx.data", "*.pt2")
# What a model's repository holds. A run folder also has checkpoints/, run.json and results.json (paths of the machine): these stay at home.
MODEL_FILES = (
    "config.json", *WEIGHTS, *EXPORTS, PROCESSOR, "README.md", "*_mscl.py", "load.py", "predictions.png",
    "training.png", "features.png", "provenance.json", "model.json", "log.jsonl",
)  # fmt: skip

_WAITS = (1, 2, 4)  # seconds before the first, second, third repetition
_LONGEST_WAIT = 300  # seconds; the Hub counts requests in windows of five minutes
_NO_TOKEN = "there is no Hugging Face token here; log in with `hf auth login`, or set HF_TOKEN"
_ADVICE = {
    401: "log in again with `hf auth login`, or set HF_TOKEN to a token that is valid",
    403: "use a token that may write there",
    404: "check the name, and that the token may see it",
    409: "somebody else changes this repository; look at it, then push again",
    412: "somebody else changes this repository; look at it, then push again",
    429: "wait a few minutes before the next push",
}
_random = SystemRandom()  # training owns the other generators


class PushError(OSError):
    """A push that failed: one sentence without secrets. Nothing of it is in the repository's history."""


def check_can_push(options: HubConfig, log: Callable[[str], None] = print, api: HfApi | None = None) -> None:
    """Before the first step: token, right to write, repository and branch. ValueError when the push could not work; if the Hub is out of
    reach for now, only a warning, since it may be back at the end."""
    if options.push_to_hub is None:
        return
    api = api or HfApi()
    token = _token(api, ValueError)
    try:
        _open_repository(api, options.push_to_hub, "model", options.private, options.revision)
        if options.license is not None:
            _check_license(options.license)
    except Exception as error:
        reason = without_secrets(f"cannot push to {options.push_to_hub}: {_reason(error)}", token)
        if not _is_transient(error):
            raise ValueError(reason) from None
        log(f"warning: {reason}; the run goes on, and pushes at its end")


def push_result(folder: Path, options: HubConfig, log: Callable[[str], None] = print, api: HfApi | None = None) -> None:
    """What a recipe calls at its end, in the main process: push the model in `folder` if that was asked for."""
    if options.push_to_hub is not None:
        push_or_exit(model_files(folder), options, ["--folder", str(folder)], log=log, api=api)


def push_run(run: Run, options: HubConfig) -> None:
    """Push the model of a finished run, if that was asked for; not one whose scores or card are missing."""
    if run.is_main:
        with run.finishing.step("push"):
            if options.push_to_hub is not None:
                run.finishing.require_for_push()
            push_result(run.out, options)


def push_or_exit(
    files: dict[str, Path], options: HubConfig, again: Sequence[str], *, repo_type: str = "model",
    log: Callable[[str], None] = print, api: HfApi | None = None,
) -> None:  # fmt: skip
    """Push, and say where to; else say why not and how to push later, and exit with PUSH_FAILED. again: what `mscl-push` then needs to
    know beside the options."""
    try:
        url = push_files(
            files, options.push_to_hub, repo_type=repo_type, private=options.private, revision=options.revision, log=log, api=api
        )
    except PushError as error:
        words = ["mscl-push", *again, "--push-to-hub", options.push_to_hub, *["--private"] * options.private]
        words += ["--revision", options.revision] if options.revision else []
        log(f"not pushed: {error}\nThe files on disk are as they were; to push them later:\n\n    {shlex.join(words)}\n")
        sys.exit(PUSH_FAILED)
    log(f"pushed: {url}")


def model_files(folder: Path, allow_patterns: Sequence[str] = MODEL_FILES) -> dict[str, Path]:
    """{name in the repository: file} of a model folder, which may be a run or an export."""
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}; give the output folder of a finished run, or of an export")
    names = sorted(path.name for path in Path(folder).iterdir() if path.is_file())
    if not any(fnmatch(name, pattern) for name in names for pattern in (*WEIGHTS, *EXPORTS)):
        raise ValueError(f"the folder {folder} holds no model (no model.safetensors, *.onnx or *.pt2); give one in which a run has ended")
    files = {name: Path(folder) / name for name in names if any(fnmatch(name, pattern) for pattern in allow_patterns)}
    if away := next((name for name, file in files.items() if leads_away(file)), None):
        raise ValueError(f"{away} in {folder} is a link to a file elsewhere, and not published; put the file itself there, or remove it")
    return files


def leads_away(file: Path) -> bool:
    """Whether a file is a link out of its folder, to what nobody meant to publish; those of the Hub's cache, from a snapshot to its blobs,
    are the file itself."""
    home, target = file.parent.resolve(), file.resolve()
    in_cache = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    return not (target.is_relative_to(home) or in_cache)


def push_folder(folder: Path, repo_id: str, *, allow_patterns: Sequence[str] = MODEL_FILES, **options) -> str:
    """`push_files` for the files of a model folder that match the patterns; the folder itself is only read."""
    return push_files(model_files(folder, allow_patterns), repo_id, **options)


def push_files(
    files: dict[str, Path], repo_id: str, *, repo_type: str = "model", private: bool = False, revision: str | None = None,
    message: str = "Push by mscl_hf", log: Callable[[str], None] = print, api: HfApi | None = None,
) -> str:  # fmt: skip
    """All files in one commit; its URL. No new commit where the repository already has them. Raises PushError.

    files: {path in the repository: file}. Weights of an earlier push that these do not replace go, since an old model.safetensors would
    win over new shards, and so does source of a Space that there is no more.
    """
    api = api or HfApi()
    token = _token(api, PushError)

    def push():
        _open_repository(api, repo_id, repo_type, private, revision)
        there = api.list_repo_files(repo_id, revision=revision, repo_type=repo_type)
        replaced = WEIGHTS if repo_type == "model" else ("mscl_hf/*",)
        stale = [name for name in there if name not in files and any(fnmatch(name, pattern) for pattern in replaced)]
        # Made anew for each attempt: if only the answer to a commit was lost, they see that nothing is left to commit.
        operations = [CommitOperationAdd(name, _content(name, path, repo_id)) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        # Not upload_folder, which makes several commits of a folder when it uses xet.
        return api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision).commit_url

    try:
        return _repeat(push, lambda text: log(without_secrets(text, token)))
    except Exception as error:  # whatever a push dies of, the training before it is done and worth a sentence instead of a traceback
        raise PushError(without_secrets(_reason(error), token)) from None  # the original text may quote the token


def _content(name: str, path: Path, repo_id: str) -> str | bytes:
    """What is committed as `name`: the file, a model card with the model's name filled in, or an updated processor."""
    if name == PROCESSOR:
        return updated_processor(path)
    text = path.read_text(encoding="utf-8") if name == "README.md" else ""
    return text.replace(UNNAMED, repo_id).encode() if UNNAMED in text else str(path)


def updated_processor(file: Path) -> bytes:
    """A preprocessor_config.json; one of an earlier version with do_convert_rgb added, without which images that are not RGB fail."""
    stored = file.read_bytes()
    try:
        fields = json.loads(stored)
        is_old = fields.get("do_convert_rgb") is None and len(fields["image_mean"]) == 3
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):  # not written by mscl_hf
        return stored
    return f"{json.dumps(fields | {'do_convert_rgb': True}, indent=2, sort_keys=True)}\n".encode() if is_old else stored


def _token(api: HfApi, kind: type[Exception]) -> str:
    token = api.token or get_token()
    if not token:
        raise kind(_NO_TOKEN)
    return token


def _open_repository(api: HfApi, repo_id: str, repo_type: str, private: bool, revision: str | None) -> None:
    sdk = "gradio" if repo_type == "space" else None
    # None instead of False: what is private by an organization's default stays so.
    api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True, space_sdk=sdk)
    api.auth_check(repo_id, repo_type=repo_type, write=True)  # create_repo is content with a repository that can be read
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(f"{repo_id} exists and is public; make it private on the Hub first, or drop --private")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)


def _check_license(name: str) -> None:
    """Raise ValueError where the Hub would reject the model card for its license, after the training."""
    try:
        ModelCard(f"---\nlicense: {name}\n---\n").validate("model")
    except ValueError as error:
        raise ValueError(f"--license is {name!r}; expected a name that the Hub knows, such as apache-2.0, cc-by-4.0 or other.") from error


def _repeat(step: Callable, log: Callable[[str], None]):
    """step(), again after a while when the network, the load or the Hub itself was at fault."""
    for wait in _WAITS:
        try:
            return step()
        except Exception as error:
            asked = _asked_to_wait(error)
            if not _is_transient(error) or _was_repeated(error) or (asked or 0) > _LONGEST_WAIT:
                raise
            wait = wait * _random.uniform(1, 1.5) if asked is None else asked + _random.uniform(0, 1)
            log(f"{_reason(error)}; next attempt in {wait:.0f} s")
        _sleep(wait)
    return step()


def _is_transient(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, (HTTPError, json.JSONDecodeError))  # no answer; a gateway's page instead of one


def _was_repeated(error: Exception) -> bool:
    """Whether huggingface_hub gave up on this request only after five repetitions of its own, as it does for uploads but not commits."""
    request = error.response.request if isinstance(error, HfHubHTTPError) else getattr(error, "request", None)
    return request is not None and bool(re.search(r"/preupload/|/info/lfs/", str(request.url)))


def _asked_to_wait(error: Exception) -> float | None:
    """Seconds, if the Hub has named some."""
    if not isinstance(error, HfHubHTTPError):
        return None
    headers = error.response.headers
    limit, after = parse_ratelimit_headers(headers), headers.get("retry-after", "").strip()
    if after.isdigit():
        return float(after)
    if after:
        try:
            return max((parsedate_to_datetime(after) - datetime.now(timezone.utc)).total_seconds(), 0.0)
        except (TypeError, ValueError):  # no date, or one without a zone
            return None
    return float(limit.reset_in_seconds) if error.response.status_code == 429 and limit and limit.remaining == 0 else None


def _reason(error: Exception) -> str:
    """One sentence, not yet clean: what happened, and what to do if that is known."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, HTTPError):  # huggingface_hub wraps what happens in its threads
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status, request = error.response.status_code, error.response.request
        said = f" ({error.server_message.splitlines()[0].rstrip('.')})" if error.server_message else ""
        advice = f"; {_ADVICE[status]}" if status in _ADVICE else ""
        return f"the Hub answered {status} to {request.method} {request.url.path}{said}{advice}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to push"
    if isinstance(error, json.JSONDecodeError):
        return "the Hub's answer was no JSON, as when something else answers in its place"
    if isinstance(error, HTTPError):
        return f"no connection to the Hub ({type(error).__name__}: {error})"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
