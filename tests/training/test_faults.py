"""Faults planted in real runs, each in its own process: checkpoints on the disk survive, and the same command reaches the same result."""

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import harness
import pytest
from accelerate import Accelerator
from same_run import differences

from mscl_hf.records import run_folder
from mscl_hf.training import checkpoint, checkpoint_folder
from mscl_hf.training.log import read_log

sys.path.append(str(Path(__file__).parents[1] / "faults"))
from with_fault import BOUNDARIES  # noqa: E402
from zygote import Zygote  # noqa: E402

STEPS = 6
FLAGS = (*harness.TINY, *harness.SHORT, "--max-steps", STEPS, "--save-steps", 1, "--learning-rate", 0.01, "--val-split", "none", "--resume")


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    with Zygote(tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture(scope="module")
def straight(zygote, tmp_path_factory) -> Path:
    """The folder of an undisturbed run."""
    out = tmp_path_factory.mktemp("straight") / "run"
    status, output = zygote.run("pretrain", *FLAGS, "--output-dir", out)
    assert status == 0, output
    return out


def steps_of(out: Path) -> list[int]:
    return [int(folder.name[5:]) for folder in checkpoint_folder.complete(out)]


def goes_on(zygote, out: Path, straight: Path, step: int) -> None:
    """Check that the same command continues from this step, and that its result equals the undisturbed run."""
    status, output = zygote.run("pretrain", *FLAGS, "--output-dir", out)
    assert status == 0 and ("resuming" not in output if step == 0 else f"resuming from step {step} (" in output), output
    assert differences(out, straight) == []


# The second save, to its end; the third also deletes the first: the new one is renamed (11), the old one hidden (13), then deleted (14).
@pytest.mark.parametrize(("save", "boundary"), [*((2, number) for number in range(1, 13)), *((3, number) for number in range(11, 15))])
def test_killed_at_each_point_of_a_save(zygote, straight, tmp_path, save, boundary):
    """After SIGKILL at each call that changes the disk the newest complete checkpoint loads, unfinished files are deleted, and the run
    ends with the undisturbed result."""
    out, fired = tmp_path / "run", tmp_path / "fired"
    status, _ = zygote.run("pretrain", *FLAGS, "--output-dir", out, fault=f"die_in_save:{save}:{boundary}", fired=fired)
    assert fired.exists() and status == -signal.SIGKILL
    steps = list(range(1, save + (boundary >= 11)))
    assert steps_of(out) == (steps[1:] if boundary >= 13 else steps)
    for folder in checkpoint_folder.complete(out):
        checkpoint_folder.verify(folder)
    if (save, boundary) in ((2, 4), (2, 10), (3, 11), (3, 13)):  # a whole run more
        goes_on(zygote, out, straight, steps_of(out)[-1])


def test_boundaries_cover_the_save():
    """The functions that the fault patches exist."""
    assert all(hasattr(place, name) for place, name in BOUNDARIES)


@pytest.mark.slow
def test_thirty_kills_at_random_moments(zygote, straight, tmp_path):
    """Every published checkpoint is complete after each kill, and the run continues from the newest."""
    draw, killed = random.Random(0), 0
    for number in range(30):
        out = tmp_path / str(number)
        run = zygote.start("pretrain", *FLAGS, "--output-dir", out)
        deadline = time.monotonic() + 60
        while run.alive and not (out / "checkpoints").is_dir() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.8))
        before = steps_of(out)
        run.kill()
        killed += run.wait() == -signal.SIGKILL
        after = steps_of(out)
        assert not before or after[-1] >= before[-1]
        for folder in checkpoint_folder.complete(out):
            checkpoint_folder.verify(folder)
        if number % 10 == 0:
            goes_on(zygote, out, straight, after[-1] if after else 0)
    assert killed > 15


@pytest.mark.parametrize("fault", ["file_limit:20000", "disk_full:20"])
def test_disk_full_while_saving(zygote, straight, tmp_path, fault):
    """One message with the path, the error of the system and the free space; status 1; the checkpoint before it is undamaged."""
    out, fired = tmp_path / "run", tmp_path / "fired"
    status, output = zygote.run("pretrain", *FLAGS, "--output-dir", out, fault=fault, fired=fired)
    assert fired.exists() and status == 1 and "Traceback" not in output
    sentence = output.strip().splitlines()[-1]
    reason = "File too large" if fault.startswith("file") else "No space left on device"
    assert sentence.startswith(f"error: cannot save {out}/checkpoints/step-") and reason in sentence and "GB free" in sentence
    assert not list(out.glob("checkpoints/.tmp-*"))
    checkpoint_folder.verify(checkpoint_folder.complete(out)[-1])
    goes_on(zygote, out, straight, steps_of(out)[-1])


def damage_byte(folder: Path) -> str:
    path = folder / "method.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "method.safetensors is not the file that was written (SHA-256)"


def damage_length(folder: Path) -> str:
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return "optimizer.safetensors has"


def damage_absence(folder: Path) -> str:
    (folder / "state.json").unlink()
    return "state.json has no bytes"


def damage_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text("")
    return "manifest.json cannot be read"


@pytest.mark.parametrize("damage", [damage_byte, damage_length, damage_absence, damage_manifest])
def test_damaged_checkpoint_is_passed_over(zygote, straight, tmp_path, damage):
    """A changed byte, a short or missing file and an empty manifest give a warning, and the checkpoint before is used.

    Reading the damaged one is an error, and so is a run whose checkpoints are all damaged.
    """
    out = tmp_path / "run"
    assert zygote.run("pretrain", *FLAGS, "--output-dir", out, fault="leave:0:4", fired=tmp_path / "fired")[0] == 9
    assert steps_of(out) == [2, 3]
    newest = out / "checkpoints" / "step-00000003"
    says = damage(newest)
    with pytest.raises(checkpoint_folder.DamagedCheckpoint) as rejected:
        checkpoint_folder.verify(newest)
    assert says in str(rejected.value) and str(newest) in str(rejected.value)
    status, output = zygote.run("pretrain", *FLAGS, "--output-dir", out)
    assert status == 0 and f"warning: the checkpoint {newest} is damaged: {says}" in output and "resuming from step 2 (" in output
    assert differences(out, straight) == []
    assert [path.name for path in out.glob("checkpoints/damaged-*")] == ["damaged-step-00000003"]
    assert "step-00000003 is renamed to " in output
    for folder in checkpoint_folder.published(out):
        damage(folder)
    status, output = zygote.run("pretrain", *FLAGS, "--output-dir", out)
    assert status == 1 and f"error: all 2 checkpoints of {out} are damaged" in output


def test_checkpoint_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch, capsys):
    """A read error counts as damage: the checkpoint before it is used."""
    harness.train(harness.pretraining(), harness.training_data(), tmp_path, max_steps=2, save_steps=1)
    old = checkpoint_folder._fingerprint

    def broken(path: Path) -> dict:
        if path.parent.name == "step-00000002":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return old(path)

    monkeypatch.setattr(checkpoint_folder, "_fingerprint", broken)
    assert checkpoint_folder.newest(tmp_path, Accelerator()).name == "step-00000001"
    assert "step-00000002 is damaged: method.safetensors cannot be read (Input/output error)" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [damage_byte, damage_absence])
def test_rotation_counts_whole_checkpoints_only(tmp_path, damage):
    """Damaged checkpoints do not count as kept ones and replace no undamaged one; other folders stay."""
    harness.train(harness.pretraining(), harness.training_data(), tmp_path, max_steps=3, save_steps=1, save_total_limit=3)
    for name in ("step-00000002", "step-00000003"):
        damage(tmp_path / "checkpoints" / name)
    copy = tmp_path / "checkpoints" / "step-00000001.bak"
    shutil.copytree(tmp_path / "checkpoints" / "step-00000001", copy)
    harness.train(harness.pretraining(), harness.training_data(), tmp_path, max_steps=2, save_steps=2, save_total_limit=2)
    assert steps_of(tmp_path) == [1, 2] and copy.is_dir()
    harness.train(harness.pretraining(), harness.training_data(), tmp_path, max_steps=4, save_steps=1, save_total_limit=2)
    assert steps_of(tmp_path) == [3, 4] and copy.is_dir()
    with pytest.raises(ValueError, match="--save-total-limit is 1; expected at least 2"):
        harness.options(save_total_limit=1)


@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 3)])
def test_signals_end_the_run_after_the_step(zygote, straight, tmp_path, number, times):
    """The step is finished and saved, the status is 75, further signals have no effect, and the same command completes the run."""
    out, fired = tmp_path / "run", tmp_path / "fired"
    fault = f"signal_at:0:3:{int(number)}:{times}"
    status, output = zygote.run("pretrain", *FLAGS, "--output-dir", out, fault=fault, fired=fired)
    assert fired.exists() and status == 75 and "stopped after step 3, checkpoint saved" in output and steps_of(out)[-1] == 3
    if times == 1 and number == signal.SIGTERM:
        goes_on(zygote, out, straight, 3)


def test_signal_in_the_last_step(zygote, straight, tmp_path):
    """The model is not written; the same command does that."""
    out, fired = tmp_path / "run", tmp_path / "fired"
    status, output = zygote.run("pretrain", *FLAGS, "--output-dir", out, fault=f"signal_at:0:{STEPS}", fired=fired)
    assert fired.exists() and status == 75 and f"stopped after step {STEPS}, checkpoint saved" in output
    assert not (out / "model.safetensors").exists()
    goes_on(zygote, out, straight, STEPS)


def test_signal_during_evaluation(zygote, straight, tmp_path):
    """A signal during scoring ends fine-tuning with status 75 after its last checkpoint, and the same command measures again; evaluation
    alone likewise."""
    flags = ("--model", straight, *harness.SHORT, "--max-steps", 2, "--train-count", 4)
    out, fired = tmp_path / "tuned", tmp_path / "fired"
    status, output = zygote.run("finetune", *flags, "--output-dir", out, fault="signal_in_evaluation:0", fired=fired)
    assert fired.exists() and status == 75 and "the same command with --resume continues" in output and "Traceback" not in output
    assert steps_of(out) == [2] and not (out / "results.json").exists()
    assert zygote.run("finetune", *flags, "--output-dir", out, "--resume")[0] == 0
    assert json.loads((out / "results.json").read_text())["num_images"] > 0
    measure = ("--model", out, "--split", "val", "--output-dir", tmp_path / "measured")
    assert zygote.run("evaluate_model", *measure, fault="signal_in_evaluation:0", fired=tmp_path / "again")[0] == 75
    assert zygote.run("evaluate_model", *measure)[0] == 0


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_a_number_stops_before_the_weights_move(zygote, straight, tmp_path, what):
    """For a NaN in the loss or only in the gradient, the weights of the step before are saved, the report has step, process and samples,
    and the same command continues."""
    out, fired = tmp_path / "run", tmp_path / "fired"
    flags = (*FLAGS, "--save-steps", 0, "--output-dir", out)
    status, output = zygote.run("pretrain", *flags, fault=f"nan:0:4:{what}", fired=fired)
    assert fired.exists() and status == 1 and "error: step 4 gave loss" in output and steps_of(out) == [3]
    report = json.loads(next(out.glob("reports/*/report.json")).read_text())
    assert report["step"] == 4 and report["process"] == 0 and len(report["samples"]) == harness.BATCH
    assert all(name in output.splitlines()[-1] for name in report["samples"])
    assert zygote.run("pretrain", *flags)[0] == 0
    assert differences(out, straight) == []


def test_a_crash_leaves_a_report(zygote, tmp_path):
    """Without a batch the report names no samples; its options are those of the last start."""
    out, fired = tmp_path / "run", tmp_path / "fired"
    zygote.run("pretrain", *FLAGS, "--output-dir", out, fault="leave:0:2", fired=tmp_path / "gone")
    status, output = zygote.run("pretrain", *FLAGS, "--save-total-limit", 3, "--output-dir", out, fault="loader_fails:3", fired=fired)
    assert fired.exists() and status == 1 and "for a bug report: " in output
    (report,) = (json.loads(path.read_text()) for path in out.glob("reports/*/report.json"))
    assert report["step"] == 3 and report["samples"] == [] and report["error"] == "RuntimeError: the planted fault"
    assert report["options"]["save_total_limit"] == 3


def test_too_little_memory_names_a_batch_that_is_possible(zygote, tmp_path):
    """The error has the next smaller batch that the method takes, with as many images in a step, and the size of the run."""
    given = (*FLAGS, "--batch-size", 6, "--output-dir", tmp_path / "run")
    status, output = zygote.run("pretrain", *given, fault="out_of_memory", fired=tmp_path / "fired")
    assert status == 1 and "error: --batch-size is 6 and --image-size 32; expected a step that fits into the memory of the GPU." in output
    assert "Give --batch-size 3 --gradient-accumulation-steps 2 --image-size 32, --gradient-checkpointing, or a smaller" in output


def test_a_crash_while_scoring_leaves_a_report(zygote, straight, tmp_path):
    """An error after training leaves a report too; the model exists, and the status is 77."""
    flags = ("--model", straight, *harness.SHORT, "--max-steps", 1, "--train-count", 4, "--output-dir", tmp_path / "run")
    status, output = zygote.run("finetune", *flags, fault="raise_in_evaluation:0", fired=tmp_path / "fired")
    assert (tmp_path / "fired").exists() and status == 77 and "for a bug report: " in output
    assert (tmp_path / "run" / "model.safetensors").is_file()
    reports = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("reports/*/report.json")]  # the pictures fail likewise
    assert reports and all(report["error"] == "RuntimeError: the planted fault" for report in reports)
    assert all(report["step"] is None and report["options"]["max_steps"] == 1 for report in reports)


def test_killed_data_worker_is_an_error_and_no_hang(zygote, straight, tmp_path):
    """A killed data worker is an error with status 1, and the same command continues."""
    out, fired = tmp_path / "run", tmp_path / "fired"
    more = ("--dataloader-num-workers", 1, "--output-dir", out)
    status, output = zygote.run("pretrain", *FLAGS, *more, fault="worker_killed:3", fired=fired)
    assert fired.exists() and status == 1 and "error: a data worker ended (" in output and "--dataloader-num-workers" in output, output
    goes_on(zygote, out, straight, 2)


def test_one_run_at_a_time_in_a_folder(zygote, tmp_path):
    """A second run is rejected at once with the process of the first; the lock of a killed run does not block the next one."""
    out = tmp_path / "run"
    many = (*FLAGS, "--max-steps", 10_000, "--output-dir", out)
    first = zygote.start("pretrain", *many)
    deadline = time.monotonic() + 60
    while not (out / "checkpoints").is_dir() or not steps_of(out):  # the lock is held, and the next run has a step to continue from
        assert first.alive and time.monotonic() < deadline, first.output
        time.sleep(0.01)
    started = time.monotonic()
    status, output = zygote.run("pretrain", *many)
    assert status == 1 and f"error: another run is at work in {out} (process {first.pid} on " in output
    assert time.monotonic() - started < 20 and first.alive
    first.kill()
    assert first.wait() == -signal.SIGKILL
    second = zygote.start("pretrain", *many)
    deadline = time.monotonic() + 60
    while "resuming from step" not in second.output and second.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "resuming from step" in second.output
    second.kill(signal.SIGTERM)
    assert second.wait() == 75


@pytest.mark.parametrize(("number", "says"), [(errno.ENOLCK, None), (errno.EACCES, "another run"), (errno.EIO, "cannot write to")])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number, says):
    """Without locks there is a warning; only the errors that POSIX defines for a held lock mean another run."""

    def reject(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_folder.fcntl, "lockf", reject)
    if says is None:
        with pytest.warns(UserWarning, match="a second run in it would not be noticed"):
            run_folder.open_run(tmp_path / "run", {"seed": 0}, False, Accelerator())
        assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"seed": 0}
        return
    with pytest.raises((ValueError, OSError), match=says):
        run_folder.open_run(tmp_path / "run", {"seed": 0}, False, Accelerator())
    assert not (tmp_path / "run" / "run.json").exists()


def test_output_folder_that_cannot_be(zygote, tmp_path):
    """A folder below a regular file is rejected before training."""
    (tmp_path / "file").write_text("")
    started = time.monotonic()
    status, output = zygote.run("pretrain", *FLAGS, "--output-dir", tmp_path / "file" / "run")
    assert status == 1 and "error: cannot write to" in output and "give another --output-dir" in output
    assert time.monotonic() - started < 30


def test_full_disk_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    """The disk must hold the checkpoints that are kept and the next one; the error names both sizes."""
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=300_000))
    with pytest.raises(ValueError, match=r"has 0.00 GB free and the checkpoints need 0.\d\d GB"):
        harness.train(harness.pretraining(), harness.training_data(), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    with monkeypatch.context() as roomy:
        roomy.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
        harness.train(harness.pretraining(), harness.training_data(), tmp_path / "run", max_steps=1)
    harness.train(harness.pretraining(), harness.training_data(), tmp_path / "run", max_steps=1)  # nothing is left to save


def test_report_holds_no_secret(zygote, tmp_path, monkeypatch):
    """A report has no tokens from the error, the environment or the options, and no folders of the machine."""
    from mscl_hf.training.crash_report import write_report

    monkeypatch.setenv("MY_API_KEY", "very-secret-value")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "another-secret-value")
    (tmp_path / "run.json").write_text(json.dumps({"data_dir": str(Path.home() / "pictures"), "push_to_hub": "org/hf_abcdefghijklmnop"}))
    (tmp_path / "log.jsonl").write_text("".join(f'{{"step": {i}, "loss": 1.0}}\n' for i in range(1, 50)))
    try:
        raise RuntimeError(
            f"died in {Path.home()}/here with hf_abcdefghijklmnop and {os.environ['MY_API_KEY']} another-secret-value at "
            "https://bob:pw12345@proxy.org/a.png?X-Sig=signed of '/mnt/client 7/a.png' and /mnt/clinic/b.png "
            "scan:/mnt/clinic/c.png file:///mnt/clinic/d.png Authorization: Bearer abc.pw12345"
        )
    except RuntimeError as error:
        folder = write_report(tmp_path, error, step=3, samples=["a"])
    text = "".join(path.read_text() for path in folder.iterdir())
    for secret in ("hf_abcdefghijklmnop", "very-secret-value", "another-secret", str(Path.home()), str(tmp_path), str(harness.ROOT),
                   "bob", "pw12345", "signed", "client", "clinic"):  # fmt: skip
        assert secret not in text
    report = json.loads((folder / "report.json").read_text())
    assert report["error"].startswith("RuntimeError: died in ~/here") and report["options"]["data_dir"] == "pictures"
    assert report["versions"]["torch"] and [row["step"] for row in read_log(folder / "log_tail.jsonl")] == list(range(30, 50))
    assert "test_faults.py" in (folder / "traceback.txt").read_text()
