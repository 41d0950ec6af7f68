"""Run a recipe on several processes, and record the batches and the final weights of each.

    torchrun --standalone --nproc_per_node 2 tests/distributed/train_worker.py RECORDS RECIPE FLAGS...
"""

import hashlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import harness

from mscl_hf import training
from mscl_hf.data import training_data


def digest(method) -> str:
    """Return a hash of all parameters; batch statistics differ between processes until the next forward pass."""
    state = hashlib.sha256()
    for _, parameter in sorted(method.named_parameters()):
        state.update(parameter.detach().contiguous().numpy().tobytes())
    return state.hexdigest()


def main(records: Path, name: str, flags: list[str]) -> None:
    batches, recipe = [], harness.load_recipe(name)
    to_device, fit = training_data.to_device, training.fit

    def recorded(batch, device):
        batches.append(batch["name"])
        return to_device(batch, device)

    def fitted(method, *rest, **more):
        fit(method, *rest, **more)
        content = {"batches": batches[1:], "weights": digest(method)}  # the first one is for freeze_unreached
        (records / f"rank{os.environ['RANK']}.json").write_text(json.dumps(content))

    training_data.to_device, training.fit = recorded, fitted
    sys.argv = [name, *flags]
    recipe.main()


if __name__ == "__main__":
    records, name, *flags = sys.argv[1:]
    main(Path(records), name, flags)
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort the interpreter while it shuts down, all work done
