"""Crash reports: a small folder to attach to a bug report, without secrets and paths."""

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from ..records.files import write_json, write_text
from ..records.redact import clean, cleaned, public
from ..records.run_folder import RECORD
from ..records.versions import package_versions
from .log import read_log
from .signals import ignore_ended_workers

LAST_ROWS = 20


@contextmanager
def reporting(out: Path, current: dict | None = None) -> Iterator[None]:
    """Write a report of an error in the context. current: `step` and `samples`, which the training loop updates."""
    try:
        yield
    except Exception as error:
        report_crash(out, error, **current or {})
        raise


def report_crash(out: Path, error: Exception, step: int | None = None, samples: Sequence[str] = ()) -> None:
    """Write a report of an error, once; none of wrong input or a full disk outside of a step, where the message is enough."""
    if isinstance(error, (ValueError, OSError)) and step is None or getattr(error, "reported", False):
        return
    with ignore_ended_workers():
        write_report(out, error, step=step, samples=list(samples))
    error.reported = True


def write_report(out: Path, error: BaseException, **facts) -> Path | None:
    """Write reports/TIME-process-R/ with report.json (error, facts, options, versions, machine), traceback.txt and log_tail.jsonl.

    facts: further entries of report.json, such as step and samples. Returns the folder, or None where it cannot be written: that must
    not hide the error itself.
    """
    rank = int(os.environ.get("RANK", 0))
    folder = out / "reports" / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-process-{rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "error": f"{type(error).__name__}: {error}",
            "process": rank,
            **facts,
            "options": _options(out),
            "versions": package_versions(),
            "machine": _machine(out),
        }
        write_text(folder / "traceback.txt", clean("".join(traceback.format_exception(error)), out, one_line=False) + "\n")
        rows = read_log(out / "log.jsonl")[-LAST_ROWS:]
        write_text(folder / "log_tail.jsonl", "".join(json.dumps(row) + "\n" for row in cleaned(rows, out)))
        write_json(folder / "report.json", cleaned(content, out))
    except Exception as failure:
        print(f"no report could be written to {folder} ({failure})", file=sys.stderr)
        return None
    print(f"for a bug report: {folder}", file=sys.stderr)
    return folder


def _options(out: Path) -> dict:
    """Return the options in run.json of the folder, or of its parent, which holds it for a stage of a method."""
    record = next((path for path in (out / RECORD, out.parent / RECORD) if path.is_file()), None)
    options = json.loads(record.read_text()) if record else {}
    return {key: public(value) if isinstance(value, str) else value for key, value in options.items()}  # lists hold no paths


def _machine(out: Path) -> dict:
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(out))
    return {
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "memory_gb": {"total": round(memory.total / 1e9, 1), "available": round(memory.available / 1e9, 1)},
        "disk_free_gb": round(disk.free / 1e9, 1),
    }
