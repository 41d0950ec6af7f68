"""Push to a Hub over loopback: one commit or none, repeated requests, and the state after each fault."""

import json
import logging
import re
import shlex
import sys
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from hub_metadata import card_problems
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import close_session
from minihub import TOKEN, Minihub

from mscl_hf.config import HubConfig
from mscl_hf.sharing import hub_errors, upload
from mscl_hf.sharing.upload import PUSH_FAILED, PushError, check_can_push, model_files, push_files, push_result

READER, OTHER_USER, FOREIGN = "hf_readerReaderReaderReader", "hf_otherOtherOtherOther", "eyJhbGciOi.eyJzdWIiOi.of_another_form"
CARD = "---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: image-segmentation\ntags: [mscl_hf]\n---\n\n# A model\n"
WRITES = r"/commit/|\.git/|/lfs/"
NAME = "org/net"


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The waits of the client and of mscl_hf [s], which are replaced: no time passes."""
    waited = []
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setattr(hub_errors, "_sleep", waited.append)
    return waited


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    tokens = {
        TOKEN: {"name": "tester", "orgs": ["org"], "write": True},
        READER: {"name": "reader", "orgs": ["org"], "write": False},
        OTHER_USER: {"name": "other", "orgs": [], "write": True},
        FOREIGN: {"name": "tester", "orgs": ["org"], "write": True},
    }
    close_session()
    with Minihub(tmp_path_factory.mktemp("hub"), tokens) as running:
        yield running
    close_session()


@pytest.fixture
def hub(server, monkeypatch, waits, tmp_path, capfd, caplog):
    """An empty Hub that this process uses as the Hub. Fails a test that prints or logs a token."""
    caplog.set_level(logging.DEBUG)
    for kept in (server.repos, server.log, server.faults):
        kept.clear()
    for blob in server.blob("").iterdir():
        blob.unlink()
    for name, value in (("ENDPOINT", server.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    output = "".join(capfd.readouterr()) + caplog.text
    assert not any(token in output for token in server.tokens)


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished run, with files that must not be published."""
    run = tmp_path / "run of mine"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json", "results.json", "run.json", ".tmp-results.json"):
        (run / name).write_text(json.dumps({"file": name}))
    (run / "README.md").write_text(CARD)
    (run / "training.png").write_bytes(b"\x89PNG\0")
    (run / "log.jsonl").write_text('{"step": 1}\n')
    for place in (run, run / "checkpoints" / "step-00000001"):
        (place / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    return run


def contents(folder) -> dict:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushes(hub, name: str = NAME) -> list[str]:
    """Return the commits after the first, which creates the repository."""
    repo = hub.repos.get(f"models/{name}")
    return [] if repo is None else [sha for sha, commit in repo.commits.items() if commit["parent"]]


def fails(folder, options: HubConfig, capfd) -> str:
    """Push, expect a failure that leaves the folder unchanged, and return the output."""
    before = contents(folder)
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        push_result(folder, options)
    assert ended.value.code == PUSH_FAILED == 76
    assert contents(folder) == before
    output = capfd.readouterr().out
    assert TOKEN not in output and output.count("not pushed: ") == 1
    return output


# One commit, or none


def test_push_is_one_commit_of_the_models_files(hub, folder):
    """All files of a model are pushed unchanged in one commit; other files of the run are not."""
    before = contents(folder)
    log = []
    url = push_files(model_files(folder), NAME, log=log.append)
    assert contents(folder) == before and log == []
    (sha,) = pushes(hub)
    assert url == f"{hub.url}/{NAME}/commit/{sha}"
    files = hub.repo(NAME).files("main")
    expected = {"config.json", "preprocessor_config.json", "README.md", "training.png", "log.jsonl", "model.safetensors"}
    assert set(files) == {*expected, ".gitattributes"}
    assert all(hub.blob(files[name]["sha256"]).read_bytes() == before[name] for name in expected)
    assert files["model.safetensors"]["lfs"] and not files["config.json"]["lfs"]


def test_a_processor_of_an_earlier_version_is_updated(hub, folder):
    """do_convert_rgb, without which gray images fail, is added to the pushed processor; the file on disk is unchanged."""
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0], "size": {"shortest_edge": 48}}))
    push_files(model_files(folder), NAME)
    updated = hub.blob(hub.repo(NAME).files("main")["preprocessor_config.json"]["sha256"]).read_bytes()
    assert json.loads(updated) == {"do_convert_rgb": True, "image_mean": [0, 0, 0], "size": {"shortest_edge": 48}}
    assert "do_convert_rgb" not in (folder / "preprocessor_config.json").read_text()
    for text in ('{"image_mean": [0, 0, 0], "do_convert_rgb": false}', '{"image_mean": [0]}', "{}", "[]", "[" * 100_000, "\xff", "null"):
        (folder / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
        assert upload.updated_processor(folder / "preprocessor_config.json") == text.encode("latin-1")


def test_second_push_makes_no_commit_and_uploads_nothing(hub, folder):
    """A second push of the same files makes no commit and returns the URL of the first; one changed file makes one commit."""
    first = push_files(model_files(folder), NAME)
    assert push_files(model_files(folder), NAME) == first and len(pushes(hub)) == 1
    assert hub.requests("POST", "/commit/") == [200] and hub.requests("PUT", "/lfs/") == [200]
    (folder / "log.jsonl").write_text("{}")
    assert push_files(model_files(folder), NAME) != first and len(pushes(hub)) == 2
    assert hub.requests("PUT", "/lfs/") == [200]
    assert hub.requests("POST", "/api/repos/create") == [200, 409, 409]  # it exists: fine


def test_weights_that_are_not_replaced_are_removed(hub, folder):
    """A push of shards deletes an old model.safetensors, which from_pretrained would prefer, in the same commit, and the other way round;
    it deletes no card and no picture."""
    shards = {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    push_files(model_files(folder), NAME)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "training.png").unlink()
    push_files(model_files(folder), NAME)
    files = set(hub.repo(NAME).files("main"))
    assert "model.safetensors" not in files and shards | {"README.md", "training.png"} <= files and len(pushes(hub)) == 2
    (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    push_files(model_files(folder), NAME)
    files = set(hub.repo(NAME).files("main"))
    assert not shards & files and {"model.safetensors", "README.md", "training.png"} <= files and len(pushes(hub)) == 3


def test_branch_and_privacy(hub, folder, capfd):
    """--revision creates the branch and leaves main unchanged; --private creates a private repository, and rejects a public one."""
    push_result(folder, HubConfig(NAME, revision="v2"))
    repo = hub.repo(NAME)
    assert "config.json" in repo.files("v2") and list(repo.files("main")) == [".gitattributes"] and not repo.private
    assert f"pushed: {hub.url}/{NAME}/commit/{repo.branches['v2']}" in capfd.readouterr().out
    push_result(folder, HubConfig("org/secret", private=True))
    assert hub.repo("org/secret").private
    heads = dict(repo.branches)
    assert "exists and is public" in fails(folder, HubConfig(NAME, private=True), capfd)
    assert repo.branches == heads


# Passing faults


@pytest.mark.parametrize(
    "method, path, what, options",
    [
        ("POST", "/api/repos/create", 500, {}),
        ("POST", "/commit/", 500, {}),
        ("POST", "/commit/", 503, {"headers": {"Retry-After": "7"}}),
        ("POST", "/commit/", 429, {"headers": {"Retry-After": "40"}}),
        ("POST", "/commit/", 429, {"headers": {"ratelimit": '"api";r=0;t=55', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}}),
        ("POST", "/api/validate-yaml", 502, {"body": b"<html>Bad gateway</html>"}),
        ("POST", "/commit/", "drop", {}),
        ("POST", "/commit/", "drop_midway", {}),
        ("POST", "/commit/", "drop_answer", {}),
        ("GET", "/auth-check/write", "drop", {}),
    ],
)
def test_passing_fault_is_waited_out(hub, folder, waits, method, path, what, options):
    """After one failed request the push waits (as long as the Hub asks), continues and makes one commit, also where the first attempt had
    succeeded and only its answer was lost."""
    hub.fail(method, path, what, **options)
    log = []
    push_files(model_files(folder), NAME, log=log.append)
    answers = hub.requests(method, path)
    assert answers[0] == what and set(answers[1:]) <= {200, 409}
    headers = options.get("headers", {})
    requested = {"7": 7, "40": 40}.get(headers.get("Retry-After"), 55 if "ratelimit" in headers else None)
    assert len(waits) == len(log) == 1 and (requested or 1) <= waits[0] <= (requested + 1 if requested else 1.5)
    assert len(pushes(hub)) == 1 and hub.requests("PUT", "/lfs/") == [200]
    assert set(model_files(folder)) <= set(hub.repo(NAME).files("main"))


@pytest.mark.parametrize("what", ["drop_midway", "drop", 500, 429])
def test_upload_cut_in_the_middle_is_repeated(hub, folder, waits, what):
    """After a connection is dropped in the middle of the weights, the client uploads them once more, and nothing else."""
    hub.fail("PUT", "/lfs/", what)
    push_files(model_files(folder), NAME)
    assert hub.requests("PUT", "/lfs/") == [what, 200] and hub.requests("POST", "/commit/") == [200]
    entry = hub.repo(NAME).files("main")["model.safetensors"]
    assert hub.blob(entry["sha256"]).read_bytes() == (folder / "model.safetensors").read_bytes()
    assert waits == [1]  # the client's, not ours


def test_retry_after_may_be_a_date(hub, folder, waits):
    """Retry-After may be an HTTP date."""
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30), usegmt=True)
    hub.fail("POST", "/commit/", 503, headers={"Retry-After": date})
    push_files(model_files(folder), NAME)
    assert 28 <= waits[0] <= 31 and len(pushes(hub)) == 1


# Lasting faults


@pytest.mark.parametrize("what", [500, "drop_midway", "drop"])
def test_lasting_fault_at_the_commit(hub, folder, waits, capfd, what):
    """A commit that always fails is tried four times with growing waits. The run then exits with status 76, the reason and a command, which
    pushes when the fault is over; until then the repository is unchanged."""
    push_files(model_files(folder), NAME, private=True, revision="v2")
    heads = dict(hub.repo(NAME).branches)
    (folder / "config.json").write_text('{"new": true}')
    hub.log.clear()
    hub.fail("POST", "/commit/", what, times=100)
    output = fails(folder, HubConfig(NAME, private=True, revision="v2"), capfd)
    assert hub.requests("POST", "/commit/") == [what] * 4 and hub.repo(NAME).branches == heads and len(pushes(hub)) == 1
    assert len(waits) == 3 and all(low <= wait <= 1.5 * low for low, wait in zip((1, 2, 4), waits))
    assert output.count("next attempt in") == 3
    assert ("answered 500 to POST /api/models/org/net/commit/v2" if what == 500 else "no connection to the Hub") in output
    (command,) = re.findall(r"^ +mscl-push .*$", output, re.MULTILINE)
    hub.faults.clear()
    run_push(*shlex.split(command)[1:])
    assert len(pushes(hub)) == 2 and hub.repo(NAME).branches["main"] == heads["main"] and "pushed: " in capfd.readouterr().out
    assert "--private" in command


@pytest.mark.parametrize("method, path, what", [("PUT", "/lfs/", "drop_midway"), ("PUT", "/lfs/", 500), ("POST", "/preupload/", 503)])
def test_lasting_fault_in_the_upload(hub, folder, waits, capfd, method, path, what):
    """An upload, or the request before it, that always fails is tried six times by the client, and not repeated by mscl_hf; nothing is
    committed."""
    hub.fail(method, path, what, times=100)
    output = fails(folder, HubConfig(NAME), capfd)
    assert hub.requests(method, path) == [what] * 6 and hub.requests("POST", "/commit/") == [] and pushes(hub) == []
    assert waits == [1, 2, 4, 8, 8] and "mscl-push --folder" in output and hub.signature not in output
    assert list(hub.repo(NAME).files("main")) == [".gitattributes"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 413])
def test_rejected_commit_is_not_repeated(hub, folder, waits, capfd, status):
    """A rejected commit is not repeated; the reason holds the status and the Hub's message."""
    hub.fail("POST", "/commit/", status, times=100)
    output = fails(folder, HubConfig(NAME), capfd)
    assert hub.requests("POST", "/commit/") == [status] and waits == [] and pushes(hub) == []
    assert f"the Hub answered {status} to POST /api/models/org/net/commit/main (planned {status})" in output


@pytest.mark.parametrize("token, status", [("hf_wrongWrongWrongWrong", 401), (READER, 403), (OTHER_USER, 403)])
def test_token_that_may_not_write(hub, folder, capfd, monkeypatch, waits, token, status):
    """A wrong token, one without write access and one of another user are rejected before the upload, and never printed, for a new
    repository and for an existing public one."""
    for exists in (False, True):
        monkeypatch.setenv("HF_TOKEN", token)
        hub.log.clear()
        output = fails(folder, HubConfig(NAME), capfd)
        assert f"the Hub answered {status}" in output and token not in output and waits == []
        assert not any(re.search(WRITES, path) for _, path, _ in hub.log)
        with pytest.raises(ValueError, match=f"cannot push to org/net: the Hub answered {status}"):
            check_can_push(HubConfig(NAME))
        if not exists:
            monkeypatch.setenv("HF_TOKEN", TOKEN)
            push_files(model_files(folder), NAME)
    assert len(pushes(hub)) == 1


def test_too_long_wait_ends_the_push(hub, folder, waits, capfd):
    """Where the Hub asks to wait for an hour, the push fails at once."""
    hub.fail("POST", "/commit/", 429, headers={"Retry-After": "3600"}, times=100)
    assert "429" in fails(folder, HubConfig(NAME), capfd)
    assert waits == [] and hub.requests("POST", "/commit/") == [429]


def test_card_that_the_hub_rejects(hub, folder, capfd):
    """Invalid metadata of the card is reported before the weights are uploaded."""
    (folder / "README.md").write_text(CARD.replace("apache-2.0", "my-own"))
    output = fails(folder, HubConfig(NAME), capfd)
    assert '"license" must be one of' in output and hub.requests("PUT", "/lfs/") == [] and pushes(hub) == []


def test_no_secret_in_messages_of_others(hub, folder, capfd, monkeypatch):
    """Tokens and signed URLs in the server's message, and a token in the client's error, are removed from the output."""
    monkeypatch.setenv("HF_TOKEN", FOREIGN)
    text = f"bad request of {TOKEN} and {FOREIGN} at https://store/a?X-Signature=secret&b=1 here"
    hub.fail("POST", "/commit/", 400, body=json.dumps({"error": text}).encode())
    assert "bad request of hf_*** and hf_*** at https://store/a here" in fails(folder, HubConfig(NAME), capfd)
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text("hf_secretSecretSecret\0tail")
    output = fails(folder, HubConfig(NAME), capfd)
    assert "hf_secret" not in output and "Illegal header value" in output


# Before the first step


def test_check_creates_repository_and_branch(hub, folder):
    """The check creates the repository and the branch and logs nothing; without --push-to-hub it sends no request."""
    log = []
    check_can_push(HubConfig(), log.append)
    assert hub.log == []
    check_can_push(HubConfig(NAME, private=True, revision="v2"), log.append)
    assert hub.repo(NAME).private and set(hub.repo(NAME).branches) == {"main", "v2"} and pushes(hub) == [] and log == []


@pytest.mark.parametrize("path", ["/api/repos/create", "/validate-yaml"])
@pytest.mark.parametrize("what", ["drop", 500, 503, 429])
def test_unreachable_hub_is_a_warning(hub, what, path):
    """A Hub that is out of reach at the start, or when the license is checked, is a warning, without waits; the run continues, since it
    pushes at its end."""
    hub.fail("POST", path, what, times=100)
    log = []
    check_can_push(HubConfig(NAME, license="mit"), log.append)
    assert len(log) == 1 and log[0].startswith("warning: cannot push to org/net: ") and len(hub.requests("POST", path)) == 1


def test_check_rejects_what_cannot_work(hub, monkeypatch):
    """A missing token, offline mode, and a public repository with --private are errors before training."""
    check_can_push(HubConfig(NAME))
    with pytest.raises(ValueError, match="exists and is public"):
        check_can_push(HubConfig(NAME, private=True))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        check_can_push(HubConfig(NAME))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="no Hugging Face token; log in with `hf auth login`, or set HF_TOKEN"):
        check_can_push(HubConfig(NAME))


def test_no_token_at_the_end(hub, folder, monkeypatch, capfd):
    """A token that is missing at the end fails as any other push."""
    monkeypatch.delenv("HF_TOKEN")
    assert "no Hugging Face token" in fails(folder, HubConfig(NAME), capfd) and hub.log == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"push_to_hub": "net"}, "--push-to-hub.* ORG/NAME"),
        ({"push_to_hub": "a/b/c"}, "--push-to-hub.* ORG/NAME"),
        ({"push_to_hub": "org/-net"}, "--push-to-hub.* ORG/NAME"),
        ({"push_to_hub": "org/a--b"}, "--push-to-hub.* ORG/NAME"),
        ({"push_to_hub": "org/net.git"}, "--push-to-hub.* ORG/NAME"),
        ({"push_to_hub": ""}, "--push-to-hub.* ORG/NAME"),
        ({"push_to_hub": TOKEN}, r"hf_\*\*\*"),
        ({"private": True}, "--private is given without --push-to-hub"),
        ({"revision": "v2"}, "--revision is given without --push-to-hub"),
        *(
            ({"push_to_hub": NAME, "revision": branch}, f"--revision is '{re.escape(branch)}'")
            for branch in ("two words", "a..b", "a//b", "a/.b", ".a", "a.lock", "a.lock/b", "a.", "a/", "-a", "")
        ),
    ],
)
def test_options_are_checked(options, message):
    """Errors about wrong names, branches that git rejects, and flags without --push-to-hub name the flag."""
    with pytest.raises(ValueError, match=message) as error:
        HubConfig(**options)
    assert TOKEN not in str(error.value)
    for good in ("main", "v2.1", "a/b", "refs_1/x-y"):
        HubConfig(push_to_hub=NAME, revision=good)


def test_license_is_checked_before_training(hub):
    """A license that the Hub does not know is an error before the first step."""
    check_can_push(HubConfig(push_to_hub=NAME, license="cc-by-4.0"))
    with pytest.raises(ValueError, match="--license is 'mine'; expected .*apache-2.0"):
        check_can_push(HubConfig(push_to_hub=NAME, license="mine"))


def test_license_check_that_the_hub_rejects(hub):
    """An answer that is no passing fault is an error."""
    hub.fail("POST", "/validate-yaml", 403, times=9)
    with pytest.raises(ValueError, match="403"):
        check_can_push(HubConfig(push_to_hub=NAME, license="mit"))


def test_removed_modules_are_deleted_from_the_space(hub, tmp_path):
    """A second push of a Space deletes modules that the package no longer has, and no other files."""
    (tmp_path / "file").write_text("1")
    files = dict.fromkeys(("app.py", "mine.txt", "mscl_hf/old.py", "mscl_hf/kept.py"), tmp_path / "file")
    upload.push_files(files, NAME, repo_type="space")
    upload.push_files({name: files[name] for name in ("app.py", "mscl_hf/kept.py")}, NAME, repo_type="space")
    files = set(hub.repo(NAME, "space").files("main"))
    assert {"app.py", "mine.txt", "mscl_hf/kept.py"} <= files and "mscl_hf/old.py" not in files


# mscl-push


def run_push(*arguments: str) -> None:
    spec = util.spec_from_file_location("mscl_push", ROOT / "hub" / "push.py")
    module = util.module_from_spec(spec)
    sys.modules["mscl_push"] = module
    spec.loader.exec_module(module)
    before, sys.argv = sys.argv, ["mscl-push", *arguments]
    try:
        module.main()
    finally:
        sys.argv = before


def test_wrong_calls_of_mscl_push(tmp_path):
    """Each wrong call ends with one sentence and exit status 1."""
    (tmp_path / "run.json").write_text("{}")
    for arguments, message in (
        ([], "--folder and --push-to-hub are missing"),
        (["--folder", str(tmp_path)], "--push-to-hub is missing"),
        (["--push-to-hub", NAME], "--folder is missing"),
        (["--folder", str(tmp_path / "no"), "--push-to-hub", NAME], "there is no folder"),
        (["--folder", str(tmp_path), "--push-to-hub", NAME], "holds no model"),
        (["--what", "space", "--folder", str(tmp_path), "--push-to-hub", NAME], "--folder is .*; expected none with --what space"),
        (["--what", "data", "--push-to-hub", NAME], "--what is 'data'"),
        (["--folder", str(tmp_path), "--push-to-hub", "net"], "--push-to-hub.* ORG/NAME"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            run_push(*arguments)


def test_a_link_out_of_the_folder_is_not_pushed(hub, folder, tmp_path):
    """A link to a file outside the folder is an error before any request; a link within the folder is pushed as a file."""
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    (folder / "features.png").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(SystemExit, match="^error: features.png in .* is a link to a file outside the folder"):
        run_push("--folder", str(folder), "--push-to-hub", NAME)
    assert hub.log == []
    (folder / "features.png").unlink()
    (folder / "features.png").symlink_to("training.png")
    run_push("--folder", str(folder), "--push-to-hub", NAME)
    assert "features.png" in hub.repo(NAME).files("main")


def test_a_snapshot_of_the_cache_can_be_pushed(hub, folder, tmp_path):
    """Links of the cache to blobs of the same repository are files; a blob that is a link to another place is an error."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in filter(Path.is_file, folder.iterdir()):
        (blobs / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert "model.safetensors" in model_files(snapshot)
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    (blobs / "training.png").unlink()
    (blobs / "training.png").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ValueError, match="training.png in .* is a link"):
        model_files(snapshot)


def test_push_command_pushes_an_export(hub, tmp_path):
    """A folder with an ONNX model and its data is pushed unchanged."""
    for name in ("model.onnx", "model.onnx.data", "README.md", "notes.txt"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text(CARD)
    run_push("--folder", str(tmp_path / "out"), "--push-to-hub", NAME)
    assert set(hub.repo(NAME).files("main")) == {".gitattributes", "README.md", "model.onnx", "model.onnx.data"}


def test_mscl_push_fills_in_the_name_of_the_model(hub, folder):
    """The placeholder for the name in the card is replaced on the Hub, and kept on disk."""
    text = CARD + f'pipeline(model="{upload.NAME_PLACEHOLDER}"), from_pretrained("{upload.NAME_PLACEHOLDER}")'
    (folder / "README.md").write_text(text)
    run_push("--folder", str(folder), "--push-to-hub", NAME)
    pushed = hub.blob(hub.repo(NAME).files("main")["README.md"]["sha256"]).read_text()
    assert pushed == text.replace(upload.NAME_PLACEHOLDER, NAME) != text == (folder / "README.md").read_text()


@pytest.mark.parametrize("space", ["mean_iou", "space"])
def test_cards_of_the_spaces(space):
    """The README of each Space passes the Hub's checks without a warning."""
    assert card_problems((ROOT / "hub" / space / "README.md").read_text(), "space") == ([], [])


@pytest.mark.parametrize(
    "text, repo_type, errors, warnings",
    [
        (CARD, "model", [], []),
        ("# No metadata\n", "model", [], ["empty or missing yaml metadata in repo card"]),
        ("---\nlicense: mine\ntags: one\nlibrary_name: 3\n---\n", "model", ["library_name", "tags", "license"], []),
        ("---\npipeline_tag: segmenting\n---\n", "model", [], ["segmenting"]),
        ("---\nmodel-index:\n- name: a\n  results: [{}]\n---\n", "model", ["task.type", "dataset.name", "dataset.type", "metrics"], []),
        ("---\na: [\n---\n", "model", ["YAML"], []),
        ("---\ncolorFrom: black\nsdk_version: 6.31\n---\n", "space", ["sdk_version", "sdk", "colorFrom"], []),
    ],
)
def test_card_problems(text, repo_type, errors, warnings):
    """The checks of the test Hub find the same errors and warnings as the Hub."""
    for sentences, expected in zip(card_problems(text, repo_type), (errors, warnings)):
        assert len(sentences) == len(expected) and all(word in sentence for word, sentence in zip(expected, sentences))


def test_api_of_the_caller_is_used(hub, folder, monkeypatch):
    """push_files uses the endpoint and token of the given HfApi, and raises PushError in one line."""
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub.url in push_files(model_files(folder), NAME, api=HfApi(endpoint=hub.url, token=TOKEN))
    with pytest.raises(PushError, match="^the Hub answered 401[^\n]*$"):
        push_files(model_files(folder), NAME, api=HfApi(endpoint=hub.url, token="hf_wrongWrongWrongWrong"))
