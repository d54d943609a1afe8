"""The documentation builds offline without a warning, and its pages can be read in a browser."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_browser import CHROMIUM, FLAGS, playwright  # noqa: F401  (a fixture)

import t2v_kit

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` builds it; fails on a warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-c", "docs", "-d", str(folder / "doctrees"), ".", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_notebook_answer_and_public_name_has_its_place(site):
    for notebook in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/solutions/*.ipynb")]:
        page = (site / notebook.relative_to(ROOT)).with_suffix(".html").read_text("utf-8")
        assert "cell_input" in page and ("tag_hide-cell" in page) == (notebook.parent.name == "solutions")
    api = (site / "docs/api.html").read_text("utf-8")
    missing = [name for name in t2v_kit.__all__ if f'id="t2v_kit.{name}"' not in api]
    assert missing == ["toyland"]  # a module, with a world of its own


def test_pages_open_in_a_browser(site, playwright):  # noqa: F811
    """The first page, a notebook with its pictures, the API: no errors, nothing fetched, a light and a dark theme."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        errors, fetched = [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        for name, heading in (
            ("docs/index", "t2v-kit"),
            ("notebooks/03_noisy_latents", "03 · Noisy latents"),
            ("docs/api", "The Python package"),
        ):
            page.goto((site / f"{name}.html").as_uri())
            assert page.inner_text("h1").startswith(heading)
            broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
            assert broken == []
            for theme in ("light", "dark"):
                page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
                if pictures := os.environ.get("T2V_SCREENSHOTS"):
                    page.screenshot(path=f"{pictures}/{Path(name).name}-{theme}.png")
        browser.close()
    assert not errors and not [url for url in fetched if not url.startswith(("file:", "data:"))]
