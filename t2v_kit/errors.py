"""How the package says that something is wrong, or worth knowing: errors, notes, near matches, shared checks."""

from __future__ import annotations

import contextlib
import difflib
import numbers
import warnings
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

_notes_of_this_run: ContextVar[set[str] | None] = ContextVar("notes_of_this_run", default=None)


class UserError(ValueError):
    """A mistake in what the user gave: one line with the value, the rule, and what would work."""


@contextlib.contextmanager
def fresh_notes() -> Iterator[None]:
    """Inside, every note is given again, and each only once. `generate` opens one such scope for each run."""
    token = _notes_of_this_run.set(set())
    try:
        yield
    finally:
        _notes_of_this_run.reset(token)


def give_note(message: str, given: set[str] | None = None) -> None:
    """Warn with `message`, unless the same note was given before in this run.

    The warning carries the package's name instead of a line of code: it is about what was asked.

    Args:
        message: One line.
        given: Outside of a run, the notes given so far (a loaded model keeps such a set), so that stages that are
            called one by one do not repeat themselves. None gives the note each time.
    """
    run = _notes_of_this_run.get()
    given = given if run is None else run
    if given is not None:
        if message in given:
            return
        given.add(message)
    warnings.warn_explicit(message, UserWarning, "t2v-kit", 1)


def near_match(word: object, known: Iterable[str]) -> str | None:
    """The known name that `word` most resembles, whatever its case; None when it resembles none."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def did_you_mean(word: object, known: Iterable[str], otherwise: str = "") -> str:
    """The end of an error message: the nearest known name, or `otherwise` (by default, all known names)."""
    known = list(known)
    near = near_match(word, known)
    return f"did you mean {near!r}?" if near else otherwise or f"known are {', '.join(known)}."


def check_text(name: str, value: object, allow_empty: bool = False) -> str:
    """Return `value` if it is text that can be written down.

    Raises:
        UserError: It is not text, is blank and may not be, or holds half a character.
    """
    example = "'A red car on the street.' would work."
    if not isinstance(value, str):
        raise UserError(f"{name}={value!r}: must be text, not {type(value).__name__}; {example}")
    if not value.strip() and not allow_empty:
        raise UserError(f"{name}={value!r}: is empty; {example}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{name}={value!r}: holds half a character at {error.start}; {example}") from None
    return value


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number. A bool is one to Python, and is not one here."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_whole(
    name: str, value: object, lowest: int = 1, highest: int | None = None, unit: str = "", works: int | None = None
) -> int:
    """Return `value` as an int if it is a whole number from `lowest` to `highest`.

    Args:
        name: What the number is, for the message.
        value: The number given.
        lowest: The smallest number allowed.
        highest: The largest number allowed; None sets no limit.
        unit: What is counted, such as "frames".
        works: The number to suggest; by default the nearest allowed one.

    Raises:
        UserError: It is not such a number.
    """
    if is_whole(value) and lowest <= value and (highest is None or value <= highest):  # type: ignore[operator]
        return int(value)  # type: ignore[call-overload]
    span = f"from {lowest}" + ("" if highest is None else f" to {highest}")
    if works is None:
        works = lowest
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and value == value:
            near = max(value, lowest) if highest is None else min(max(value, lowest), highest)
            works = round(near) if abs(near) != float("inf") else lowest
    raise UserError(f"{name}={value!r}: must be a whole number{f' of {unit}' * bool(unit)} {span}; {works} would work.")
