"""How the package says that something is wrong, or worth knowing: errors, notes, near matches, shared checks."""

from __future__ import annotations

import contextlib
import difflib
import numbers
import warnings
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

_notes_of_this_run: ContextVar[set[str] | None] = ContextVar("notes_of_this_run", default=None)


class UserError(ValueError):
    """A mistake in what the user gave: one line with the value, the rule, and what would work.

    Args:
        message: The line.
        setting: The setting or argument with the mistake, such as "num_frames"; None when it is not about one alone.
            An interface shows the line beside that control.

    Example:
        >>> raise UserError("num_frames=32: must be 4k + 1; 29 or 33 would work.", setting="num_frames")
        Traceback (most recent call last):
        t2v_kit.errors.UserError: num_frames=32: must be 4k + 1; 29 or 33 would work.
    """

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


@contextlib.contextmanager
def fresh_notes() -> Iterator[None]:
    """A scope in which every note is given again, and each only once. `generate` opens one for each run."""
    token = _notes_of_this_run.set(set())
    try:
        yield
    finally:
        _notes_of_this_run.reset(token)


def give_note(message: str, given: set[str] | None = None) -> None:
    """Warn with `message`, unless the same note was given before in this run.

    The warning names the package instead of a line of code, because it is about the user's request.

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


def quoted(value: object, longest: int = 200) -> str:
    """`repr` of a user's value for an error message: one line of at most `longest` characters."""
    try:
        text = " ".join(line.strip() for line in repr(value).splitlines())
    except Exception:  # an integer of over 4300 digits, or a `__repr__` that fails
        return f"<{type(value).__name__}>"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


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

    Args:
        name: What the text is, for the message.
        value: The text.
        allow_empty: Whether blank text is allowed.

    Raises:
        UserError: `value` is not a string, is blank and may not be, or contains half a surrogate pair.
    """
    example = "'A red car on the street.' would work."
    if not isinstance(value, str):
        reason = f"must be text, not {type(value).__name__}"
    elif not value.strip() and not allow_empty:
        reason = "is empty"
    else:
        try:
            value.encode("utf-8")
            return value
        except UnicodeEncodeError as error:
            reason = f"holds half a character at {error.start}"
    raise UserError(f"{name}={quoted(value)}: {reason}; {example}", setting=name)


def is_whole(value: object) -> bool:
    """Whether `value` is an integer; True and False do not count as integers."""
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
            near: Any = max(value, lowest) if highest is None else min(max(value, lowest), highest)
            works = round(near) if abs(near) != float("inf") else lowest
    raise UserError(
        f"{name}={quoted(value)}: must be a whole number{f' of {unit}' * bool(unit)} {span}; {works} would work.",
        setting=name,
    )
