"""What is stored in the notebooks shows on a page, is small, and tells nothing of the machine it was made on."""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))
from regenerate import clean, regenerate, shipped, without_bars  # noqa: E402

TAUGHT = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = [*TAUGHT, *sorted((ROOT / "notebooks/solutions").glob("*.ipynb"))]
WEIGHTS = shipped()
SIZE = 1_500_000  # bytes; GitHub gives up on much larger ones
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|var|mnt|opt)/\w|[A-Z]:\\\\?Users")


def name(path: Path) -> str:
    return path.relative_to(ROOT / "notebooks").as_posix()


@pytest.fixture(params=NOTEBOOKS, ids=name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(output) -> list[str]:
    """What an output says in words: printed text, text/plain, HTML, tracebacks; no pictures."""
    data = output.get("data", {})
    said = [data[kind] for kind in data if kind.startswith("text/")]
    return [*said, output.get("text", ""), *output.get("traceback", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_is_valid_and_small(path):
    """The file follows the format and is no larger than a page may be."""
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size <= SIZE


def test_holds_no_widget_state(notebook):
    """GitHub shows 'Invalid Notebook' for widget state; widget views are numbers of a session that is gone."""
    assert "widgets" not in notebook.metadata
    assert not [cell.id for cell in code_cells(notebook) if "widget-view" in json.dumps(cell.outputs)]


def test_outputs_are_of_the_weights_that_are_shipped(notebook):
    """After a training every notebook has to be run again, the answers too: `python notebooks/regenerate.py`."""
    assert notebook.metadata.get("t2v_kit") == {"pocket": WEIGHTS}


def test_outputs_come_from_one_run_in_order(notebook):
    """Every cell was run, 1, 2, 3, ..., without an error; outputs without counts make nbval fail."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [cell.id for cell in cells if any(output.output_type == "error" for output in cell.outputs)]


def test_nothing_but_progress_bars_goes_to_stderr(notebook):
    """A warning that greets every reader is mended in the source; `regenerate` keeps what is no progress bar."""
    kept = [output for cell in code_cells(notebook) for output in cell.outputs if output.get("name") == "stderr"]
    assert "".join(output.text for output in kept) == ""


def test_what_is_printed_is_stored_in_one_piece(notebook):
    """Two pieces are two boxes on a page, and a line that was printed in two goes asunder."""
    for cell in code_cells(notebook):
        names = [output.get("name") for output in cell.outputs]
        assert ("stdout", "stdout") not in pairwise(names), cell.id


def test_bars_are_told_from_warnings():
    """tqdm's bars, with or without a total, nested or not, are dropped; a warning among them stays."""
    bars = "\rLoading:  40%|██   | 2/5 [00:00<00:01, 9.1it/s]\n\rdenoise: 7it [00:02,  3.1it/s]\x1b[A\n"
    assert without_bars(bars) == ""
    assert without_bars(bars + "UserWarning: 40% of it\n" + bars) == "UserWarning: 40% of it\n"


#: What may stand beside a unit in prose: definitions, the models' own constants, and sizes of published files
FACTS = {"6 dB", "10 dB", "20 dB", "40 dB", "5 %", "100 %", "12 GB", "16 GB", "36 GB", "41 GB", "64 GB", "67 MB"}
FACTS |= {"1.62 times the speed"}  # of another project, which is named beside it
MEASURED = re.compile(r"(?<![\w.])(\d[\d.,]*) ?(dB|%|GiB|GB|MB|MiB|kB|ms|s|times (?:faster|as fast|the speed))(?!\w)")


def test_no_measured_number_stands_in_prose(notebook):
    """A number that a run measures is printed by a cell: another training must not make a sentence false."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"`[^`]*`|\$[^$]*\$", "", prose)
    said = {f"{number} {unit}" for number, unit in MEASURED.findall(prose)}
    assert said <= FACTS


def test_names_no_path_of_a_machine(notebook):
    """Neither in code nor in outputs: not this checkout, and not what looks like somebody's folder."""
    said = [cell.source for cell in notebook.cells]
    said += [text for cell in code_cells(notebook) for output in cell.outputs for text in texts(output)]
    for text in said:
        assert str(ROOT) not in text and not MACHINE_PATH.search(text), text[:200]


def test_shows_pictures_on_a_page(notebook):
    """At least one stored picture, and no embedded player, which pages block and which makes files large."""
    kinds = [kind for cell in code_cells(notebook) for output in cell.outputs for kind in output.get("data", {})]
    assert {"image/png", "image/jpeg"} & set(kinds)
    assert "<video" not in json.dumps([cell.get("outputs") for cell in notebook.cells])


@pytest.mark.parametrize("path", TAUGHT, ids=name)
def test_half_of_the_cells_are_within_eight_lines(path):
    """One idea a cell; answers may be longer."""
    lengths = sorted(len(cell.source.splitlines()) for cell in code_cells(nbformat.read(path, 4)))
    assert lengths[len(lengths) // 2] <= 8


def test_cells_are_short_and_numbers_are_compared(notebook):
    """No cell over 25 lines, at most three in a row without prose; nbval compares some."""
    assert max(len(cell.source.splitlines()) for cell in code_cells(notebook)) <= 25
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    assert "cccc" not in kinds
    assert [cell for cell in code_cells(notebook) if "nbval-check-output" in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_relative_links_lead_somewhere(path):
    """A link to a file of the repository names one that is there."""
    prose = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", prose)
    assert not [target for target in targets if not (path.parent / target).exists()]


def test_the_glossary_names_notebooks_that_use_the_term():
    """Each entry ends in numbers of notebooks; the term is in the text or the code of every one of them."""
    used = {path.name[:2]: path.read_text("utf-8").lower() for path in TAUGHT}
    entries = re.findall(
        r"^(?:-|\d\.) (.+?)(?=\n-|\n\d\.|\n\n|\Z)", (ROOT / "docs/glossary.md").read_text("utf-8"), re.M | re.S
    )
    assert len(entries) > 50
    for entry in entries:
        terms = re.findall(r"[^,`*]+", entry.split(":")[0].lower())
        numbers = re.findall(r"\d\d", re.search(r"\(([\d, ]+)\)\.?$", entry)[1])
        assert all(any(term.strip() in used[number] for term in terms) for number in numbers), entry


def test_a_notebook_has_one_title(notebook):
    """Links call a notebook by its heading, and its answers do too."""
    headings = {path.name: nbformat.read(path, 4).cells[0].source.splitlines()[0].removeprefix("# ") for path in TAUGHT}
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    called = re.findall(r"\[(\d\d · [^]]+)\]\((?:\.\./)?([^)/]+\.ipynb)\)", prose)
    assert not [(title, file) for title, file in called if title != headings[file]]
    assert prose.startswith("# Answers to [") or prose.splitlines()[0].removeprefix("# ") in headings.values()


@pytest.mark.parametrize("path", TAUGHT, ids=name)
def test_answers_are_there_for_every_exercise(path):
    """A notebook that sets exercises has its answers in solutions/, under the same name."""
    prose = "".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    assert "**Exercise" not in prose or (path.parent / "solutions" / path.name).exists()


def test_the_quickstart_is_ten_cells_or_fewer():
    """From a prompt to an enlarged video without scrolling for long."""
    assert len(code_cells(nbformat.read(ROOT / "notebooks/00_quickstart.ipynb", 4))) <= 10


def test_compared_cells_print_and_nothing_else(notebook):
    """A player, a widget or a progress bar in a compared cell is different in every run."""
    compared = [cell for cell in code_cells(notebook) if "nbval-check-output" in cell.metadata.get("tags", [])]
    live = re.compile(r"\b(load|show_video|explore|wipe|step_through|Playground)\(")
    assert not [cell.id for cell in compared if live.search(cell.source)]


def test_the_path_rule_knows_paths():
    """The rule above finds real paths and leaves addresses and prose alone."""
    for path in ("/home/ada/t2v", "in '/tmp/x'", "C:\\Users\\ada", "File /root/a.py"):
        assert MACHINE_PATH.search(path), path
    for innocent in ("https://example.org/home/x", "runs/home/x", "and/or", "t2v_kit/tmp/x"):
        assert not MACHINE_PATH.search(innocent), innocent


def test_regenerate_runs_and_cleans(tmp_path):
    """Progress bar and player are dropped, picture, print, warning, tag and count are kept; twice is the same."""
    v4 = nbformat.v4
    show = "from IPython.display import display\ndisplay({'text/html': '<video>', 'image/png': 'UklG'}, raw=True)"
    show += "\nprint('below')"
    cells = [
        v4.new_code_cell("import sys\nprint('10%| | 1/10', file=sys.stderr)\nprint(2 + 3, flush=True)\nprint(6)"),
        v4.new_code_cell(show),
    ]
    cells += [v4.new_code_cell("import sys\nprint('beware', file=sys.stderr)")]
    cells[0].metadata = {"tags": ["nbval-check-output"], "scrolled": True}
    path = tmp_path / "a.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}}), path)
    regenerate(path)
    first = path.read_bytes()
    kept = nbformat.read(path, 4)
    printed, shown, warned = kept.cells
    assert [output.text for output in warned.outputs] == ["beware\n"]
    assert [output.text for output in printed.outputs] == ["5\n6\n"]
    assert printed.metadata == {"tags": ["nbval-check-output"]}
    assert dict(shown.outputs[0].data) == {"image/png": "UklG"} and shown.outputs[1].text == "below\n"
    assert "widgets" not in kept.metadata
    assert [cell.execution_count for cell in kept.cells] == [1, 2, 3]
    regenerate(path)
    assert path.read_bytes() == first


def test_clean_drops_widget_views():
    """A progress bar's view is a number that means nothing on another machine."""
    view = nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[view])])
    clean(notebook)
    assert notebook.cells[0].outputs == []
