"""A data set of Toyland's clips on disk, in the layout that training reads."""

from __future__ import annotations

import random
from pathlib import Path

from .. import toyland
from ..errors import check_whole
from ..video.files import save_video


def write_toyland(
    folder: str | Path,
    count: int,
    height: int = 112,
    width: int = 192,
    num_frames: int = 33,
    seed: int = 0,
    **fixed: str | tuple[str, ...],
) -> Path:
    """Write clips of Toyland with captions, as a folder that `train` takes.

    Args:
        folder: Made where it is missing; files of the same names are replaced.
        count: How many clips.
        height, width: Pixels, even.
        num_frames: Frames of a clip, at 16 a second.
        seed: Which scenes.
        **fixed: Fields of a scene that are not drawn freely, each with its value or some to draw from, as in
            subject=("cat", "dog"), sky="night".

    Returns:
        The folder, with 000.mp4, 000.txt and so on.

    Raises:
        UserError: `count` is not a whole number from 1, or a side is odd.
        ValueError: A word is not in Toyland.

    Example:
        >>> write_toyland("cats", 20, subject="cat")  # doctest: +SKIP
    """
    count = check_whole("count", count, unit="clips", works=20)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    choices = {"subject": toyland.SUBJECTS, "colour": toyland.COLOURS, "place": toyland.PLACES, "sky": toyland.SKIES}
    choices |= {"direction": toyland.DIRECTIONS, "speed": toyland.SPEEDS}
    choices |= {name: (value,) if isinstance(value, str) else tuple(value) for name, value in fixed.items()}
    for number in range(count):
        words = {name: rng.choice(values) for name, values in choices.items()}
        if "place" not in fixed and words["subject"] in toyland.ONLY_AT:
            words["place"] = toyland.ONLY_AT[words["subject"]]
        scene = toyland.Scene(**words, seed=rng.getrandbits(31))
        save_video(folder / f"{number:03d}.mp4", toyland.render(scene, height, width, num_frames), toyland.FPS)
        (folder / f"{number:03d}.txt").write_text(toyland.caption(scene) + "\n", encoding="utf-8")
    return folder
