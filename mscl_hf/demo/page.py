"""Look at checkpoints in a browser: the segmentation of an image, and which of its pixels a network finds alike.

mscl-demo --model runs/finetune
mscl-demo --model runs/finetune --compare runs/pretrain --examples DIR
"""

from __future__ import annotations  # gradio's types are named below, and it may be absent

import ipaddress
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from html import escape
from pathlib import Path

import numpy as np
from huggingface_hub.utils import HFValidationError, validate_repo_id
from PIL import Image

from ..cli import command, parse
from ..data.files import find_images
from ..data.mask_files import separate
from ..data.synthetic import draw_scene
from ..models.loading import split_revision
from ..visual.palette import class_colours
from .similarity import View, enlargement, heat_colours, open_checkpoint, read_image, segmentation_picture, similarity_picture, view_of

try:
    import gradio as gr
except ModuleNotFoundError:
    gr = None

MAX_SIDE = 1280  # px, of the image that is worked on
SCENES, FILES = 6, 24  # examples: drawn ones, at most so many of a folder
OPACITY = 0.7
HEAD = """<h1>Segmentation and similarity</h1>
<p>Drop an image or take an example, then click a pixel of a picture to see which others the network finds like it.</p>"""
opened = lru_cache(maxsize=4)(open_checkpoint)

CSS = """
.gradio-container { max-width: 1360px !important; width: 100% !important; margin: 0 auto !important; }
.html-container { padding: 0 !important; }
#head h1 { font-size: 1.5rem; font-weight: 600; margin: 0.5rem 0 0.25rem; }
#head p, #empty p, #results .quiet { color: var(--body-text-color-subdued); }
#empty { display: grid; place-items: center; min-height: 240px; border: 1px dashed var(--border-color-primary); }
#messages p { margin: 0 0 0.25rem; padding: 0.5rem 0.75rem; border-left: 3px solid #0072b2; background: var(--background-fill-secondary); }
#messages p.error { border-color: #d55e00; }
#messages p, #results p { overflow-wrap: anywhere; }
#results > .column { flex: 1 1 calc(50% - 1rem) !important; min-width: min(320px, 100%) !important; gap: 0.5rem; }
#results img { max-height: 75vh; }
#results h2 { font-size: 1rem; font-weight: 600; margin: 0; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
#results p, #results table { font-size: 0.875rem; margin: 0; border: 0; }
#results table { width: 100%; border-collapse: collapse; margin-bottom: 0.5rem; }
#results tr { border: 0; }
#results td, #results th { border: 0; padding: 0.2rem 0.5rem 0.2rem 0; font-weight: 400; text-align: left; overflow-wrap: anywhere; }
#results td.bar { width: 45%; }
#results td.share { width: 4.5rem; padding-right: 0; text-align: right; font-variant-numeric: tabular-nums; }
#results i { display: block; height: 0.75rem; min-width: 2px; border-radius: 2px; }
#results th { position: relative; padding-left: 1.25rem; }
#results th i { position: absolute; left: 0; top: 0.45rem; width: 0.75rem; }
#results p.ends { display: flex; justify-content: space-between; gap: 1rem; margin: 0.25rem 0 0.5rem; overflow-wrap: normal; }
"""


@dataclass(frozen=True)
class DemoOptions:
    """Which checkpoints to look at, and where the page is served."""

    model: list[str] = field(default_factory=lambda: ["runs/finetune"], metadata={"help": "model folders or Hub names to choose from"})
    compare: str | None = field(default=None, metadata={"help": "folder or Hub name of a second one, shown beside the first"})
    examples: str | None = field(default=None, metadata={"help": f"folder of images; its first {FILES} are offered beside drawn scenes"})
    host: str = field(default="127.0.0.1", metadata={"help": "address to serve at; 0.0.0.0 = to all; others type Hub names only"})
    port: int = field(default=7860, metadata={"help": "port to serve at"})
    max_side: int = field(default=MAX_SIDE, metadata={"help": "longer side in px to which larger images are reduced"})

    def __post_init__(self):
        if not 0 < self.port < 65536 or self.max_side < 1:
            raise ValueError(f"--port is {self.port} and --max-side {self.max_side}; give a port from 1 to 65535 and at least 1 px")


@dataclass(frozen=True, eq=False)
class Visit:
    """What one visitor looks at.

    image: (H, W, 3) of the file at path, see `read_image`, None without one; note: what was done to it. names: of the two checkpoints, ""
    for none; views: of the image, by name. point: x, y in px of the image. errors: a sentence each.
    """

    path: str | None = None
    image: np.ndarray | None = None
    note: str | None = None
    names: tuple[str, ...] = ("", "")
    views: dict[str, View] = field(default_factory=dict)
    point: tuple[int, int] | None = None
    errors: tuple[str, ...] = ()

    def looks_at(self, path: str | None, names: Sequence[str | None], models: Sequence[str], local: bool, max_side: int) -> Visit:
        """The visit with this image and these checkpoints; a network runs only where it has not seen the image yet."""
        visit, errors, found, views = self, [], [], {}
        if path != self.path or self.image is None:
            visit = Visit(path)
            try:
                visit = visit if path is None else Visit(path, *read_image(path, max_side))
            except ValueError as error:
                errors.append(str(error))
        for name in names:
            try:
                name = checkpoint_name(name, models, local)
                network = opened(name, None if local or name in models else False) if name else None
                if network is not None and visit.image is not None:
                    views[name] = visit.views.get(name) or view_of(network, visit.image)
            except ValueError as error:
                errors.append(str(error))
            except Exception as error:  # a stranger's configuration can fail anywhere in its network
                logging.getLogger(__name__).exception("cannot show %s", name)
                errors.append(f"{name} cannot be shown ({type(error).__name__}, see the log of this page); give another checkpoint")
            found.append(name)
        return replace(visit, names=tuple(found), views=views, errors=tuple(dict.fromkeys(errors)))

    def points_at(self, x: float | None, y: float | None) -> Visit:
        """The visit with the point (x, y), moved into the image."""
        if self.image is None:
            return replace(self, errors=("the page has forgotten its image after an hour without a visit; give it again",))
        if x is None or y is None:
            return self
        height, width = self.image.shape[:2]
        return replace(self, point=(min(max(int(x), 0), width - 1), min(max(int(y), 0), height - 1)))


def checkpoint_name(typed: str | None, models: Sequence[str], local: bool) -> str:
    """What a visitor typed or chose, "" for nothing. Without local, all but the given models and Hub names raises ValueError."""
    name = (typed or "").strip()
    if not name or local or name in models:
        return name
    try:
        validate_repo_id(split_revision(name)[0])
        on_hub = "/" in name and not Path(name).exists()
    except HFValidationError:
        on_hub = False
    if not on_hub:
        raise ValueError(f"{name!r} is no name on the Hub; give OWNER/NAME of a model there")
    return name


def painted(visit: Visit, opacity: float) -> list:
    """New values of all that `build` shows, in its order."""
    lines = f'<p role="status">{escape(visit.note)}.</p>' if visit.note else ""
    lines += "".join(f'<p class="error" role="alert">Not shown: {escape(error)}.</p>' for error in visit.errors)
    views = [visit.views.get(name) for name in visit.names]
    segments = any(view is not None and view.mask is not None for view in views)
    parts = [visit, gr.HTML(lines, visible=bool(lines)), gr.HTML(visible=not any(views)), gr.Row(visible=any(views))]
    parts += visit.point or (None, None)
    for name, view in zip(visit.names, views):
        parts += [gr.Column(visible=view is not None and segments), gr.Column(visible=view is not None)]
        parts += ["", None, ""] * 2 if view is None else painted_view(name, view, visit, opacity)
    return parts


def painted_view(name: str, view: View, visit: Visit, opacity: float) -> list:
    """Heading, picture and legend of the segmentation, then of the similarity."""
    headings = [f'<h2 title="{escape(name)}">{escape(name)}</h2><p class="quiet">{kind}</p>' for kind in ("Segmentation", "Similarity")]
    if view.mask is None:
        segmentation, legend = gr.Image(None, visible=False), "<p>None: a pre-training checkpoint has no classifier yet.</p>"
    else:
        said = ", ".join(f"{view.classes[i]} {share:.0f} %" for i, share in view.shares()[:5])
        picture, legend = segmentation_picture(visit.image, view, opacity, visit.point), shares_table(view)
        segmentation = gr.Image(picture, visible=True, alt_text=f"Segmentation: {said}")
    said = "The image; click a pixel" if visit.point is None else "Similarity of every pixel to the one at {}, {}".format(*visit.point)
    similarity = gr.Image(similarity_picture(visit.image, view, opacity, visit.point), alt_text=said)
    return [headings[0], segmentation, legend, headings[1], similarity, scale(view, visit.point)]


def shares_table(view: View) -> str:
    """The legend: colour, class and share of the pixels, the largest first; classes without a pixel in a line below."""
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in class_colours(view.classes)]
    rows, absent = "", [view.classes[i] for i, share in view.shares() if not share]
    for i, share in view.shares():
        if share:
            name, paint = f'<i style="background:{colours[i]}"></i>{escape(view.classes[i])}', f"background:{colours[i]};width:{share:.2f}%"
            figure = f"{share:.1f} %" if share >= 0.05 else "&lt; 0.1 %"
            rows += f'<tr><th scope="row">{name}</th><td class="bar"><i style="{paint}"></i></td><td class="share">{figure}</td></tr>'
    line = f'<p class="quiet">Not found: {escape(", ".join(absent))}.</p>' if absent else ""
    return f'<table aria-label="Share of the pixels of each class">{rows}</table>{line}'


def scale(view: View, point: tuple[int, int] | None) -> str:
    """What the colours of the similarity stand for, what it is taken of, and by which network; before a click, what to do."""
    bar = "<p>Click a pixel, in any picture.</p>"
    if point is not None:
        cosine = view.similarity(point)
        stops = ", ".join("rgb({:.0f} {:.0f} {:.0f})".format(*colour) for colour in heat_colours(np.linspace(0, 1, 16)))
        ends = (f"{cosine.min():.2f}", "cosine similarity to the pixel at {}, {}".format(*point), f"{cosine.max():.2f}")
        spans = "".join(f"<span>{end}</span>" for end in ends)
        bar = f'<i style="background:linear-gradient(to right, {stops})"></i><p class="ends">{spans}</p>'
    return f'{bar}<p class="quiet">Embeddings: {escape(view.source)}. Network: {escape(view.about)}.</p>'


def _image_files(folder: Path) -> list[str]:
    """At most FILES images of a folder, without masks."""
    return [str(path) for path in separate(find_images(folder).images, folder).images[:FILES]]


def build(
    models: Sequence[str], compare: str | None = None, examples: str | None = None, local: bool = True, max_side: int = MAX_SIDE
) -> gr.Blocks:
    """The page. models: folders or Hub names to choose from, the first of them shown; compare: one shown beside it.

    examples: a folder of images, offered beside drawn scenes. local: may a visitor type folders of this machine too, or only Hub names?
    """
    choices = list(dict.fromkeys([*models, *([compare] if compare else [])]))
    drawn = [Image.fromarray(draw_scene(1, "test", i, 192, 256)[0]) for i in range(SCENES)]
    files = _image_files(Path(examples)) if examples else []
    hint = "A folder, or a name on the Hub." if local else "Type the name of any mscl_hf model on the Hub."

    def look(path, first, second, opacity, visit):
        return painted(visit.looks_at(path, (first, second), choices, local, max_side), opacity)

    def point(x, y, opacity, visit):
        return painted(visit.points_at(x, y), opacity)

    def click(event: gr.SelectData, opacity, visit):
        times = 1 if visit.image is None else enlargement(visit.image.shape[:2])
        return point(*(at // times for at in event.index), opacity, visit)

    with gr.Blocks(title="mscl_hf: segmentation and similarity", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        visit = gr.State(Visit(), time_to_live=3600)
        gr.HTML(HEAD, elem_id="head")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image", height=240, buttons=[])
                # Its own way opens the file, and what fails there would not reach `read_image`.
                image.preprocess = lambda given: given and given.path
                gr.Examples([[given] for given in (*files, *drawn)], image, label="Examples", examples_per_page=12)
                first = gr.Dropdown(choices, value=models[0] if models else None, allow_custom_value=True, label="Checkpoint", info=hint)
                others = [("none", ""), *((choice, choice) for choice in choices)]
                second = gr.Dropdown(others, value=compare or "", allow_custom_value=True, label="Compare with")
            with gr.Column(scale=3, min_width=320):
                messages = gr.HTML(elem_id="messages", visible=False)
                empty = gr.HTML('<p class="quiet">Segmentation and similarity appear here.</p>', elem_id="empty")
                with gr.Row(visible=False) as controls:
                    opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the colours", buttons=[], scale=2, min_width=280)
                    x = gr.Number(label="Pixel, x", precision=0, minimum=0, min_width=100)
                    y = gr.Number(label="Pixel, y", precision=0, minimum=0, min_width=100)
                with gr.Row(elem_id="results"):
                    columns = [_column(kind) for kind in ("Segmentation", "Similarity") for _ in range(2)]
        panels = [(columns[i], columns[i + 2]) for i in range(2)]
        shown = [visit, messages, empty, controls, x, y]
        for (left, *segmentation), (right, *similarity) in panels:
            shown += [left, right, *segmentation, *similarity]
        pictures = [column[2] for column in columns]
        # One at a time: each takes the visit that the one before has left; and the last of many is never dropped.
        turn = {"concurrency_limit": 1, "concurrency_id": "visit", "trigger_mode": "always_last"}
        gr.on([page.load, image.change, first.change, second.change], look, [image, first, second, opacity, visit], shown,
              show_progress="minimal", show_progress_on=[empty, *pictures], api_name="look", **turn)  # fmt: skip
        quiet = {"show_progress": "hidden", **turn}
        opacity.input(lambda opacity, visit: painted(visit, opacity), [opacity, visit], shown, api_name="opacity", **quiet)
        gr.on([x.submit, y.submit], point, [x, y, opacity, visit], shown, api_name="point", **quiet)
        gr.on([picture.select for picture in pictures], click, [opacity, visit], shown, api_visibility="private", **quiet)
    return page


def _column(kind: str) -> tuple:
    """Column, heading, picture, legend."""
    with gr.Column(visible=False, min_width=320) as column:
        heading = gr.HTML()
        picture = gr.Image(format="png", interactive=False, label=kind, show_label=False, buttons=["download", "fullscreen"])
        return column, heading, picture, gr.HTML()


def launch(page: gr.Blocks, **options) -> tuple:
    """Serve the page by `gr.Blocks.launch`, with its options and its answer. Nothing is fetched from elsewhere, and nothing reported."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", **fonts)
    theme.set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")  # contrast of 4.5 and more
    return page.launch(
        theme=theme, css=CSS, footer_links=["api", "settings"], ssr_mode=False, run_history=False, max_file_size="64mb",
        state_session_capacity=50, **options,
    )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address: a name may lead anywhere, but for localhost."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@command
def main() -> None:
    (run,) = parse((DemoOptions,), __doc__.splitlines()[0])
    if gr is None:
        raise ValueError("the page needs gradio, which is not installed; pip install gradio")
    for name in (*run.model, *([run.compare] if run.compare else [])):
        opened(name, None)
    page = build(run.model, run.compare, run.examples, local=is_loopback(run.host), max_side=run.max_side)
    launch(page, server_name=run.host, server_port=run.port)


if __name__ == "__main__":
    main()
