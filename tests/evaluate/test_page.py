"""The page of predictions: what it says, hostile names, and how a browser shows it."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from deeplab_jax.data.images import read_image, read_mask
from deeplab_jax.evaluate.page import Page, measures
from deeplab_jax.labels import LabelSet, colormap
from tests.support.tiny import MadeUp

SOURCE = MadeUp(((40, 50), (33, 60), (20, 20)))
NAMES = ("道路", "سماء", "<b>car</b>", "</script><script>document.title='broken'</script>")
LABELS = LabelSet(NAMES, SOURCE.labels.palette)
HOSTILE = "sub/\"><img src=x onerror=document.title='broken'> #1%?"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@pytest.fixture
def page(tmp_path):
    """A page of three images: a half right one, one all wrong, one all right."""
    made = Page(tmp_path / "index.html", LABELS, title="A <i>title</i>")
    truth = np.zeros((40, 50), np.uint8)
    truth[:, 25:], truth[:5] = 1, 255
    made.add("half", SOURCE[0]["image"], np.zeros((40, 50), np.uint8), truth)
    made.add(HOSTILE, SOURCE[1]["image"], np.full((33, 60), 2), np.full((33, 60), 3, np.uint8))
    made.add("right", SOURCE[2]["image"], np.full((20, 20), 3), np.full((20, 20), 3, np.uint8))
    return made.write()


def data_of(page):
    text = page.read_text("utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


THREE = LabelSet(("a", "b", "c"), colormap(3))


def test_measures_by_hand() -> None:
    """Of 8 pixels one is not labelled. Class 0: 3 right of a union of 5. Class 1: 2 right of 4."""
    truth = np.array([[0, 0, 0, 1], [1, 1, 0, 255]])
    classes = np.array([[0, 0, 0, 1], [1, 0, 1, 0]])
    assert measures(classes, truth, THREE) == {"miou": 0.55, "rows": [[0, 0.625, 0.6], [1, 0.375, 0.5]]}
    assert measures(classes, None, THREE) == {"miou": None, "rows": [[0, 0.625, None], [1, 0.375, None]]}


def test_the_worst_comes_first_and_pictures_are_there(page) -> None:
    data = data_of(page)
    assert [entry["miou"] for entry in data["entries"]] == [0.0, 0.25, 1.0]
    assert [entry["key"] for entry in data["entries"]] == [HOSTILE, "half", "right"]
    assert [each["name"] for each in data["classes"]] == list(NAMES)
    folder = page.parent / "index_files"
    assert read_image(folder / "image" / f"{HOSTILE}.jpg").shape == (33, 60, 3)
    assert (read_mask(folder / "prediction" / "half.png") == 0).all()
    assert (read_mask(folder / "truth" / "half.png")[:5] == 255).all()


def test_names_are_text_and_nothing_comes_from_a_network(page) -> None:
    text = page.read_text("utf-8")
    assert "<b>car" not in text and "<i>title" not in text and "<img src=x" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert not re.search(r"https?:|//[a-z]|@import", text.replace("// ", ""))
    for address in re.findall(r'src="([^"]+)"', text):
        assert re.fullmatch(r"index_files/[\w./%-]+", address)


def test_large_pictures_are_shown_smaller_and_names_outside_utf_8_do_no_harm(tmp_path) -> None:
    page = Page(tmp_path / "index.html", LABELS, title="large")
    page.add(os.fsdecode(b"caf\xe9"), np.zeros((30, 3000, 3), np.uint8), np.ones((30, 3000), np.uint8))
    (entry,) = data_of(page.write())["entries"]
    assert entry["name"] == "caf\N{REPLACEMENT CHARACTER}" and entry["image"] == "index_files/image/caf%E9.jpg"
    assert read_image(tmp_path / "index_files" / "image" / os.fsdecode(b"caf\xe9.jpg")).shape == (10, 1024, 3)


def browse(page, *, width, height, at="", script=""):
    """The document that a browser makes of the page, after a script."""
    file = page
    if script:
        file = page.with_name("scripted.html")
        file.write_text(page.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"),
        *(f"--window-size={width},{height}", "--virtual-time-budget=2000", "--dump-dom", file.as_uri() + at),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome here")
@pytest.mark.parametrize("width", [500, 1280])  # Chromium has no narrower windows.
def test_a_browser_shows_it(page, width) -> None:
    script = """
    const slide = document.getElementById("slide");
    document.querySelectorAll("#pairs button")[2].click();
    slide.value = 25; slide.dispatchEvent(new Event("input"));
    document.getElementById("viewer").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
    const search = document.getElementById("search");
    search.value = "RIGHT"; search.dispatchEvent(new Event("input"));
    addEventListener("load", () => {
      const pictures = ["under", "over"].map((id) => document.getElementById(id));
      document.body.dataset.found = [
        document.title, document.getElementById("name").textContent, document.getElementById("viewer").open,
        document.getElementById("stage").style.getPropertyValue("--at"), document.getElementById("count").textContent,
        pictures.every((picture) => picture.complete && picture.naturalWidth === 50),
        document.documentElement.scrollWidth <= innerWidth,
      ].join("|");
    });
    """
    text = browse(page, width=width, height=800, at="#1", script=script)
    found = re.search(r'data-found="([^"]*)"', text)[1]
    assert found == "A &lt;i&gt;title&lt;/i&gt;|half  ·  mIoU 25.0%|true|25%|1 of 3|true|true"


def test_images_of_many_bands_have_a_page(tmp_path) -> None:
    """Larger than a small picture, because OpenCV averages areas of at most four bands."""
    image = np.zeros((260, 300, 5), np.uint8)
    page = Page(tmp_path / "index.html", THREE, title="bands")
    page.add("a", image, np.zeros((260, 300), np.uint8))
    assert read_image(tmp_path / "index_files" / "thumb" / "a.jpg").shape == (208, 240, 3)
