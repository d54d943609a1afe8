"""Run notebooks and store their outputs: `python notebooks/regenerate.py [FILE ...]`, all of them without a name.

What is stored is what a reader on GitHub should see: pictures and numbers. Progress bars, widget state and the
embedded players (beside which every one has an animated picture) are left out.
"""

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
LIVE_ONLY = "application/vnd.jupyter.widget-view+json"  # its numbers change every time and mean nothing when stored


def regenerate(path: Path) -> None:
    """Execute one notebook in its own folder and write it back with cleaned outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, record_timing=False, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    client.execute()
    clean(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Keep, of metadata and outputs, what is the same on every machine and shows on a page."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
            cell.outputs = [output for output in cell.outputs if _kept(output)]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data.pop("text/html", None)


def _kept(output: nbformat.NotebookNode) -> bool:
    return output.get("name") != "stderr" and LIVE_ONLY not in output.get("data", {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="notebooks (default: all, solutions too)")
    for path in parser.parse_args().files or sorted([*HERE.glob("*.ipynb"), *HERE.glob("solutions/*.ipynb")]):
        regenerate(path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
