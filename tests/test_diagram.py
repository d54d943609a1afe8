"""The architecture's drawing: what is lit is in colour, the rest is pale, and the output says which."""

import io
import re
import shutil
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from t2v_kit import UserError, show_diagram
from t2v_kit.view.diagram import PARTS, diagram

SVG = "{http://www.w3.org/2000/svg}"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def own_colour(svg: str, part: str) -> str:
    """The colour in which a part's boxes are lit."""
    return re.search(rf"\.{part}\.(?:box|frame) {{ fill: (#\w+); stroke: (#\w+)", svg)[2]


@pytest.mark.parametrize("small, size", [(True, (900, 130)), (False, (1200, 990))])
def test_it_is_one_whole_drawing(small, size):
    """Well-formed, of its size, with every part, nothing from elsewhere, and nothing that runs."""
    svg = diagram(None, small)
    root = ElementTree.fromstring(svg)
    assert (root.get("width"), root.get("height")) == tuple(map(str, size))
    classes = " ".join(element.get("class", "") for element in root.iter()).split()
    assert set(PARTS) <= set(classes)
    links = [element.get("href") for element in root.iter(f"{SVG}image")]
    assert links and all(link.startswith("data:image/png;base64,") for link in links)
    assert not list(root.iter(f"{SVG}script")) and len(svg) < 25_000
    for text in root.iter(f"{SVG}text"):
        assert 0 < float(text.get("x")) < size[0] and 0 < float(text.get("y")) < size[1]


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("lit", [None, *PARTS])
def test_the_class_of_the_root_is_what_is_lit(lit, small):
    root = ElementTree.fromstring(diagram(lit, small))
    assert root.get("class").split() == ["t2v-architecture", lit or "all"]
    style = root.find(f"{SVG}style").text
    for part in PARTS:  # a part has a colour, and a rule that makes it pale where another one is lit
        assert re.search(rf"architecture \.{part}\.\w+ {{ fill: #", style)
        assert re.search(rf":not\(\.all\):not\(\.{part}\) \.{part}\.\w+ {{ fill: #", style)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to draw with")
@pytest.mark.parametrize("lit", [None, "noise", "transformer", "vae"])
def test_a_browser_draws_only_the_lit_part_in_colour(lit, tmp_path):
    svg = diagram(lit)
    (tmp_path / "a.svg").write_text(svg)
    (tmp_path / "a.html").write_text("<body style='margin:0'><img src='a.svg'>")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,400", f"--screenshot={tmp_path / 'a.png'}"]
    subprocess.run([CHROMIUM, *flags, (tmp_path / "a.html").as_uri()], check=True, capture_output=True, timeout=120)
    picture = np.asarray(Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).convert("RGB"))
    for part in PARTS:
        colour = [int(own_colour(svg, part)[at : at + 2], 16) for at in (1, 3, 5)]
        share = (picture[:130] == colour).all(axis=2).mean()
        assert (share > 0.0005) == (lit in (None, part)), part


def test_it_is_shown_with_words(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    show_diagram("vae")
    show_diagram()
    assert [data["image/svg+xml"] for data in shown] == [diagram("vae"), diagram()]
    assert "Lit: vae, latents become frames" in shown[0]["text/plain"] and "Lit" not in shown[1]["text/plain"]


def test_an_unknown_part_is_told_the_nearest():
    with pytest.raises(UserError, match=r"lit='transformers': .*did you mean 'transformer'\?"):
        show_diagram("transformers")
    with pytest.raises(UserError, match=r"lit=7: .*one of prompt, noise"):
        diagram(7)
