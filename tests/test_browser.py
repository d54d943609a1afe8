"""The playground in a real browser: headless Chromium on a JupyterLab server of its own."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = "09_playground.ipynb"
PROMPT = "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street."
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
# Through the application: a menu can be clicked before the kernel's session is ready, and then does nothing.
RUN_ALL = """async file => {
    const app = window.jupyterapp;
    await app.restored;
    let panel;
    while (!panel) {
        panel = [...app.shell.widgets('main')].find(w => w.context && w.context.path.endsWith(file));
        await new Promise(done => setTimeout(done, 50));
    }
    await panel.context.ready;
    await panel.sessionContext.ready;
    app.shell.activateById(panel.id);
    await app.commands.execute('notebook:run-all-cells');
}"""
NASTY = 'A red car. <img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
# What the preview showed, even where it changed faster than a test can look.
WATCH = """() => {
    window.seen = new Set();
    setInterval(() => document.querySelectorAll('img.t2v-preview[src]').forEach(i => window.seen.add(i.src)), 10);
}"""
# All at one moment: while the notebook comes to rest in its new size, they move together.
NARROW = """parts => {
    const [prompt, button, ...below] = parts.map(css => document.querySelector(css).getBoundingClientRect().y);
    const sorted = below.every((y, i) => i == 0 || below[i - 1] <= y);
    return prompt < button && button < prompt + 300 && button < below[0] && below[0] < button + 200 && sorted;
}"""
EXECUTE = """async file => {
    const panel = [...window.jupyterapp.shell.widgets('main')].find(w => w.context && w.context.path.endsWith(file));
    const future = panel.sessionContext.session.kernel.requestExecute({code: 'made_meanwhile = 6 * 7'});
    return (await future.done).content.status;
}"""


@pytest.fixture(scope="module")
def playwright():
    """Skips, and says so, where there is no browser to test with."""
    if CHROMIUM is None:
        pytest.skip("the browser test did not run: no Chromium found (apt-get install chromium)")
    return pytest.importorskip("playwright.sync_api", reason="the browser test did not run: pip install playwright")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab server whose folder holds a copy of the notebook, and nothing of the user's."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, folder / "notebooks")
    (folder / "assets").symlink_to(ROOT / "assets")
    settings = folder / "settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    whole = folder / "settings/@jupyterlab/notebook-extension"  # cells out of sight stay in the page
    whole.mkdir()
    (whole / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    own = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    env = os.environ | {f"JUPYTER_{name}_DIR": str(folder / path) for name, path in own.items()}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces")}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [
        *(sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
        *(f"--port={address.rpartition(':')[2]}", "--ServerApp.port_retries=0", "--ServerApp.token=test"),
        *(f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"),
        "--LabApp.extension_manager=readonly",
    ]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    try:
        _until_it_answers(address, folder / "log")
        yield address
    finally:
        _ask(f"{address}/api/shutdown", "POST")
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture
def page(playwright, lab):
    """The notebook, opened and run from the first to the last cell."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1500})
        page.set_default_timeout(120_000)  # of a machine that does other things as well
        page.goto(f"{lab}/lab/workspaces/auto-test/tree/notebooks/{NOTEBOOK}?token=test&reset")
        page.wait_for_function("window.jupyterapp")
        page.wait_for_selector("#jupyterlab-splash", state="detached")
        page.evaluate(RUN_ALL, NOTEBOOK)
        yield page
        browser.close()


def _ask(address: str, method: str = "GET") -> bytes:
    request = urllib.request.Request(address, method=method, headers={"Authorization": "token test"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read()


def _until_it_answers(address: str, log: Path) -> None:
    for _ in range(300):
        try:
            _ask(f"{address}/api/status")
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")


def turn(page, css: str, value: str) -> None:
    """Type a number beside a slider."""
    page.fill(f".{css} input[type=number]", value)
    page.keyboard.press("Enter")


def status(page, words: str) -> None:
    page.wait_for_selector(f".t2v-status >> text={words}")


def within_reach(page) -> None:
    """In a narrow window, too, the button is in sight of the prompt, and the video above all other settings."""
    size = page.viewport_size
    page.set_viewport_size({"width": 900, "height": 900})
    parts = (".t2v-prompt", ".t2v-generate", ".t2v-film", ".t2v-preset", ".t2v-model", ".t2v-queue-add")
    page.wait_for_function(NARROW, arg=parts)
    page.set_viewport_size(size)


def pick(page) -> None:
    """The two newest runs for comparison; the second time, neither of them."""
    for number in (0, 1):
        page.click(f".t2v-pick >> nth={number}")


def playing(page, css: str) -> int:
    """The width of the video, once all of it can be played."""
    page.wait_for_function(f"document.querySelector('video.{css}')?.readyState == 4")
    return page.evaluate(f"document.querySelector('video.{css}').videoWidth")


def from_a_video(page) -> None:
    """The video of the last run, half of it made anew; a file that is none is said, and nothing begins."""
    said = page.inner_text(".t2v-status")
    video = re.search(r"runs/playground/[\w-]+", said)[0] + "/video.mp4"
    page.click("text=From a video or picture")
    turn(page, "t2v-num-frames", "5")
    turn(page, "t2v-strength", "0.5")
    for path, answer in (("nowhere.mp4", "cannot be read"), (video, "Done in")):
        page.fill(".t2v-video input", path)
        page.keyboard.press("Tab")
        page.wait_for_selector(".t2v-generate:enabled")
        page.click(".t2v-generate")
        status(page, answer)
    page.click(".t2v-show-code")
    for part in (video, "strength=0.5", "continue"):
        page.wait_for_function("part => document.querySelector('.t2v-code textarea').value.includes(part)", arg=part)
    page.click(".t2v-show-code")
    page.fill(".t2v-video input", "")
    page.keyboard.press("Tab")


def test_a_person_plays(page):
    """Type, turn, watch, stop, resume, compare, get something wrong, queue: what the playground is for."""
    page.evaluate(WATCH)
    page.wait_for_selector(".t2v-generate:enabled")  # it opens ready
    assert page.locator(".t2v-side .t2v-error").count() == 0
    within_reach(page)
    page.fill(".t2v-prompt textarea", PROMPT)
    turn(page, "t2v-num-inference-steps", "12")
    turn(page, "t2v-guidance-scale", "4.5")
    page.select_option(".t2v-upscaler select", "pocket")
    page.click(".t2v-generate")
    page.wait_for_selector("img.t2v-preview:visible")
    assert page.evaluate(EXECUTE, NOTEBOOK) == "ok" and page.is_enabled(".t2v-stop"), "the kernel answers meanwhile"
    status(page, "Done in")
    assert page.evaluate("window.seen.size") >= 3, "the preview changed while the video formed"
    assert playing(page, "t2v-video") == 4 * 192
    page.click(".t2v-choice button:has-text('Video')")
    page.wait_for_function("document.querySelector('video.t2v-video').videoWidth == 192")
    page.click(".t2v-choice button:has-text('Enlarged')")

    if pictures := os.environ.get("T2V_SCREENSHOTS"):  # a folder for what README shows
        page.set_viewport_size({"width": 1600, "height": 2000})  # a picture of what is out of sight has bars across it
        pick(page)
        playing(page, "t2v-compare-video")
        page.locator(".t2v").screenshot(path=f"{pictures}/playground.png")
        pick(page)

    page.fill(".t2v-prompt textarea", NASTY)
    turn(page, "t2v-num-inference-steps", "40")
    page.select_option(".t2v-upscaler select", "none")
    page.focus(".t2v-generate")
    page.keyboard.press("Enter")
    page.wait_for_selector("img.t2v-preview:visible")
    page.click(".t2v-stop")
    status(page, "Stopped in denoise")
    page.click(".t2v-resume")
    status(page, "Done in")
    assert page.evaluate("window.pwned") is None, "the prompt is text, never markup"

    pick(page)
    page.wait_for_selector(".t2v-differences td:has-text('40')")
    assert playing(page, "t2v-compare-video") > 2 * 192
    assert "dB between the two" in page.inner_text(".t2v-differences")
    assert {"num_inference_steps", "12", "40"} <= set(page.inner_text(".t2v-differences").split())
    page.click(".t2v-view button:has-text('Wipe')")
    page.wait_for_function("document.querySelector('img.t2v-compare-picture').naturalWidth > 0")
    page.click(".t2v-view button:has-text('In step')")

    turn(page, "t2v-num-frames", "32")
    page.wait_for_selector(".t2v-side >> text=29 or 33 would work")
    page.wait_for_selector(".t2v-generate:disabled")
    turn(page, "t2v-num-frames", "1000")  # beyond the slider's end, and not cut off there
    page.wait_for_selector(".t2v-side >> text=997 or 1001 would work")
    assert page.input_value(".t2v-num-frames input[type=number]") == "1000"
    turn(page, "t2v-num-frames", "17")
    page.select_option(".t2v-upscaler select", "another file …")
    page.fill(".t2v-file input", NOTEBOOK)
    page.keyboard.press("Tab")
    page.wait_for_selector(".t2v-generate:enabled")
    page.click(".t2v-generate")
    status(page, "is damaged or no upscaler")
    assert page.locator(".t2v-status .t2v-error").count() == 1 and page.is_enabled(".t2v-generate")

    page.select_option(".t2v-upscaler select", "none")
    turn(page, "t2v-num-inference-steps", "2")
    page.fill(".t2v-lora input", "continue")
    page.keyboard.press("Tab")
    page.click(".t2v-lora-add")
    page.wait_for_selector(".t2v-lora-rows .t2v-lora-strength")
    page.click(".t2v-generate")
    status(page, "Done in")

    from_a_video(page)

    page.fill(".t2v-queue-prompts textarea", f"A red car on the beach.\n{NASTY}")
    page.click(".t2v-queue-add")
    page.wait_for_selector(".t2v-queue-remove >> nth=1")
    page.click(".t2v-queue-up >> nth=1")
    page.wait_for_function("document.querySelector('.t2v-queue-rows .t2v-soft').innerText.includes('<script>')")
    if pictures:
        page.locator(".t2v").screenshot(path=f"{pictures}/queue.png")
    before = page.locator(".t2v-card").count()
    page.click(".t2v-queue-run")
    page.wait_for_selector(f".t2v-card >> nth={before + 1}")
    page.wait_for_selector(".t2v-queue-rows >> css=button", state="detached")
    assert page.evaluate("window.pwned") is None and "beach" in page.inner_text(".t2v-card >> nth=0")
