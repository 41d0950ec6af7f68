"""Carry a model folder or Hub model to timm, segmentation_models_pytorch, torchvision, ONNX or torch.export.

mscl-export --model runs/finetune --to onnx --output-dir runs/onnx
"""

from dataclasses import dataclass, field
from pathlib import Path

from mscl_hf.cli import command, parse
from mscl_hf.export import EXPORTS, export


@dataclass(frozen=True)
class ExportOptions:
    """What to carry where."""

    to: str = field(metadata={"help": f"one of {', '.join(EXPORTS)}"})
    output_dir: str = field(metadata={"help": "new or empty folder"})
    model: str = field(default="runs/finetune", metadata={"help": "model folder, Hub name or NAME@REVISION"})
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub model"})
    backbone_only: bool = field(default=False, metadata={"help": "smp, torchvision: the encoder without its decoder"})
    height: int | None = field(default=None, metadata={"help": "onnx, torch: a graph for images of this height in px; default: any"})
    width: int | None = field(default=None, metadata={"help": "onnx, torch: and of this width"})

    def __post_init__(self):
        if self.to not in EXPORTS:
            raise ValueError(f"--to is {self.to!r}; choose one of {', '.join(EXPORTS)}")
        if (self.height is None) != (self.width is None) or min(self.height or 16, self.width or 16) < 16:
            raise ValueError(f"--height is {self.height} and --width {self.width}; give both, at least 16 px each, or neither")


@command
def main() -> None:
    (options,) = parse((ExportOptions,), __doc__.splitlines()[0])
    size = None if options.height is None else (options.height, options.width)
    out = Path(options.output_dir)
    print(export(options.model, options.to, out, backbone_only=options.backbone_only, size=size, revision=options.revision))
    print(f"{', '.join(sorted(file.name for file in out.iterdir()))}: {out}")


if __name__ == "__main__":
    main()
