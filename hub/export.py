"""Export a model to timm, segmentation_models_pytorch, torchvision, ONNX or torch.export.

mscl-export --model runs/finetune --to onnx --output-dir runs/onnx
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from mscl_hf import export
from mscl_hf.cli import command, parse_sections
from mscl_hf.config.fields import Section, option


@dataclass(frozen=True)
class ExportConfig(Section):
    """The model, the target and the output folder."""

    _argument_group_name: ClassVar[str] = "export"

    to: Literal["timm", "smp", "torchvision", "onnx", "torch"] = option(..., "library or format; smp = segmentation_models_pytorch")
    output_dir: str = option(..., "new or empty folder for the export")
    model: str = option("runs/finetune", "model folder, Hub name or NAME@REVISION")
    revision: str | None = option(None, "branch, tag or commit of --model to read from the Hub (default: main)")
    backbone_only: bool = option(False, "smp, torchvision: export the encoder without its decoder")
    height: int | None = option(None, "onnx, torch: the only height of images in px (default: any)", at_least=16)
    width: int | None = option(None, "onnx, torch: the only width of images in px (default: any)", at_least=16)

    def __post_init__(self):
        super().__post_init__()
        if (self.height is None) != (self.width is None):
            one, other = ("--height", "--width") if self.width is None else ("--width", "--height")
            raise ValueError(f"{one} is given without {other}; expected both or neither. Give {other} as well.")


@command
def main() -> None:
    (config,) = parse_sections([ExportConfig], __doc__.splitlines()[0])
    size = None if config.height is None else (config.height, config.width)
    out = Path(config.output_dir)
    print(export.export(config.model, config.to, out, backbone_only=config.backbone_only, size=size, revision=config.revision))
    print(f"{', '.join(sorted(file.name for file in out.iterdir()))}: {out}")


if __name__ == "__main__":
    main()
