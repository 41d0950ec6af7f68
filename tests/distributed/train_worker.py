"""Runs a recipe on however many processes it is started with, and records what each of them read and ended with.

    torchrun --standalone --nproc_per_node 2 tests/distributed/train_worker.py RECORDS RECIPE FLAGS...
"""

import hashlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import harness

from mscl_hf.data import loader


def digest(method) -> str:
    """A hash of all parameters (batch statistics are each process's own until the next forward)."""
    state = hashlib.sha256()
    for _, parameter in sorted(method.named_parameters()):
        state.update(parameter.detach().contiguous().numpy().tobytes())
    return state.hexdigest()


def main(records: Path, name: str, flags: list[str]) -> None:
    batches, recipe = [], harness.load_recipe(name)
    to_device, fit = loader.to_device, recipe.fit

    def recorded(batch, device):
        batches.append(batch["name"])
        return to_device(batch, device)

    def fitted(method, *rest, **more):
        method = fit(method, *rest, **more)
        content = {"batches": batches[1:], "weights": digest(method)}  # the first was read to see what trains
        (records / f"rank{os.environ['RANK']}.json").write_text(json.dumps(content))
        return method

    loader.to_device, recipe.fit = recorded, fitted
    sys.argv = [name, *flags]
    recipe.main()


if __name__ == "__main__":
    records, name, *flags = sys.argv[1:]
    main(Path(records), name, flags)
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort the interpreter while it shuts down, all work done
