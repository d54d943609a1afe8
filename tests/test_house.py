"""The house: floors, names, docstrings. What these tests read is the code itself."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import t2v_kit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "t2v_kit"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "pocket" not in path.relative_to(PACKAGE).parts)
PUBLIC = [name for name in t2v_kit.__all__ if name != "toyland"]
# Modules whose contents are slow to import and not always needed: only these may be imported inside a function.
LATE = "cli"


def test_no_arrow_runs_back_up():
    """import-linter's contracts in pyproject.toml: a room uses only rooms below it, and nothing goes in a circle."""
    pytest.importorskip("importlinter")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_import_is_hidden_in_a_function(path):
    """An import of our own inside a function would be an arrow that the contracts see and a reader does not."""
    if path.parent.name == LATE or path == PACKAGE / "__init__.py":
        return
    functions = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef))
    hidden = [
        ast.unparse(node)
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("t2v_kit"))
    ]
    assert not hidden


def test_no_module_is_named_like_a_public_function():
    """`import t2v_kit.x as x` gives the module, and `t2v_kit.x` the function: never both for one name."""
    direct = {path.stem for path in MODULES if path.parent == PACKAGE} | {
        path.parent.name for path in MODULES if path.name == "__init__.py" and path.parent.parent == PACKAGE
    }
    assert not direct & set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_say_what_they_take_and_give(name):
    """Google style: every parameter under Args, a Returns or Yields where something comes back."""
    thing = getattr(t2v_kit, name)
    text = inspect.getdoc(thing) or ""
    assert text.strip(), f"{name} has no docstring"
    if inspect.isclass(thing):
        return
    parameters = [each for each in inspect.signature(thing).parameters if each not in ("self", "cls")]
    if parameters:
        assert "Args:" in text
    missing = [each for each in parameters if f"{each}:" not in text and f"{each}," not in text]
    assert not missing, f"{name} does not explain {missing}"


def test_private_words_are_gone():
    """Names are the field's terms or plain nouns and verbs, in definitions and parameters."""
    words = {"told", "tell_once", "bring", "rests", "_become", "beside", "go_on", "goes_on"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            defined = getattr(node, "name", None) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else None
            arguments = [each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)] if isinstance(
                node, ast.FunctionDef
            ) else []  # fmt: skip
            assert not words & {defined, *arguments}, f"{path.relative_to(ROOT)}: {defined}"


def test_importing_is_quick_silent_and_writes_nothing(tmp_path):
    """`import t2v_kit` takes under 0.3 s, the best of five: a busy machine may be slow for a while."""
    code = (
        "import sys, time; t = time.perf_counter(); import t2v_kit; t = time.perf_counter() - t; "
        "heavy = {'torch', 'diffusers', 'numpy', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(f'{t:.3f}')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    seconds = []
    for _ in range(5):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout == ""
        seconds.append(float(done.stderr))
    assert min(seconds) < 0.3
    assert not list(tmp_path.iterdir())


def test_every_public_name_can_be_reached():
    """The table of lazy names in `t2v_kit/__init__.py` is right, and `dir` lists what it holds."""
    for name in t2v_kit.__all__:
        assert getattr(t2v_kit, name) is not None
    assert set(t2v_kit.__all__) <= set(dir(t2v_kit))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        t2v_kit.nothing_like_it  # noqa: B018
    assert importlib.import_module("t2v_kit.stages.denoising").denoise is t2v_kit.denoise
