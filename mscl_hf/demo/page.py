"""The page of `mscl-demo`: the segmentation of an image, and which of its pixels have similar features."""

import ipaddress
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from PIL import Image

from ..data.files import find_images
from ..data.mask_files import separate
from ..data.synthetic import draw_scene
from .command import NUM_FILES, DemoConfig
from .markup import CSS, EMPTY, HEAD, heading, messages, scale, shares_table
from .similarity import View, enlargement, segmentation_picture, similarity_picture
from .visit import Visit, open_cached

NUM_SCENES = 6  # generated images among the examples
OPACITY = 0.7


def updates(visit: Visit, opacity: float) -> list:
    """Return new values of all components that `build` updates, in its order."""
    text = messages(visit)
    views = [visit.views.get(name) for name in visit.names]
    has_masks = any(view is not None and view.mask is not None for view in views)
    values = [visit, gr.HTML(text, visible=bool(text)), gr.HTML(visible=not any(views)), gr.Row(visible=any(views))]
    values += visit.point or (None, None)
    for name, view in zip(visit.names, views):
        values += [gr.Column(visible=view is not None and has_masks), gr.Column(visible=view is not None)]
        values += ["", None, ""] * 2 if view is None else view_updates(name, view, visit, opacity)
    return values


def view_updates(name: str, view: View, visit: Visit, opacity: float) -> list:
    """Return heading, picture and legend of the segmentation, then of the similarity."""
    if view.mask is None:
        segmentation, legend = gr.Image(None, visible=False), "<p>None: a pre-training checkpoint has no classifier.</p>"
    else:
        text = ", ".join(f"{view.classes[i]} {share:.0f} %" for i, share in view.shares()[:5])
        picture, legend = segmentation_picture(visit.image, view, opacity, visit.point), shares_table(view)
        segmentation = gr.Image(picture, visible=True, alt_text=f"Segmentation: {text}")
    text = "The image; click a pixel" if visit.point is None else "Similarity of every pixel to the one at {}, {}".format(*visit.point)
    similarity = gr.Image(similarity_picture(visit.image, view, opacity, visit.point), alt_text=text)
    return [heading(name, "Segmentation"), segmentation, legend, heading(name, "Similarity"), similarity, scale(view, visit.point)]


def build(
    models: Sequence[str], compare: str | None = None, examples: str | None = None, local: bool = True, max_side: int = DemoConfig.max_side
) -> gr.Blocks:
    """Return the page.

    models: folders or Hub names to choose from; the first is shown. compare: a checkpoint that is shown beside it.
    examples: folder of images that are offered beside generated ones. local: whether visitors may type folders of this machine.
    """
    choices = list(dict.fromkeys([*models, *([compare] if compare else [])]))
    files = [] if examples is None else separate(find_images(Path(examples)).images, Path(examples)).images[:NUM_FILES]
    example_images = [*map(str, files), *(Image.fromarray(draw_scene(1, "test", i, 192, 256)[0]) for i in range(NUM_SCENES))]
    hint = "A model folder, or a name on the Hub." if local else "Any mscl_hf model on the Hub: type OWNER/NAME."

    def look(path, first, second, opacity, visit):
        return updates(visit.with_inputs(path, (first, second), choices, local, max_side), opacity)

    def point(x, y, opacity, visit):
        return updates(visit.with_point(x, y), opacity)

    def click(event: gr.SelectData, opacity, visit):
        factor = 1 if visit.image is None else enlargement(visit.image.shape[:2])
        return point(*(coordinate // factor for coordinate in event.index), opacity, visit)

    with gr.Blocks(title="mscl_hf: segmentation and similarity", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        visit = gr.State(Visit(), time_to_live=3600)
        gr.HTML(HEAD, elem_id="head")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image", height=240, buttons=[])
                # gradio's own preprocess opens the file, and its errors would not reach `read_image`.
                image.preprocess = lambda file: file and file.path
                gr.Examples([[example] for example in example_images], image, label="Examples", examples_per_page=12)
                first = gr.Dropdown(choices, value=models[0] if models else None, allow_custom_value=True, label="Checkpoint", info=hint)
                others = [("none", ""), *((choice, choice) for choice in choices)]
                second = gr.Dropdown(others, value=compare or "", allow_custom_value=True, label="Compare with")
            with gr.Column(scale=3, min_width=320):
                message = gr.HTML(elem_id="messages", visible=False)
                empty = gr.HTML(EMPTY, elem_id="empty")
                with gr.Row(visible=False) as controls:
                    opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the colors", buttons=[], scale=2, min_width=280)
                    x = gr.Number(label="Pixel, x", precision=0, minimum=0, min_width=100)
                    y = gr.Number(label="Pixel, y", precision=0, minimum=0, min_width=100)
                with gr.Row(elem_id="results"):
                    columns = [_column(title) for title in ("Segmentation", "Similarity") for _ in range(2)]
        outputs = [visit, message, empty, controls, x, y]
        for (left, *segmentation), (right, *similarity) in zip(columns[:2], columns[2:]):
            outputs += [left, right, *segmentation, *similarity]
        pictures = [column[2] for column in columns]
        # One event at a time, because each needs the visit that the previous one returned; the last of many is always run.
        queue = {"concurrency_limit": 1, "concurrency_id": "visit", "trigger_mode": "always_last"}
        gr.on([page.load, image.change, first.change, second.change], look, [image, first, second, opacity, visit], outputs,
              show_progress="minimal", show_progress_on=[empty, *pictures], api_name="look", **queue)  # fmt: skip
        queue |= {"show_progress": "hidden"}
        opacity.input(lambda opacity, visit: updates(visit, opacity), [opacity, visit], outputs, api_name="opacity", **queue)
        gr.on([x.submit, y.submit], point, [x, y, opacity, visit], outputs, api_name="point", **queue)
        gr.on([picture.select for picture in pictures], click, [opacity, visit], outputs, api_visibility="private", **queue)
    return page


def _column(title: str) -> tuple:
    """Create a column with heading, picture and legend; return all four."""
    with gr.Column(visible=False, min_width=320) as column:
        heading = gr.HTML()
        picture = gr.Image(format="png", interactive=False, label=title, show_label=False, buttons=["download", "fullscreen"])
        return column, heading, picture, gr.HTML()


def launch(page: gr.Blocks, **options) -> tuple:
    """Serve the page by `gr.Blocks.launch`, with its options and return value, without requests to other servers."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", **fonts)
    theme.set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")  # a contrast of at least 4.5
    return page.launch(
        theme=theme, css=CSS, footer_links=["api", "settings"], ssr_mode=False, run_history=False, max_file_size="64mb",
        state_session_capacity=50, **options,
    )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address. Of names only localhost counts: any other can resolve to any address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(config: DemoConfig) -> None:
    """Open the checkpoints, and serve the page until it is stopped."""
    for name in (*config.model, *([config.compare] if config.compare else [])):
        open_cached(name, None)
    page = build(config.model, config.compare, config.examples, local=is_loopback(config.host), max_side=config.max_side)
    launch(page, server_name=config.host, server_port=config.port)
