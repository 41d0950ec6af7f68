"""The demo in a browser without a window: `mscl-demo` in another process, at the width of a desktop and of a phone.

Pictures of the page are kept in $MSCL_HF_ARTEFACTS, or in pytest's folder for temporary files.
"""

import base64
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_demo import tiny  # also skips this file without gradio

from mscl_hf.data.synthetic import draw_scene
from mscl_hf.models.modeling_mscl import MsclForPreTraining

playwright = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser here: none of {', '.join(BROWSERS)}")

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30_000  # ms


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The checkpoints `tuned` and `pretrained`, an image to upload, and a folder of examples."""
    folder = tmp_path_factory.mktemp("demo")
    image = draw_scene(0, "val", 1, 96, 128)[0]
    tiny(image=image).save_pretrained(folder / "tuned")
    tiny(MsclForPreTraining).save_pretrained(folder / "pretrained")
    Image.fromarray(image).save(folder / "scene.png")
    (folder / "examples").mkdir()
    Image.fromarray(draw_scene(0, "val", 2, 96, 128)[0]).save(folder / "examples" / "one.jpg")
    return folder


@pytest.fixture(scope="module")
def url(folder) -> str:
    """Where the command serves the page; the process ends with the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model", "tuned", "pretrained", "--examples", "examples", "--port", str(port)]
    command = [sys.executable, "-m", "mscl_hf.demo.command", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GRADIO_TEMP_DIR": str(folder / "uploads")}
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log.txt").read_text()
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


class Visitor:
    """A page in a new window, and the actions of a visitor."""

    def __init__(self, browser, url: str, folder: Path, pictures: Path, width: int, height: int, dark: bool = False):
        self.folder, self.pictures, self.foreign = folder, pictures, []
        window = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        self.page = window.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.foreign.append(request.url) if not re.match(rf"{url}|data:|blob:", request.url) else 0)
        self.page.goto(url)
        self.page.wait_for_selector("#empty")

    def upload(self) -> None:
        self.page.set_input_files("input[type=file]", self.folder / "scene.png")
        self.page.wait_for_selector("#results table, #results .quiet")

    def choose(self, field: str, name: str) -> None:
        self.page.get_by_label(field, exact=True).click()
        self.page.get_by_role("option", name=name, exact=True).click()

    def type_name(self, field: str, name: str) -> None:
        box = self.page.get_by_label(field, exact=True)
        box.fill(name)
        box.press("Enter")

    def image(self, title: str, number: int = 0):
        """Return the visible picture of this number with the title "Segmentation" or "Similarity"."""
        return self.page.locator("#results > .column:visible").filter(has=self.page.locator("p", has_text=re.compile(f"^{title}$"))).nth(
            number).locator("img")  # fmt: skip

    def pixels(self, title: str, number: int = 0) -> np.ndarray:
        """(H, W, 3) of a picture, as the browser has decoded it."""
        data = self.image(title, number).evaluate("""async image => {
            await image.decode();
            const canvas = document.createElement('canvas');
            canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
            const context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
            let text = '';
            for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
            return [canvas.height, canvas.width, btoa(text)];
        }""")
        return np.frombuffer(base64.b64decode(data[2]), np.uint8).reshape(data[0], data[1], 4)[:, :, :3].astype(int)

    def click(self, title: str, x: int, y: int, number: int = 0) -> None:
        """On pixel (x, y) of the image of 128 x 96, in a picture of it; waits until the page has answered for this very pixel."""
        image = self.image(title, number)
        image.scroll_into_view_if_needed()
        box = image.bounding_box()
        image.click(position={"x": (x + 0.5) / 128 * box["width"], "y": (y + 0.5) / 96 * box["height"]})
        self.page.locator("#results .ends", has_text=f"at {x}, {y}").last.wait_for()

    def overflows(self) -> int:
        return self.page.evaluate("document.scrollingElement.scrollWidth - innerWidth")

    def keep(self, name: str) -> None:
        self.page.screenshot(path=self.pictures / f"{name}.png", full_page=True)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = Path(os.environ.get("MSCL_HF_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shares(page) -> list[float]:
    return [float(text.strip(" %")) for text in page.locator("#results td.share").all_inner_texts()]


def test_a_visit_on_a_desktop(browser, url, folder, pictures):
    """Upload, segmentation, legend, opacity, two clicks, two checkpoints, a wrong name: all in one page that fetches nothing elsewhere."""
    visitor = Visitor(browser, url, folder, pictures, 1280, 900)
    page = visitor.page
    visitor.upload()
    assert len(shares(page)) > 1 and sum(shares(page)) == pytest.approx(100, abs=0.2)
    assert shares(page) == sorted(shares(page), reverse=True)
    assert page.locator("#results th").count() == len(shares(page)) and page.locator("#results th i").first.is_visible()
    assert "Segmentation: " in visitor.image("Segmentation").get_attribute("alt")
    visitor.keep("desktop_segmentation")

    before = visitor.pixels("Segmentation")
    image = np.asarray(Image.open(folder / "scene.png").resize(before.shape[1::-1], Image.Resampling.BICUBIC)).astype(int)
    page.get_by_role("slider").focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    deadline = time.monotonic() + PATIENCE / 1000
    while np.abs(visitor.pixels("Segmentation") - image).mean() > np.abs(before - image).mean() - 5:  # 0.7 -> 0.3, a picture a press
        assert time.monotonic() < deadline
        page.wait_for_timeout(100)

    plain = visitor.pixels("Similarity")
    assert np.abs(plain - image).mean() < 1  # no pixel is chosen
    visitor.click("Segmentation", 38, 76)
    first = visitor.pixels("Similarity")
    assert np.abs(first - plain).mean() > 5
    assert float(page.locator("#results .ends span").first.inner_text()) < 1
    assert page.locator("#results .ends span").last.inner_text() == "1.00"
    visitor.click("Similarity", 102, 19)
    assert np.abs(visitor.pixels("Similarity") - first).mean() > 1
    visitor.keep("desktop_similarity")

    visitor.choose("Compare with", "pretrained")
    visitor.image("Similarity", 1).wait_for()
    assert page.locator("#results .ends", has_text="at 102, 19").count() == 2  # the same click
    assert page.locator("#results .column:visible", has_text="a pre-training checkpoint has no classifier").count() == 1
    left, right = (visitor.image("Similarity", number).bounding_box() for number in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    assert np.abs(visitor.pixels("Similarity", 0) - visitor.pixels("Similarity", 1)).mean() > 1
    visitor.keep("desktop_comparison")

    visitor.type_name("Checkpoint", "no/such/checkpoint")
    page.locator("#messages .error", has_text="no/such/checkpoint").wait_for()
    assert "Traceback" not in page.content() and visitor.image("Similarity").count() == 1
    visitor.keep("desktop_wrong_name")
    assert visitor.overflows() <= 0 and visitor.foreign == []


def test_a_visit_on_a_phone(browser, url, folder, pictures):
    """At 390 px nothing is wider than the screen, columns are below each other, and a touch selects the pixel at its position."""
    visitor = Visitor(browser, url, folder, pictures, 390, 844)
    assert visitor.overflows() <= 0
    visitor.upload()
    visitor.click("Segmentation", 64, 48)
    visitor.keep("phone_similarity")
    visitor.choose("Compare with", "tuned")
    visitor.image("Similarity", 1).wait_for()
    boxes = [visitor.image(title, number).bounding_box() for title in ("Segmentation", "Similarity") for number in (0, 1)]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["width"] > 300 for box in boxes)
    assert all(above["y"] + above["height"] <= below["y"] for above, below in zip(boxes, boxes[1:]))
    visitor.type_name("Checkpoint", "a_very_long_name_of_a_folder/" * 6)
    visitor.page.locator("#messages .error").wait_for()
    assert visitor.overflows() <= 0 and visitor.foreign == []
    visitor.keep("phone_wrong_name")


def test_an_example_in_the_dark(browser, url, folder, pictures):
    """An example of the folder is shown by a click on it; in a dark theme text stands out from its ground; a pixel can be typed."""
    visitor = Visitor(browser, url, folder, pictures, 1280, 900, dark=True)
    page = visitor.page
    page.locator(".gallery-item").first.click()
    page.locator("#results table").wait_for()
    page.get_by_label("Pixel, x").fill("20")
    page.get_by_label("Pixel, y").fill("70")
    page.get_by_label("Pixel, y").press("Enter")
    page.locator("#results .ends", has_text="at 20, 70").wait_for()
    contrasts = page.evaluate("""() => {
        const light = color => color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = light(getComputedStyle(document.body).backgroundColor);
        return [...document.querySelectorAll('h1, #head p, #results h2, #results p, #results th, #results td.share')].map(element => {
            const text = light(getComputedStyle(element).color);
            return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
        });
    }""")
    assert len(contrasts) > 8 and min(contrasts) >= 4.5
    visitor.keep("dark_example")
    assert visitor.foreign == []
