"""Show checkpoints in a browser: the segmentation of an image, and which of its pixels have similar features.

mscl-demo --model runs/finetune
mscl-demo --model runs/finetune --compare runs/pretrain --examples DIR
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from .. import demo
from ..cli import command, parse_sections
from ..config.fields import Section, option

NUM_FILES = 24  # most examples of a folder


@dataclass(frozen=True)
class DemoConfig(Section):
    """Which checkpoints are shown, and where the page is served."""

    model: list[str] = option(["runs/finetune"], "model folders or Hub names to choose from")
    compare: str | None = option(None, "model folder or Hub name that is shown beside the first (default: none)")
    examples: str | None = option(None, f"folder of images, the first {NUM_FILES} of which are examples (default: generated images only)")
    host: str = option("127.0.0.1", "address of the page; 0.0.0.0 = all addresses of this machine. Visitors can then type Hub names only")
    port: int = option(7860, "port of the page", at_least=1, at_most=65535)
    max_side: int = option(1280, "longer side in px to which larger images are reduced", at_least=1)


@command
def main() -> None:
    (config,) = parse_sections([DemoConfig], __doc__.splitlines()[0])
    if config.examples is not None and not Path(config.examples).is_dir():
        raise ValueError(f"--examples is {config.examples}; expected a folder of images. Give an existing folder, or leave it out.")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("The page needs gradio, which is not installed. Run pip install gradio.")
    demo.serve(config)


if __name__ == "__main__":
    main()
