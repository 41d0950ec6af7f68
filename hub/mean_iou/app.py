"""The Space's page: the metric's README. `evaluate.load` reads mean_iou.py only."""

from pathlib import Path

import gradio

text = Path(__file__).with_name("README.md").read_text(encoding="utf-8").split("---\n", 2)[2]

with gradio.Blocks(title="Mean IoU, streamed") as page:
    gradio.Markdown(text)

page.launch()
