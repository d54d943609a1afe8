"""The architecture's drawing: what is lit is in colour, the rest is pale, and the output says which."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from t2v_kit import UserError, show_diagram
from t2v_kit.view.diagram.drawing import PARTS, diagram


def share(picture: Image.Image, part: str) -> float:
    """How much of the picture has exactly the part's own colour."""
    colour = [int(PARTS[part][0][at : at + 2], 16) for at in (1, 3, 5)]
    return float((np.asarray(picture) == colour).all(axis=2).mean())


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("lit", PARTS)
def test_only_the_lit_part_is_in_colour(lit, small):
    picture = diagram(lit, small)
    for part in PARTS:
        assert (share(picture, part) > 0.0005) == (part == lit), part


def test_nothing_lit_means_everything_is():
    for small in (True, False):
        picture = diagram(None, small)
        assert all(share(picture, part) > 0.0005 for part in PARTS)


@pytest.mark.parametrize("small, width, most", [(True, 900, 25_000), (False, 1200, 130_000)])
def test_shown_small_sharp_and_with_words(monkeypatch, small, width, most):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, raw: shown.append((data, metadata)))
    show_diagram("vae", small)
    [(data, metadata)] = shown
    assert "Lit: vae, latents become frames" in data["text/plain"]
    assert metadata["image/png"] == {"width": width, "alt": data["text/plain"]}
    png = base64.b64decode(data["image/png"])
    assert len(png) < most and Image.open(io.BytesIO(png)).width == 2 * width


def test_the_same_picture_every_time():
    """A notebook that is run again stores the same bytes."""
    assert diagram("noise").tobytes() == diagram("noise").tobytes()


def test_an_unknown_part_is_told_the_nearest():
    with pytest.raises(UserError, match=r"lit='transformers': .*did you mean 'transformer'\?"):
        show_diagram("transformers")
    with pytest.raises(UserError, match=r"lit=7: .*one of prompt, noise"):
        diagram(7)
