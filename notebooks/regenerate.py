"""Run notebooks and store their outputs: `python notebooks/regenerate.py [FILE ...]`, all of them without a name.

The stored outputs are those that a reader on GitHub should see: pictures and numbers. Progress bars, widget state and
embedded players (each has an animated picture beside it) are left out. Anything else on stderr is kept, so that the
tests refuse it. The sentence 'Runs in about N seconds' of the first cell gets the measured time, and the metadata say
which of pocket's weights drew it all: after a training the tests ask for another run.
"""

import argparse
import hashlib
import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from t2v_kit.hunyuan.files import POCKET

HERE = Path(__file__).parent
LIVE_ONLY = "application/vnd.jupyter.widget-view+json"  # its numbers change every time and mean nothing when stored
BAR = re.compile(r"\d+%\||\[\d+:\d\d[<,]")  # of tqdm: ' 40%|' or, without a total, '[00:02, '
SECONDS = re.compile(r"(?<=Runs in about )\d+(?= seconds)")
ROUNDED_TO = 30  # seconds: two runs on one machine should mostly agree


def regenerate(path: Path) -> None:
    """Execute one notebook in its own folder and write it back with cleaned outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, record_timing=False, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    began = time.monotonic()
    client.execute()
    clean(notebook)
    seconds = max(ROUNDED_TO, ROUNDED_TO * round((time.monotonic() - began) / ROUNDED_TO))
    notebook.cells[0].source = SECONDS.sub(str(seconds), notebook.cells[0].source)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Keep, of metadata and outputs, what is the same on every machine and shows on a page."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "t2v_kit": {"pocket": shipped()},
    }
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    output.text = without_bars(output.text)
                if "image/png" in output.get("data", {}):
                    output.data.pop("text/html", None)
            cell.outputs = _joined([output for output in cell.outputs if _kept(output)])


def shipped() -> str:
    """16 hex digits of the SHA-256 over pocket's weight files, its upscaler and its LoRA among them."""
    digest = hashlib.sha256()
    for path in sorted(POCKET.rglob("*.safetensors")):
        digest.update(f"{path.relative_to(POCKET).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def without_bars(text: str) -> str:
    """What else than progress bars is in a text written to stderr."""
    lines = (line.replace("\x1b[A", "").strip() for line in re.split(r"[\r\n]", text))
    return "".join(f"{line}\n" for line in lines if line and not BAR.search(line))


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """What was printed in pieces, with nothing shown in between, as one: a page puts each output into a box."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if joined and "name" in output and output.name == joined[-1].get("name"):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _kept(output: nbformat.NotebookNode) -> bool:
    return output.get("text") != "" and LIVE_ONLY not in output.get("data", {})


def main() -> None:
    parser = argparse.ArgumentParser(description="Run notebooks and store their outputs.")
    parser.add_argument("files", nargs="*", type=Path, help="notebooks (default: all, solutions too)")
    for path in parser.parse_args().files or sorted([*HERE.glob("*.ipynb"), *HERE.glob("solutions/*.ipynb")]):
        regenerate(path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
