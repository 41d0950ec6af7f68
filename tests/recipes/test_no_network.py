"""Nothing is asked of the network, and nothing reported, unless a name on the Hub is given."""

import json
import os
import subprocess
import sys

from conftest import ROOT

SWITCHES = ("HF_", "TRANSFORMERS_", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "GRADIO_", "PYTHONPATH", "MSCL_HF_CACHE")


def test_a_run_asks_nobody(tmp_path):
    """Pre-training, fine-tuning, evaluation, export and the page, without a switch that forbids the network, connect to nothing and resolve
    no name; with a name on the Hub an attempt is seen, so that the test can fail."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SWITCHES)}
    environment |= {"HF_HOME": str(tmp_path / "home"), "MSCL_HF_CACHE": str(tmp_path / "cache")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    worker = [sys.executable, str(ROOT / "tests" / "quiet_worker.py"), str(tmp_path)]
    done = subprocess.run(worker, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    attempts = json.loads((tmp_path / "attempts.json").read_text())
    assert any("huggingface.co" in attempt for attempt in attempts.pop("a name on the Hub"))
    assert attempts == dict.fromkeys(("import", "pretrain", "finetune", "evaluate", "export", "page"), [])
