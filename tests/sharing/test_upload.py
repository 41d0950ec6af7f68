"""Pushing, against a Hub over loopback: one commit or none, repetitions that help, and what remains after each fault."""

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
from mscl_hf.sharing.upload import PUSH_FAILED, PushError, check_can_push, model_files, push_folder, push_result

READER, STRANGER, FOREIGN = "hf_readerReaderReaderReader", "hf_strangerStrangerStranger", "eyJhbGciOi.eyJzdWIiOi.of_another_form"
CARD = "---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: image-segmentation\ntags: [mscl_hf]\n---\n\n# A model\n"
WRITES = r"/commit/|\.git/|/lfs/"
NAME = "org/net"


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """How long the client and we would have waited, in seconds; no time passes."""
    waited = []
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setattr(hub_errors, "_sleep", waited.append)
    return waited


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    tokens = {
        TOKEN: {"name": "tester", "orgs": ["org"], "write": True},
        READER: {"name": "reader", "orgs": ["org"], "write": False},
        STRANGER: {"name": "stranger", "orgs": [], "write": True},
        FOREIGN: {"name": "tester", "orgs": ["org"], "write": True},
    }
    close_session()
    with Minihub(tmp_path_factory.mktemp("hub"), tokens) as running:
        yield running
    close_session()


@pytest.fixture
def hub(server, monkeypatch, waits, tmp_path, capfd, caplog):
    """A Hub, still empty, that the whole process takes for the Hub. Whatever a test does, no token may have been printed or logged."""
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
    """A run that has ended, with what must not leave the machine."""
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
    """The commits after the first, which creation makes."""
    repo = hub.repos.get(f"models/{name}")
    return [] if repo is None else [sha for sha, commit in repo.commits.items() if commit["parent"]]


def fails(folder, options: HubConfig, capfd) -> str:
    """What a failed push says; the folder is as before, byte for byte."""
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
    """All files of a model arrive in one commit, byte for byte; what is not the model's stays at home."""
    before = contents(folder)
    said = []
    url = push_folder(folder, NAME, log=said.append)
    assert contents(folder) == before and said == []
    (sha,) = pushes(hub)
    assert url == f"{hub.url}/{NAME}/commit/{sha}"
    there = hub.repo(NAME).files("main")
    expected = {"config.json", "preprocessor_config.json", "README.md", "training.png", "log.jsonl", "model.safetensors"}
    assert set(there) == {*expected, ".gitattributes"}
    assert all(hub.blob(there[name]["sha256"]).read_bytes() == before[name] for name in expected)
    assert there["model.safetensors"]["lfs"] and not there["config.json"]["lfs"]


def test_a_processor_of_an_earlier_version_is_updated(hub, folder):
    """A processor without do_convert_rgb fails on gray images: the Hub gets it added, the file on disk stays. Any other file is kept."""
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0], "size": {"shortest_edge": 48}}))
    push_folder(folder, NAME)
    updated = hub.blob(hub.repo(NAME).files("main")["preprocessor_config.json"]["sha256"]).read_bytes()
    assert json.loads(updated) == {"do_convert_rgb": True, "image_mean": [0, 0, 0], "size": {"shortest_edge": 48}}
    assert "do_convert_rgb" not in (folder / "preprocessor_config.json").read_text()
    for text in ('{"image_mean": [0, 0, 0], "do_convert_rgb": false}', '{"image_mean": [0]}', "{}", "[]", "[" * 100_000, "\xff", "null"):
        (folder / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
        assert upload.updated_processor(folder / "preprocessor_config.json") == text.encode("latin-1")


def test_second_push_makes_no_commit_and_uploads_nothing(hub, folder):
    """The same files again: no commit, no upload, the URL of the commit that has them. One changed file: one commit, its upload only."""
    first = push_folder(folder, NAME)
    assert push_folder(folder, NAME) == first and len(pushes(hub)) == 1
    assert hub.requests("POST", "/commit/") == [200] and hub.requests("PUT", "/lfs/") == [200]
    (folder / "log.jsonl").write_text("{}")
    assert push_folder(folder, NAME) != first and len(pushes(hub)) == 2
    assert hub.requests("PUT", "/lfs/") == [200]
    assert hub.requests("POST", "/api/repos/create") == [200, 409, 409]  # it exists: fine


def test_weights_that_are_not_replaced_are_removed(hub, folder):
    """After a push of shards, in the same commit, no single file of older weights is left for from_pretrained to prefer."""
    push_folder(folder, NAME)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    push_folder(folder, NAME)
    there = hub.repo(NAME).files("main")
    assert "model.safetensors" not in there and {"model-00001-of-00001.safetensors", "model.safetensors.index.json"} <= set(there)
    assert len(pushes(hub)) == 2 and "training.png" in there


def test_branch_and_privacy(hub, folder, capfd):
    """--revision makes the branch and leaves main alone; --private makes a private repository, and refuses to push to a public one."""
    push_result(folder, HubConfig(NAME, revision="v2"))
    repo = hub.repo(NAME)
    assert "config.json" in repo.files("v2") and list(repo.files("main")) == [".gitattributes"] and not repo.private
    assert f"pushed: {hub.url}/{NAME}/commit/{repo.branches['v2']}" in capfd.readouterr().out
    push_result(folder, HubConfig("org/secret", private=True))
    assert hub.repo("org/secret").private
    heads = dict(repo.branches)
    assert "exists and is public" in fails(folder, HubConfig(NAME, private=True), capfd)
    assert repo.branches == heads


# Faults that pass


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
    """One failed request, of those that the client does not repeat: after one wait, as long as the Hub asks if it asks, the push goes on,
    and there is one commit - also when the first attempt had arrived and only the answer was lost."""
    hub.fail(method, path, what, **options)
    said = []
    push_folder(folder, NAME, log=said.append)
    answers = hub.requests(method, path)
    assert answers[0] == what and set(answers[1:]) <= {200, 409}
    asked = {"7": 7, "40": 40}.get(options.get("headers", {}).get("Retry-After"), 55 if "ratelimit" in options.get("headers", {}) else None)
    assert len(waits) == len(said) == 1 and (asked or 1) <= waits[0] <= (asked + 1 if asked else 1.5)
    assert len(pushes(hub)) == 1 and hub.requests("PUT", "/lfs/") == [200]
    assert set(model_files(folder)) <= set(hub.repo(NAME).files("main"))


@pytest.mark.parametrize("what", ["drop_midway", "drop", 500, 429])
def test_upload_cut_in_the_middle_is_repeated(hub, folder, waits, what):
    """A connection dropped in the middle of the weights: the client sends them again from the start, whole, and no more than that."""
    hub.fail("PUT", "/lfs/", what)
    push_folder(folder, NAME)
    assert hub.requests("PUT", "/lfs/") == [what, 200] and hub.requests("POST", "/commit/") == [200]
    entry = hub.repo(NAME).files("main")["model.safetensors"]
    assert hub.blob(entry["sha256"]).read_bytes() == (folder / "model.safetensors").read_bytes()
    assert waits == [1]  # the client's, not ours


def test_retry_after_may_be_a_date(hub, folder, waits):
    """Retry-After as a date of HTTP is waited for, too."""
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30), usegmt=True)
    hub.fail("POST", "/commit/", 503, headers={"Retry-After": date})
    push_folder(folder, NAME)
    assert 28 <= waits[0] <= 31 and len(pushes(hub)) == 1


# Faults that stay


@pytest.mark.parametrize("what", [500, "drop_midway", "drop"])
def test_lasting_fault_at_the_commit(hub, folder, waits, capfd, what):
    """A commit that always fails is tried four times, with growing waits. Then: exit status 76, the reason, a command; on the Hub nothing
    has changed; and the command, given as printed once the fault is over, pushes."""
    push_folder(folder, NAME, private=True, revision="v2")
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


@pytest.mark.parametrize("what", ["drop_midway", 500])
def test_lasting_fault_in_the_upload(hub, folder, waits, capfd, what):
    """Weights whose upload always breaks: the client's own six attempts, not six times four; nothing is committed."""
    hub.fail("PUT", "/lfs/", what, times=100)
    output = fails(folder, HubConfig(NAME), capfd)
    assert hub.requests("PUT", "/lfs/") == [what] * 6 and hub.requests("POST", "/commit/") == [] and pushes(hub) == []
    assert waits == [1, 2, 4, 8, 8] and "mscl-push --folder" in output and hub.signature not in output
    assert list(hub.repo(NAME).files("main")) == [".gitattributes"]


def test_lasting_fault_before_the_upload(hub, folder, capfd):
    """The question which files are there is repeated by the client; we do not multiply that."""
    hub.fail("POST", "/preupload/", 503, times=100)
    fails(folder, HubConfig(NAME), capfd)
    assert hub.requests("POST", "/preupload/") == [503] * 6 and pushes(hub) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 413])
def test_refusal_is_not_repeated(hub, folder, waits, capfd, status):
    """What the Hub refuses would be refused again: one request, no wait, nothing changed, the status and the Hub's words in the reason."""
    hub.fail("POST", "/commit/", status, times=100)
    output = fails(folder, HubConfig(NAME), capfd)
    assert hub.requests("POST", "/commit/") == [status] and waits == [] and pushes(hub) == []
    assert f"the Hub answered {status} to POST /api/models/org/net/commit/main (planned {status})" in output


@pytest.mark.parametrize("token, status", [("hf_wrongWrongWrongWrong", 401), (READER, 403), (STRANGER, 403)])
def test_token_that_may_not_write(hub, folder, capfd, monkeypatch, waits, token, status):
    """A wrong token, one for reading, one of somebody else: refused with advice, before anything is uploaded, and never printed. A public
    repository that can be read is no exception."""
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
            push_folder(folder, NAME)
    assert len(pushes(hub)) == 1


def test_very_long_wait_is_not_waited(hub, folder, waits, capfd):
    """A Hub that asks for an hour gets no second request; the command says how to push after it."""
    hub.fail("POST", "/commit/", 429, headers={"Retry-After": "3600"}, times=100)
    assert "429" in fails(folder, HubConfig(NAME), capfd)
    assert waits == [] and hub.requests("POST", "/commit/") == [429]


def test_card_that_the_hub_refuses(hub, folder, capfd):
    """Metadata that the Hub does not take is named, before the weights are uploaded."""
    (folder / "README.md").write_text(CARD.replace("apache-2.0", "my-own"))
    output = fails(folder, HubConfig(NAME), capfd)
    assert '"license" must be one of' in output and hub.requests("PUT", "/lfs/") == [] and pushes(hub) == []


def test_token_is_taken_out_of_what_others_say(hub, folder, capfd, monkeypatch):
    """A server that quotes tokens of any form, or a signed address; a token that is no legal header, which the client's error quotes: no
    secret reaches the output."""
    monkeypatch.setenv("HF_TOKEN", FOREIGN)
    said = f"bad request of {TOKEN} and {FOREIGN} at https://store/a?X-Signature=secret&b=1 here"
    hub.fail("POST", "/commit/", 400, body=json.dumps({"error": said}).encode())
    assert "bad request of hf_*** and hf_*** at https://store/a here" in fails(folder, HubConfig(NAME), capfd)
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text("hf_secretSecretSecret\0tail")
    output = fails(folder, HubConfig(NAME), capfd)
    assert "hf_secret" not in output and "Illegal header value" in output


# Before the first step


def test_check_makes_repository_and_branch(hub, folder):
    """The check leaves a repository and branch to push to, and says nothing; without --push-to-hub it asks nobody."""
    said = []
    check_can_push(HubConfig(), said.append)
    assert hub.log == []
    check_can_push(HubConfig(NAME, private=True, revision="v2"), said.append)
    assert hub.repo(NAME).private and set(hub.repo(NAME).branches) == {"main", "v2"} and pushes(hub) == [] and said == []


@pytest.mark.parametrize("what", ["drop", 500, 429])
def test_check_without_network_only_warns(hub, what):
    """A Hub that is out of reach at the start is worth a warning, at once; the run goes on, since the push comes at its end."""
    hub.fail("POST", "/api/repos/create", what, times=100)
    said = []
    check_can_push(HubConfig(NAME), said.append)
    assert len(said) == 1 and said[0].startswith("warning: cannot push to org/net: ") and len(hub.log) == 1


def test_check_stops_what_cannot_work(hub, monkeypatch):
    """No token, an offline process, a public repository where a private one is wanted: one sentence before training."""
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
    """A token that has gone since the check: the same exit as any failed push."""
    monkeypatch.delenv("HF_TOKEN")
    assert "no Hugging Face token" in fails(folder, HubConfig(NAME), capfd) and hub.log == []


@pytest.mark.parametrize(
    "options, said",
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
        ({"push_to_hub": NAME, "revision": "two words"}, "--revision is 'two words'"),
    ],
)
def test_options_are_checked(options, said):
    """Wrong names and lonely flags are refused by the option's name."""
    with pytest.raises(ValueError, match=said) as refused:
        HubConfig(**options)
    assert TOKEN not in str(refused.value)


def test_a_licence_is_checked_before_training(hub):
    """A licence that the Hub does not know is refused before the first step, one that it knows passes."""
    check_can_push(HubConfig(push_to_hub=NAME, license="cc-by-4.0"))
    with pytest.raises(ValueError, match="--license is 'mine'; expected .*apache-2.0"):
        check_can_push(HubConfig(push_to_hub=NAME, license="mine"))


@pytest.mark.parametrize("status, raised", [(503, False), (403, True)])
def test_a_licence_that_cannot_be_checked(hub, status, raised):
    """A Hub that is down for a moment only earns a warning; one that refuses to check, an error."""
    hub.fail("POST", "/validate-yaml", status, times=9)
    options, said = HubConfig(push_to_hub=NAME, license="mit"), []
    if raised:
        with pytest.raises(ValueError, match=str(status)):
            check_can_push(options, said.append)
    else:
        check_can_push(options, said.append)
    assert bool(said) != raised


@pytest.mark.parametrize("branch", ["a..b", "a//b", "a/.b", ".a", "a.lock", "a.lock/b", "a.", "a/", "-a", "a b", ""])
def test_names_that_git_refuses(branch):
    """Of branches; plain and nested names pass."""
    with pytest.raises(ValueError, match="--revision is"):
        HubConfig(push_to_hub=NAME, revision=branch)
    for good in ("main", "v2.1", "a/b", "refs_1/x-y"):
        HubConfig(push_to_hub=NAME, revision=good)


def test_what_a_push_removes(hub, folder, tmp_path):
    """Weights and their index that are not replaced, on the branch that is pushed to; never a card or a picture."""
    shards = tmp_path / "shards"
    shards.mkdir()
    for name in ("model-00001-of-00001.safetensors", "model.safetensors.index.json", "README.md", "training.png"):
        (shards / name).write_text(CARD)
    push_folder(shards, NAME, revision="v2")
    for name in ("README.md", "training.png"):
        (folder / name).unlink()
    push_folder(folder, NAME, revision="v2")
    there = set(hub.repo(NAME).files("v2"))
    assert {"README.md", "training.png", "model.safetensors"} <= there
    assert not {"model-00001-of-00001.safetensors", "model.safetensors.index.json"} & there


def test_source_that_is_gone_leaves_the_space(hub, tmp_path):
    """A second push of a Space removes modules that the package no longer has, and nothing else."""
    (tmp_path / "file").write_text("1")
    files = dict.fromkeys(("app.py", "mine.txt", "mscl_hf/old.py", "mscl_hf/kept.py"), tmp_path / "file")
    upload.push_files(files, NAME, repo_type="space")
    upload.push_files({name: files[name] for name in ("app.py", "mscl_hf/kept.py")}, NAME, repo_type="space")
    there = set(hub.repo(NAME, "space").files("main"))
    assert {"app.py", "mine.txt", "mscl_hf/kept.py"} <= there and "mscl_hf/old.py" not in there


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


def test_push_command_refuses(tmp_path):
    """Each wrong call ends in one sentence and status 1."""
    (tmp_path / "run.json").write_text("{}")
    for arguments, said in (
        (["--folder", str(tmp_path)], "--push-to-hub is missing"),
        (["--push-to-hub", NAME], "--folder is missing"),
        (["--folder", str(tmp_path / "no"), "--push-to-hub", NAME], "there is no folder"),
        (["--folder", str(tmp_path), "--push-to-hub", NAME], "holds no model"),
        (["--what", "space", "--folder", str(tmp_path), "--push-to-hub", NAME], "--folder is .*; expected none with --what space"),
        (["--what", "data", "--push-to-hub", NAME], "--what is 'data'"),
        (["--folder", str(tmp_path), "--push-to-hub", "net"], "--push-to-hub.* ORG/NAME"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{said}"):
            run_push(*arguments)


def test_a_link_to_elsewhere_is_not_pushed(hub, folder, tmp_path):
    """A picture of a cloned folder that leads to a file of this machine ends the push before anything is sent; a link within is a file."""
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
    """There every file is a link to a blob of the same repository; one that leads on from there is not."""
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
    """A folder of an export, ONNX with its data beside it, goes as it is."""
    for name in ("model.onnx", "model.onnx.data", "README.md", "notes.txt"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text(CARD)
    run_push("--folder", str(tmp_path / "out"), "--push-to-hub", NAME)
    assert set(hub.repo(NAME).files("main")) == {".gitattributes", "README.md", "model.onnx", "model.onnx.data"}


def test_pushed_by_hand_a_card_learns_the_models_name(hub, folder):
    """The words that stand for the name in the card of a run that was not pushed are replaced on the Hub, and stay on the disk."""
    text = CARD + f'pipeline(model="{upload.NAME_PLACEHOLDER}"), from_pretrained("{upload.NAME_PLACEHOLDER}")'
    (folder / "README.md").write_text(text)
    run_push("--folder", str(folder), "--push-to-hub", NAME)
    there = hub.blob(hub.repo(NAME).files("main")["README.md"]["sha256"]).read_text()
    assert there == text.replace(upload.NAME_PLACEHOLDER, NAME) != text == (folder / "README.md").read_text()


@pytest.mark.parametrize("space", ["mean_iou", "space"])
def test_cards_of_the_spaces(space):
    """The README of each Space of ours passes the Hub's checks without a warning."""
    assert card_problems((ROOT / "hub" / space / "README.md").read_text(), "space") == ([], [])


@pytest.mark.parametrize(
    "text, kind, errors, warnings",
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
def test_card_problems(text, kind, errors, warnings):
    """The Hub of the tests finds what the Hub finds in metadata."""
    for found, expected in zip(card_problems(text, kind), (errors, warnings)):
        assert len(found) == len(expected) and all(word in sentence for word, sentence in zip(expected, found))


def test_api_of_the_caller_is_used(hub, folder, monkeypatch):
    """push_folder works for another endpoint and token than the process's own, and raises PushError with one line."""
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub.url in push_folder(folder, NAME, api=HfApi(endpoint=hub.url, token=TOKEN))
    with pytest.raises(PushError, match="^the Hub answered 401[^\n]*$"):
        push_folder(folder, NAME, api=HfApi(endpoint=hub.url, token="hf_wrongWrongWrongWrong"))
