"""Two training steps of two networks under accelerate's FSDP, wrapped by its transformer policy: python fsdp_worker.py VERSION OUT.pt"""

import sys

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState

from mscl_hf import MsclForSemanticSegmentation
from mscl_hf.models.backbones import build_config


def main(version: str, out: str) -> None:
    losses = {name: losses_of(name, version) for name in ("test_resnet", "test_vit")}
    accelerator = Accelerator(cpu=True)
    if accelerator.is_main_process:
        torch.save(losses, out)
    accelerator.end_training()


def losses_of(name: str, version: str) -> dict[str, list[float]]:
    """Return the losses of the whole network and of the sharded one."""
    AcceleratorState._reset_state()
    torch.manual_seed(0)
    model = MsclForSemanticSegmentation(build_config(name, image_size=64, num_labels=3, decoder_channels=16, decoder_dropout=0.0)).eval()
    torch.manual_seed(1)
    image, labels = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    plain = [step(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.Tensor.backward, image, labels) for _ in range(2)]
    torch.manual_seed(0)
    model = MsclForSemanticSegmentation(model.config).eval()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=int(version), auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True if version == "2" else "FULL_SHARD"
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.eval()
    sharded = [step(model, optimizer, accelerator.backward, image, labels) for _ in range(2)]
    return {"plain": plain, "sharded": sharded}


def step(model, optimizer, backward, image, labels) -> float:
    loss = model(image, labels=labels).loss
    backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


if __name__ == "__main__":
    main(*sys.argv[1:])
