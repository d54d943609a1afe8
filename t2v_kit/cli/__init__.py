"""The command line `t2v`, also `python -m t2v_kit`: videos, enlarged files, resumed runs, memory plans, lists of runs.

It stands on cyclopts: an option is a parameter. Of the three libraries that read annotations, cyclopts accepts a
prompt where a subcommand's name could stand and imports in a tenth of a second; tyro takes five times as long, and
typer has no place for a command of the program itself next to its subcommands.

A command is a module. Nothing heavy is imported before everything that can be checked without a model is checked.
"""

from __future__ import annotations

import sys
import warnings

from cyclopts import CoercionError, CycloptsError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError

from ..errors import UserError, near_match
from . import enlarging, learning, making, planning, runs  # noqa: F401 (each registers its command)
from .app import app

__all__ = ["app", "main"]

#: Words of other tools, and the option that does the same here.
ELSEWHERE = {
    "--cfg": "--guidance-scale",
    "--cfg-scale": "--guidance-scale",
    "--length": "--num-frames",
    "--duration": "--num-frames",
    "--size": "--height",
    "--resolution": "--height",
    "--upscaler": "--upscale",
    "--output": "--out",
    "--vram": "--memory",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after the program's name; None takes the process's own.

    Returns:
        The exit status: 0, 2 after a user's mistake, 130 when stopped with Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        with warnings.catch_warnings():
            warnings.showwarning = print_note
            app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print(f"t2v: {mistake(error)} (see --help)", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"t2v: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nt2v: stopped{''.join(map(str, stop.args))}", file=sys.stderr)
        return 130
    return 0


def mistake(error: CycloptsError) -> str:
    """One line that says what was typed, and what was probably meant."""
    if isinstance(error, UnknownOptionError):
        word = (error.token.keyword or error.token.value).partition("=")[0]
        options = [name for argument in error.argument_collection or () for name in argument.names if name[:2] == "--"]
        near = ELSEWHERE.get(word) if ELSEWHERE.get(word) in options else near_match(word, options)
        return f"unknown option {word!r}" + (f"; did you mean {near}?" if near else "")
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        return f"{name} needs a value" if name[:2] == "--" else f"{name.upper()} is missing"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{error.unused_tokens[0]!r} is not expected here"
    if isinstance(error, CoercionError) and error.token is not None:
        shown = error.argument.parameter.metavar if error.argument is not None else None
        kind = {int: "whole number", float: "number", "INT": "whole number", "FLOAT": "number"}
        if wanted := kind.get(error.target_type) or kind.get(shown):
            return f"{error.token.keyword or 'the value'} {error.token.value}: must be a {wanted}"
    message = " ".join(str(error).split()).rstrip(".")
    return message[:1].lower() + message[1:]


def print_note(message: Warning | str, *_: object) -> None:
    """Print a warning as one line, without the place in the code."""
    print(f"t2v: note: {message}", file=sys.stderr)
