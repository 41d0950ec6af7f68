"""HTML and CSS of the page. Names of classes and checkpoints are escaped: they can come from untrusted checkpoints."""

from html import escape

import numpy as np

from ..visual.palette import class_colors
from .similarity import View, heat_colors
from .visit import Visit

HEAD = """<h1>Segmentation and similarity</h1>
<p>Upload an image or choose an example. Then click a pixel to see which other pixels have similar features.</p>"""
EMPTY = '<p class="quiet">The results appear here.</p>'

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


def messages(visit: Visit) -> str:
    """Return a paragraph for the note and one for each error; "" without any."""
    note = f'<p role="status">{escape(visit.note)}.</p>' if visit.note else ""
    return note + "".join(f'<p class="error" role="alert">Error: {escape(error.rstrip("."))}.</p>' for error in visit.errors)


def heading(name: str, title: str) -> str:
    """Return the name of a checkpoint, and the title of what is shown of it."""
    return f'<h2 title="{escape(name)}">{escape(name)}</h2><p class="quiet">{title}</p>'


def shares_table(view: View) -> str:
    """Return the legend: color, class and share of the pixels, the largest first; classes without a pixel in a line below."""
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in class_colors(view.classes)]
    rows, absent = "", [view.classes[i] for i, share in view.shares() if not share]
    for i, share in view.shares():
        if share:
            name, style = f'<i style="background:{colors[i]}"></i>{escape(view.classes[i])}', f"background:{colors[i]};width:{share:.2f}%"
            percent = f"{share:.1f} %" if share >= 0.05 else "&lt; 0.1 %"
            rows += f'<tr><th scope="row">{name}</th><td class="bar"><i style="{style}"></i></td><td class="share">{percent}</td></tr>'
    line = f'<p class="quiet">Not found: {escape(", ".join(absent))}.</p>' if absent else ""
    return f'<table aria-label="Share of the pixels of each class">{rows}</table>{line}'


def scale(view: View, point: tuple[int, int] | None) -> str:
    """Return the color bar of the similarity, or an instruction without a point, and what is compared."""
    bar = "<p>Click a pixel in any picture.</p>"
    if point is not None:
        cosine = view.similarity(point)
        stops = ", ".join("rgb({:.0f} {:.0f} {:.0f})".format(*color) for color in heat_colors(np.linspace(0, 1, 16)))
        ends = (f"{cosine.min():.2f}", "cosine similarity to the pixel at {}, {}".format(*point), f"{cosine.max():.2f}")
        spans = "".join(f"<span>{end}</span>" for end in ends)
        bar = f'<i style="background:linear-gradient(to right, {stops})"></i><p class="ends">{spans}</p>'
    return f'{bar}<p class="quiet">Features: {escape(view.source)}. Network: {escape(view.about)}.</p>'
