"""How many small faults do the tests notice? One fault at a time is put into a copy of the package, and its tests run.

    python -m tests.mutants                            # 120 faults, drawn by seed 0 over stages/ and memory/: an hour
    python -m tests.mutants --count 20 --only memory   # 20 of those in paths that hold 'memory'

The faults: a comparison turned or moved by one, + for -, * for /, another constant, `not` put before a condition, `and`
for `or`, nothing returned. Only the tests of the module's own subject run (`TESTS`), until the first that fails; one
that takes over `--limit` seconds counts as failed. What lives is printed with its line, to be judged by a reader:
some faults change nothing, such as another number in a bound that nothing reaches. Linux and macOS.
"""

from __future__ import annotations

import argparse
import ast
import copy
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# By the module's path, which begins so: the tests that are about it, the quickest first.
TESTS = {
    "stages/prompt": ["test_prompt", "test_vocabularies"],
    "stages/noise": ["test_latents", "test_denoise"],
    "stages/denoising": ["test_denoise", "test_latents"],
    "stages/decoding": ["test_vae"],
    "stages/image": ["test_image"],
    "stages/known": ["test_given"],
    "stages/upscaling/smoothing": ["test_properties", "test_measure", "test_upscale"],
    "stages/upscaling": ["test_properties", "test_upscale", "test_realesrgan"],
    "memory/drivers": ["test_cli"],
    "memory": ["test_properties", "test_memory", "test_gguf_plans"],
}
ON_A_GPU = ("fused.py", "kernels.py")  # what no CPU runs
TURNED = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn}
COMPARISONS = TURNED | {other: one for one, other in TURNED.items()}
SUMS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}

# Starts each run as a fork of a process that has imported the libraries, which takes longer than many a test.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["t2v_kit.model.loading", "matplotlib.figure", "mediapy", "spandrel", "hypothesis"])


def faults(node: ast.AST) -> Iterator[ast.AST]:
    """The node with a fault in it, in each way that it can have one."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield _with(node, ops=[COMPARISONS[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.BinOp) and type(node.op) in SUMS and not _is_text(node.left) and not _is_text(node.right):
        yield _with(node, op=SUMS[type(node.op)]())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    elif isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield _with(node, value=ast.Constant(None))


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, what was changed into what, the whole source with it), one for every fault that there can be."""
    tree = ast.parse(source)
    places = [
        (parent, field, index, child)
        for parent in ast.walk(tree)
        for field, value in ast.iter_fields(parent)
        if field not in ("annotation", "returns")
        for index, child in enumerate(value if isinstance(value, list) else [value])
        if isinstance(child, ast.AST)
    ]
    for parent, field, index, child in places:
        for fault in faults(child):
            before = getattr(parent, field)
            setattr(
                parent, field, [*before[:index], fault, *before[index + 1 :]] if isinstance(before, list) else fault
            )
            old, new = (ast.unparse(each).split("\n")[0] for each in (child, fault))
            yield getattr(child, "lineno", 0), f"{old}  ->  {new}", ast.unparse(ast.fix_missing_locations(tree))
            setattr(parent, field, before)


def sample(count: int, seed: int, only: str) -> list[tuple[Path, int, str, str]]:
    """`count` faults, evenly drawn from all that there can be in stages/ and memory/."""
    files = sorted(path for part in ("stages", "memory") for path in (ROOT / "t2v_kit" / part).rglob("*.py"))
    files = [path for path in files if path.name not in ON_A_GPU]
    every = [(path.relative_to(ROOT), *mutant) for path in files for mutant in mutants(path.read_text("utf-8"))]
    drawn = random.Random(seed).sample(every, min(count, len(every)))
    return sorted((each for each in drawn if only in each[0].as_posix()), key=lambda each: (each[0], each[1]))


def tests_of(path: Path) -> list[str]:
    """The test files that are about a module."""
    inside = path.relative_to("t2v_kit").as_posix()
    names = next(names for start, names in TESTS.items() if inside.startswith(start))
    return [f"tests/{name}.py" for name in names if (ROOT / "tests" / f"{name}.py").exists()]


def passes(folder: Path, tests: list[str], limit: float) -> bool:
    """Whether the tests pass in this copy of the repository, in time."""
    process = SERVER.Process(target=_run, args=(folder, tests))
    process.start()
    process.join(limit)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)  # with what the tests have started
        process.join()
    return process.exitcode == 0


def _run(folder: Path, tests: list[str]) -> None:
    """Run the tests in a process of their own, with this copy's package in the place of the one that was preloaded."""
    os.setsid()
    os.chdir(folder)
    for name in [name for name in sys.modules if name.split(".")[0] in ("t2v_kit", "tests", "benchmarks", "training")]:
        del sys.modules[name]
    sys.path[:0] = [str(folder), str(folder / "tests")]
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = str(folder)  # of the processes that tests start
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a module's path, such as memory or stages/noise")
    parser.add_argument("--limit", type=float, default=600, help="seconds that the tests of one fault may take")
    options = parser.parse_args()
    drawn, alive = sample(options.count, options.seed, options.only), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "repository")
        ignored = shutil.ignore_patterns(".git", "__pycache__", "notebooks", ".*_cache", "node_modules")
        shutil.copytree(ROOT, folder, ignore=ignored, symlinks=True)
        for tests in sorted({tuple(tests_of(path)) for path, *_ in drawn}):
            if not passes(folder, list(tests), 3 * options.limit):
                sys.exit(f"{' '.join(tests)}: fail without any fault; mend that first.")
        for number, (path, line, change, source) in enumerate(drawn, 1):
            target, whole = folder / path, (folder / path).read_text("utf-8")
            target.write_text(source, "utf-8")
            lives = passes(folder, tests_of(path), options.limit)
            target.write_text(whole, "utf-8")
            alive += [f"{path}:{line}: {change}"] if lives else []
            print(f"{number}/{len(drawn)} {'LIVES  ' if lives else 'noticed'} {path}:{line}: {change}", flush=True)
    print(f"noticed {len(drawn) - len(alive)} of {len(drawn)}", *alive, sep="\n")


def _with(node: ast.AST, **fields) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


if __name__ == "__main__":
    main()
