"""Make the Colab editions of notebooks/: `python colab/build.py`; `--check` only says which files differ.

A Colab edition is its notebook without outputs, with a badge, a cell that installs the kit and one that looks at the
machine in front, forms for the settings, and links that hold outside the repository. Equal notebooks give equal bytes.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

import nbformat

from colab_cells import MACHINE, NO_ADDRESS, NOT_RUN, SETUP, THIRTEEN_B

REPOSITORY = ""  # the public address, as in "https://github.com/OWNER/NAME"; then run this script again
BRANCH = "main"

HERE = Path(__file__).parent
SOURCE = HERE.parent / "notebooks"
OUTSIDE_THE_PACKAGE = {"benchmarks", "training"}  # folders of the repository that an installed kit does not have
FORM_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def editions(repository: str = REPOSITORY) -> dict[str, str]:
    """Every Colab edition: file name to content."""
    names = {path.name for path in SOURCE.glob("[0-9][0-9]_*.ipynb")}
    made = {}
    for name in sorted(names):
        notebook = nbformat.read(SOURCE / name, as_version=4)
        made[name] = written(convert(notebook, name, repository, names))
    name = "t2v_colab_13b.ipynb"
    made[name] = written(thirteen_b(name, repository, names))
    return made


def convert(notebook: nbformat.NotebookNode, name: str, repository: str, siblings: set[str]) -> nbformat.NotebookNode:
    """The Colab edition of the notebook called `name`; siblings: names of the other editions."""
    title, *rest = (_converted(cell, name, repository, siblings) for cell in notebook.cells)
    return whole([markdown("colab-badge", badge(name, repository)), title, *front(repository), *rest])


def _converted(cell: nbformat.NotebookNode, name: str, repository: str, siblings: set[str]) -> nbformat.NotebookNode:
    if cell.cell_type == "markdown":
        return markdown(cell.id, LINK.sub(lambda link: _link(link, repository, siblings), cell.source))
    if _imports(cell.source) & OUTSIDE_THE_PACKAGE:
        where = f"[the notebook]({repository}/blob/{BRANCH}/notebooks/{name})" if repository else "the notebook"
        return markdown(cell.id, f"*Left out on Colab: a cell that reads the repository's files; {where} has it.*")
    if "form" in cell.metadata.get("tags", []):
        return code(cell.id, form(cell.source, f"{name}, cell {cell.id}"))
    return code(cell.id, cell.source)


def thirteen_b(name: str, repository: str, siblings: set[str]) -> nbformat.NotebookNode:
    """The notebook for the 13B model, which has no counterpart in notebooks/."""
    title = markdown("title", f"{badge(name, repository)}\n\n{NOT_RUN}")
    own = nbformat.v4.new_notebook(
        cells=[{"markdown": markdown, "code": code}[kind](id, source) for id, kind, source in THIRTEEN_B]
    )
    cells = (_converted(cell, name, repository, siblings) for cell in own.cells)
    return whole([title, *front(repository), *cells], gpu="T4")


def front(repository: str) -> list[nbformat.NotebookNode]:
    """The two cells that every edition begins with."""
    setup, machine = code("colab-setup", SETUP.replace("{repository}", repository)), code("colab-machine", MACHINE)
    for cell in (setup, machine):
        cell.metadata = {"cellView": "form"}
    return [setup, machine]


def badge(name: str, repository: str) -> str:
    """Markdown: a link that opens the edition in Colab, or that there is none yet."""
    if not repository:
        return NO_ADDRESS
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})]({_opened(name, repository)})"


def _opened(name: str, repository: str) -> str:
    """The address at which Colab opens an edition."""
    there = f"{repository.removeprefix('https://github.com')}/blob/{BRANCH}/colab/{name}"
    return f"https://colab.research.google.com/github{there}"


def form(source: str, where: str) -> str:
    """`name = literal` lines as Colab's forms; a comment on a line is shown above its field.

    Raises ValueError, naming `where`, for any line that a form cannot show.
    """
    lines = []
    for line in filter(str.strip, source.splitlines()):
        statement = _assignment(line)
        if statement is None:
            raise ValueError(f"{where}: a form has lines like `name = 7`, with text, numbers or True, not {line!r}")
        kind, code_end = FORM_TYPES[type(ast.literal_eval(statement.value))], statement.end_col_offset  # in bytes
        assignment, comment = line.encode()[:code_end].decode(), line.encode()[code_end:].decode().lstrip("# ")
        lines += [f"# @markdown {comment}"] * bool(comment)
        lines.append(f'{assignment}  # @param {{type:"{kind}"}}')
    return "\n".join(lines)


def _assignment(line: str) -> ast.Assign | None:
    """The statement of a line that reads `name = literal`, None for any other line."""
    try:
        body = ast.parse(line).body
        if len(body) != 1 or not isinstance(body[0], ast.Assign):
            return None
        names = [target.id for target in body[0].targets if isinstance(target, ast.Name)]
        literal = type(ast.literal_eval(body[0].value)) in FORM_TYPES
        return body[0] if literal and len(names) == len(body[0].targets) == 1 else None
    except (SyntaxError, ValueError):
        return None


def _link(link: re.Match, repository: str, siblings: set[str]) -> str:
    """A Markdown link that holds on Colab, where a notebook has no neighbours: absolute, or only its text."""
    picture, text, target = link.groups()
    path, _, anchor = target.partition("#")
    if re.match(r"[a-z]+:|#", target):
        return link.group()
    if not repository:
        answers = path.startswith("solutions/") and path not in text
        return f"*{text}*" if picture else f"{text} (`notebooks/{path}` in the repository)" if answers else text
    if path in siblings:
        return f"[{text}]({_opened(path, repository)})"
    inside = (SOURCE / path).resolve().relative_to(HERE.parent.resolve()).as_posix()
    view = "raw" if picture else "tree" if (HERE.parent / inside).is_dir() else "blob"
    return f"{picture}[{text}]({repository}/{view}/{BRANCH}/{inside}{'#' + anchor if anchor else ''})"


def _imports(source: str) -> set[str]:
    """Top-level names of the modules that a cell imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def markdown(id: str, source: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(source, id=id)


def code(id: str, source: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, id=id)


def whole(cells: list[nbformat.NotebookNode], gpu: str | None = None) -> nbformat.NotebookNode:
    """A notebook of these cells; gpu: the kind of GPU that Colab is asked for."""
    colab = {"provenance": [], "toc_visible": True} | ({"gpuType": gpu} if gpu else {})
    metadata = {
        "colab": colab,
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    } | ({"accelerator": "GPU"} if gpu else {})
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(notebook)
    return notebook


def written(notebook: nbformat.NotebookNode) -> str:
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def differing(made: dict[str, str], folder: Path = HERE) -> list[str]:
    """Names of the editions in `folder` that are missing, surplus, or not as `made` has them."""
    there = {path.name: path.read_text("utf-8") for path in folder.glob("*.ipynb")}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the Colab editions of notebooks/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs")
    check, made = parser.parse_args().check, editions()
    found = differing(made)
    print(*found or ["nothing differs"], sep="\n")
    if check:
        sys.exit(bool(found))
    for name in found:
        if name in made:
            (HERE / name).write_text(made[name], "utf-8")
        else:
            (HERE / name).unlink()


if __name__ == "__main__":
    main()
