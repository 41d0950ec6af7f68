"""The page of the Space, which shows the metric's README. `evaluate.load` reads only mean_iou.py."""

from pathlib import Path

import gradio

text = Path(__file__).with_name("README.md").read_text(encoding="utf-8").split("---\n", 2)[2]

with gradio.Blocks(title="Mean IoU, streamed") as page:
    gradio.Markdown(text)

page.launch()
