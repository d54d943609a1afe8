"""The Colab editions: as build.py makes them, installing nothing that Colab has, and running with its versions."""

import ast
import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "colab"))
import build  # noqa: E402

ADDRESS = "https://github.com/OWNER/NAME"
STAND_IN = ROOT / "tests" / "google_colab"
OVERLAY = Path(sys.prefix, "colab")  # Colab's IPython, ipykernel and ipywidgets, made by `make colab`
EDITIONS = sorted((ROOT / "colab").glob("*.ipynb"))
QUICK = ("00_quickstart", "03_noisy_latents", "09_playground")
LOADED = 'models = t2v.load("pocket")'
SMALL = "models.defaults |= {'height': 64, 'width': 96, 'num_frames': 9, 'num_inference_steps': 4}"
needs_overlay = pytest.mark.skipif(not OVERLAY.is_dir(), reason="Colab's versions are not in .venv/colab: make colab")
v4 = nbformat.v4


def source_of(notebook, id: str) -> str:
    (found,) = [cell.source for cell in notebook.cells if cell.id == id]
    return found


def made_up(*cells):
    """A notebook of a title and these cells."""
    return v4.new_notebook(cells=[v4.new_markdown_cell("# 98 · Made up", id="title"), *cells])


def convert(*cells, repository=""):
    return build.convert(made_up(*cells), "98_made_up.ipynb", repository, {"98_made_up.ipynb", "00_quickstart.ipynb"})


def test_nothing_differs_from_what_the_script_makes():
    """Otherwise: python colab/build.py."""
    assert build.differing(build.editions()) == []


def test_tells_what_differs(tmp_path):
    """A changed, a missing and a surplus file are named; nothing else."""
    made = {"a.ipynb": "1", "b.ipynb": "2", "c.ipynb": "3"}
    for name, text in {"a.ipynb": "1", "b.ipynb": "changed", "d.ipynb": "surplus"}.items():
        (tmp_path / name).write_text(text)
    assert build.differing(made, tmp_path) == ["b.ipynb", "c.ipynb", "d.ipynb"]


@pytest.mark.parametrize("path", EDITIONS, ids=lambda path: path.stem)
def test_an_edition_is_valid_empty_and_needs_only_what_colab_has(path):
    """No outputs, counts or tags; the two cells in front; no relative links; realesrgan only inside a try."""
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells[:2]] == ["colab-setup", "colab-machine"]
    assert not any(cell.outputs or cell.execution_count or "tags" in cell.metadata for cell in cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    unguarded = [node for cell in cells for node in ast.parse(cell.source).body if not isinstance(node, ast.Try)]
    imported = set().union(*(build._imports(ast.unparse(node)) for node in unguarded))
    assert not imported & {"realesrgan", "basicsr", "benchmarks", "training"}
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = [link[3] for link in build.LINK.finditer(prose) if not link[3].startswith(("http", "#"))]
    assert not targets, "Colab shows a notebook without its neighbours: a relative link leads nowhere"
    assert "Open in Colab" in notebook.cells[0].source, "a badge, or what to do while there is no address"


def test_every_notebook_has_an_edition():
    sources = {path.name for path in build.SOURCE.glob("[0-9]*.ipynb")}
    assert {path.name for path in EDITIONS} == sources | {"t2v_colab_13b.ipynb"}


def test_the_address_is_everywhere_it_is_needed():
    """With an address: badge, setup and links to the repository; without: a word, and no dead link."""
    text = "[next](00_quickstart.ipynb#end), [`training/`](../training), ![panel](../assets/playground.png)"
    text += ", [answers](solutions/00_quickstart.ipynb)"
    cell = v4.new_markdown_cell(text, id="text")
    plain, told = convert(cell), convert(cell, repository=ADDRESS)
    assert source_of(plain, "text") == (
        "next, `training/`, *panel*, answers (`notebooks/solutions/00_quickstart.ipynb` in the repository)"
    )
    colab = "https://colab.research.google.com/github/OWNER/NAME/blob/main/colab"
    assert source_of(told, "text") == (
        f"[next]({colab}/00_quickstart.ipynb), [`training/`]({ADDRESS}/tree/main/training), "
        f"![panel]({ADDRESS}/raw/main/assets/playground.png), "
        f"[answers]({ADDRESS}/blob/main/notebooks/solutions/00_quickstart.ipynb)"
    )
    assert "no public address" in plain.cells[0].source and "](" not in plain.cells[0].source
    opened = "https://colab.research.google.com/github/OWNER/NAME/blob/main/colab/98_made_up.ipynb"
    assert told.cells[0].source.endswith(f"({opened})")
    assert f'REPOSITORY = "{ADDRESS}"' in source_of(told, "colab-setup")


def test_a_cell_on_files_beside_the_package_is_left_out():
    """An installed kit has no benchmarks; the reader is told where the cell is."""
    made = convert(v4.new_code_cell("from benchmarks.table import tables", id="a"), repository=ADDRESS)
    assert made.cells[-1].cell_type == "markdown" and "notebooks/98_made_up.ipynb" in made.cells[-1].source


def test_forms():
    """Each kind of literal becomes its field, comments its label; other cells stay as they are."""
    cell = v4.new_code_cell("a = 'é'  # what: with #\nb = -3\nc = 0.5\n\nd = True", id="form")
    cell.metadata = {"tags": ["form"]}
    made = convert(cell, v4.new_code_cell("a = 1", id="plain"))
    assert source_of(made, "form").splitlines() == [
        "# @markdown what: with #",
        "a = 'é'  # @param {type:\"string\"}",
        'b = -3  # @param {type:"integer"}',
        'c = 0.5  # @param {type:"number"}',
        'd = True  # @param {type:"boolean"}',
    ]
    assert source_of(made, "plain") == "a = 1"


@pytest.mark.parametrize("line", ["a = None", "a = b", "print(1)", "a.b = 1", "a = 1; b = 2", "a = b = 1", "print"])
def test_a_form_refuses_what_it_cannot_show(line):
    with pytest.raises(ValueError, match="98, cell a"):
        build.form(f"x = 1\n{line}", "98, cell a")


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """Runs the setup cell as on a machine without the kit; gives pip's arguments and constraints, None when unasked."""
    here, asked = tmp_path / "content", []
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(STAND_IN))
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "t2v_kit" else find(name))
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))

    def run(repository="", **form):
        cell = build.front(repository)[0].source.replace("/content/drive", str(tmp_path / "drive"))
        for name, value in form.items():
            assert f"\n{name} = " in cell
            cell = "\n".join(f"{name} = {value!r}" if x.startswith(f"{name} = ") else x for x in cell.split("\n"))
        exec(compile(cell, "setup", "exec"), {})
        assert all(command[:4] == [sys.executable, "-m", "pip", "install"] for command in asked)
        return asked[-1][4:] if asked else None

    yield run
    for name in [name for name in sys.modules if name.startswith("google.colab")]:
        del sys.modules[name]


def test_setup_is_short():
    assert len(build.front(ADDRESS)[0].source.splitlines()) <= 25


def test_setup_without_an_address_says_what_to_do(setup):
    with pytest.raises(RuntimeError, match=r"no public address yet: set REPOSITORY .* or tick upload_wheel"):
        setup()


def test_setup_keeps_what_colab_has(setup):
    """Torch, torchvision, numpy and ipywidgets are held at the versions that are there."""
    assert setup(ADDRESS) == ["-q", "-c", "constraints.txt", f"git+{ADDRESS}"]
    held = dict(line.split("==") for line in Path("constraints.txt").read_text().splitlines())
    assert held == {name: metadata.version(name) for name in ("torch", "torchvision", "numpy", "ipywidgets")}


def test_setup_takes_a_wheel(setup, tmp_path, monkeypatch):
    """Uploaded when the box is ticked; nothing uploaded is no address; one that lies there is taken without asking."""
    with pytest.raises(RuntimeError, match="no public address"):
        setup(upload_wheel=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "t2v_kit-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    monkeypatch.setenv("UPLOADS", str(tmp_path / "mine"))
    wheel = str(tmp_path / "content" / "t2v_kit-0.1.0-py3-none-any.whl")
    assert setup(upload_wheel=True)[-1] == wheel and Path(wheel).read_bytes() == b"wheel"
    monkeypatch.delenv("UPLOADS")
    assert setup(ADDRESS)[-1] == wheel


def test_setup_does_nothing_where_the_kit_is(setup, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was installed"))
    exec(build.front("")[0].source, {})
    assert list(tmp_path.iterdir()) == [tmp_path / "content"]


def test_setup_puts_runs_on_the_drive(setup, tmp_path):
    """Twice is the same; a folder `runs` with something in it is not pushed aside."""
    for _ in range(2):
        setup(ADDRESS, drive_folder="t2v")
    Path("runs/a").mkdir()
    assert (tmp_path / "drive" / "MyDrive" / "t2v" / "a").is_dir()


def cells_of_13b(*ids) -> str:
    notebook = nbformat.read(ROOT / "colab" / "t2v_colab_13b.ipynb", 4)
    return "\n".join(source_of(notebook, id) for id in ids)


@pytest.mark.parametrize(
    ("gpu", "size", "kept"),
    [
        (("Tesla T4", 14.7, 12.7, (7, 5)), "320x512x61", "nf4"),
        (("NVIDIA L4", 22.2, 53, (8, 9)), "544x960x61", "bfloat16"),
        (("NVIDIA A100-SXM4-40GB", 39.6, 83.5, (8, 0)), "544x960x129", "bfloat16"),
    ],
)
def test_the_13b_plans_before_it_downloads(monkeypatch, capsys, gpu, size, kept):
    """On Colab's GPUs a plan is found and its table printed, before `load` is called."""
    import t2v_kit

    name, vram, ram, capability = gpu
    there = t2v_kit.Machine(vram, ram, capability, gpu=name)
    monkeypatch.setattr(t2v_kit.Machine, "here", lambda: there)
    exec(cells_of_13b("colab-machine", "choose", "plan", "needs"), {})
    said = capsys.readouterr().out
    assert size in said and kept in said and "to download: about" in said
    assert said.count("the 13B at") == 3 and "unknown" not in said and name.split()[0] in said


def test_the_13b_without_a_gpu_says_so(monkeypatch, capsys):
    import t2v_kit

    monkeypatch.setattr(t2v_kit.Machine, "here", lambda: t2v_kit.Machine(0, 12.7, (0, 0)))
    with pytest.raises(t2v_kit.UserError, match="needs a GPU"):
        exec(cells_of_13b("colab-machine", "choose", "plan"), {})
    assert "the 13B: needs a GPU" in capsys.readouterr().out


def test_the_13b_says_that_it_was_not_run():
    assert "Not run." in nbformat.read(ROOT / "colab" / "t2v_colab_13b.ipynb", 4).cells[0].source


def fill_in(notebook, **values) -> None:
    """Write into the notebook's forms, as Colab does."""
    lines = {f"{name} = ": f"{name} = {value!r}" for name, value in values.items()}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = "\n".join(
                next((new for old, new in lines.items() if line.startswith(old) and "# @param" in line), line)
                for line in cell.source.splitlines()
            )


def execute(notebook, folder: Path) -> str:
    """Run it with Colab's versions and the stand-in for its module; what it printed. A failing cell raises."""
    ask = "import IPython, ipykernel, ipywidgets as w\nprint(IPython.__version__, ipykernel.__version__, w.__version__)"
    notebook.cells.insert(0, v4.new_code_cell(ask))
    fill_in(notebook, drive_folder="t2v")
    for cell in notebook.cells:
        cell.source = cell.source.replace("/content/drive", str(folder / "drive"))
    paths = [str(OVERLAY), str(STAND_IN), str(ROOT), os.environ.get("PYTHONPATH", "")]
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"})
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert said.startswith("7.34.0 6.17.1 7.7.1\n")
    return said


@needs_overlay
def test_a_made_up_notebook_runs(tmp_path):
    """Setup, forms, a widget and the Drive; and the runner sees a cell that fails."""
    settings = v4.new_code_cell("steps = 3", id="a", metadata={"tags": ["form"]})
    use = v4.new_code_cell(
        "import os, sys, ipywidgets\nprint(steps, ipywidgets.IntSlider(4).value, 'google.colab' in sys.modules)\n"
        "os.makedirs('runs/made')",
        id="b",
    )
    notebook = convert(settings, use)
    fill_in(notebook, steps=5)
    assert "5 4 True" in execute(notebook, tmp_path)
    assert (tmp_path / "drive" / "MyDrive" / "t2v" / "made").is_dir()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(made_up(v4.new_code_cell("1 / 0")), tmp_path)


@needs_overlay
@pytest.mark.parametrize("name", QUICK)
def test_an_edition_runs_with_colabs_versions(name, tmp_path):
    """From setup to the last cell, at a small size; what it saves lands in the Drive folder."""
    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", 4)
    (loads,) = [cell for cell in notebook.cells if LOADED in cell.source.splitlines()]
    loads.source = loads.source.replace(LOADED, f"{LOADED}\n{SMALL}")
    said = execute(notebook, tmp_path)
    assert "pocket, which the notebooks use: works here" in said
    if name == "00_quickstart":
        assert (tmp_path / "drive" / "MyDrive" / "t2v" / "quickstart" / "video.mp4").is_file()


@needs_overlay
def test_the_13b_runs_on_pocket(tmp_path):
    """Every cell of it, with pocket in the model's place: made, gone on with, enlarged, all in the Drive folder."""
    notebook = nbformat.read(ROOT / "colab" / "t2v_colab_13b.ipynb", 4)
    fill_in(notebook, model="pocket", size="64x96x9", steps=3, upscaler="pocket")
    at = [cell.id for cell in notebook.cells].index("run")
    again = v4.new_code_cell(notebook.cells[at].source.replace("go_on = False", "go_on = True"))
    check = v4.new_code_cell("first = run.video\n" + again.source + "\nprint('same', (first == run.video).all())")
    notebook.cells.insert(at + 1, check)
    said = execute(notebook, tmp_path)
    assert "same True" in said and "9 frames of (256, 384)" in said
    (preview,) = [cell.outputs for cell in notebook.cells if cell.id == "run"]
    assert any("image/png" in output.get("data", {}) for output in preview)
    saved = tmp_path / "drive" / "MyDrive" / "t2v" / "hunyuan"
    assert {"video.mp4", "upscaled.mp4", "latents.safetensors"} <= {path.name for path in saved.iterdir()}
