"""Toyland is the same everywhere, says what it draws, and draws what it says."""
from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from t2v_kit import toyland
from t2v_kit.toyland import captions
from t2v_kit.toyland import FPS, Scene, caption, held_out, random_scene, render, render_batch, truth
from t2v_kit.toyland.picture import draw

SIZE = dict(height=56, width=96, num_frames=9)
SCENE = Scene("car", "red", "street", "sunny", "right", "high", seed=7)
PAIR = Scene("dog", "red", "meadow", "sunset", "left", "high", ("balloon", "blue"), seed=11)
PROJECT_PROMPT = "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street."
PROJECT_SEED = 302288  # found by trying: the first caption seed that words it so
GOLDEN = [("motorcycle", "red", "street", "sunset", "left"), ("motorcycle", "red", "street", "night", "left"),
          ("motorcycle", "red", "street", "night", "right"), ("motorcycle", "red", "beach", "sunny", "left")]
ATTRIBUTES = dict(subject=toyland.SUBJECTS, colour=toyland.COLOURS, place=toyland.PLACES, sky=toyland.SKIES,
                  direction=toyland.DIRECTIONS, speed=toyland.SPEEDS)


# ---- scenes ----------------------------------------------------------------------------------------------

def test_a_seed_gives_the_same_scene_words_and_picture():
    one, two = random_scene(5), random_scene(5)
    assert one == two and caption(one) == caption(two)
    assert np.array_equal(render(one, **SIZE), render(two, **SIZE))


def test_scenes_cover_the_world():
    """Every word of every attribute comes up, a quarter of the scenes has two subjects, which always differ."""
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(1000)]
    for field, words in ATTRIBUTES.items():
        assert {getattr(s, field) for s in scenes} == set(words)
    pairs = [s for s in scenes if s.companion]
    assert .2 < len(pairs) / len(scenes) < .3
    assert all(s.companion[0] != s.subject and s.companion[1] != s.colour for s in pairs)


@pytest.mark.parametrize("wrong", [dict(subject="dragon"), dict(colour="pink"), dict(sky="hail"), dict(speed="fast"),
                                   dict(companion=("dragon", "red"))])
def test_words_outside_the_world_are_refused(wrong):
    with pytest.raises(ValueError, match="Toyland"):
        replace(SCENE, **wrong)


@pytest.mark.parametrize("wrong", [dict(subject="boat"), dict(companion=("boat", "white"))])
def test_a_boat_is_on_the_water_alone(wrong):
    with pytest.raises(ValueError, match="place='street' is not where a boat of Toyland can be; choose beach"):
        replace(SCENE, **wrong)
    assert replace(SCENE, **wrong, place="beach")
    scenes = [random_scene(seed, pair=.5) for seed in range(300)]
    assert {s.place for s in scenes if "boat" in dict(s.actors)} == {"beach"}


def test_the_held_out_tenth_is_fixed():
    """About a tenth of the combinations, independent of speed and seed, and these ones for ever: pocket's training
    depends on it."""
    combinations = [Scene(s, c, p, k, d, "slow") for s in toyland.SUBJECTS for c in toyland.COLOURS
                    for p in toyland.PLACES for k in toyland.SKIES for d in toyland.DIRECTIONS
                    if p == toyland.ONLY_AT.get(s, p)]
    out = [s for s in combinations if held_out(s)]
    assert len(combinations) == 3180 and .08 < len(out) / len(combinations) < .12
    assert [(s.subject, s.colour, s.place, s.sky, s.direction) for s in out[:4]] == GOLDEN
    assert all(held_out(replace(s, speed="high", seed=99)) for s in out[:20])


def test_a_pair_is_held_out_if_either_subject_is():
    out = next(s for s in (random_scene(i, pair=0, unseen=True) for i in range(9)) if s.subject != "ball")
    companion = ("ball", next(c for c in toyland.COLOURS if not held_out(replace(out, subject="ball", colour=c))))
    assert held_out(replace(out, companion=companion))
    assert held_out(replace(out, subject=companion[0], colour=companion[1], companion=(out.subject, out.colour)))


@pytest.mark.parametrize("unseen", [True, False])
def test_random_scenes_keep_to_their_side(unseen):
    assert all(held_out(random_scene(i, unseen=unseen)) is unseen for i in range(100))


# ---- words -----------------------------------------------------------------------------------------------

def test_the_projects_prompt_is_inside_the_world():
    """Word for word, for a scene on a sunny street."""
    scene = Scene("motorcycle", "red", "street", "sunny", "right", "high")
    assert caption(scene, seed=PROJECT_SEED, omit=("colour", "direction")) == PROJECT_PROMPT


def test_captions_vary_in_wording_and_order():
    captions = {caption(SCENE, seed=i) for i in range(100)}
    assert len(captions) > 90
    assert len({text.split()[0].lower() for text in captions}) > 10


def says(text: str, words: list[str]) -> bool:
    return any(word.lower() in text.lower() for word in words)


@pytest.mark.parametrize("seed", range(40))
def test_a_caption_says_everything(seed):
    scene = random_scene(seed)
    text = caption(scene)
    for subject, colour in scene.actors:
        assert says(text, [noun.format(c=colour + " ") for noun in captions.NOUNS[subject]])
    assert says(text, [*captions.PLACE_WORDS[scene.place], captions.ABOVE[scene.place]])
    assert says(text, captions.SKY_WORDS[scene.sky] + captions.SKY_LEADS[scene.sky])
    assert says(text, captions.SPEED_WORDS[scene.speed] + captions.SPEED_TAGS[scene.speed])
    assert says(text, captions.DIRECTION_WORDS[scene.direction])


WORDS = {"place": [captions.PLACE_WORDS, {p: [words] for p, words in captions.ABOVE.items()}],
         "sky": [captions.SKY_LEADS, captions.SKY_WORDS], "speed": [captions.SPEED_TAGS, captions.SPEED_WORDS],
         "direction": [captions.DIRECTION_WORDS], "colour": [{c: [c] for c in toyland.COLOURS}]}


@pytest.mark.parametrize("attribute", WORDS)
def test_what_is_omitted_is_not_in_the_words(attribute):
    """No phrase for any value of it, and the punctuation is mended."""
    phrases = [phrase for table in WORDS[attribute] for texts in table.values() for phrase in texts]
    said = re.compile(rf"\b({'|'.join(map(re.escape, phrases))})\b(?! sky)", re.IGNORECASE)  # the blue sky
    for seed in range(100):
        assert said.search(caption(random_scene(seed)))
        text = caption(random_scene(seed), omit=(attribute,))
        assert not said.search(text), text
        assert not any(wrong in text for wrong in ("  ", " ,", ",,", "..", "{", " .")), text


# ---- pictures --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scene", [SCENE, PAIR, replace(SCENE, sky="snow", place="mountains", subject="robot"),
                                   replace(SCENE, sky="rain", place="beach", subject="boat")])
def test_any_resolution_shows_the_same_picture(scene):
    """Drawn four times as large and averaged down, it is the small picture but for antialiasing."""
    small = render_batch([scene], 56, 96, 5)
    large = torch.nn.functional.avg_pool3d(render_batch([scene], 224, 384, 5), (1, 4, 4))
    assert (small - large).abs().mean() < .01
    shifted = torch.nn.functional.pad(large, (2, 0))[..., :-2]  # two pixels aside would be seen at once
    assert (small - shifted).abs().mean() > 2 * (small - large).abs().mean()


def test_render_keeps_its_contract():
    video = render(SCENE, 40, 64, 5)
    assert video.shape == (5, 40, 64, 3) and video.dtype == np.uint8
    batch = render_batch([SCENE], 40, 64, 5)
    assert batch.shape == (1, 3, 5, 40, 64) and batch.dtype == torch.float32
    assert batch.min() >= 0 and batch.max() <= 1
    assert render(SCENE, 40, 64, 1).shape == (1, 40, 64, 3)


def test_everything_is_drawn_on_the_device_asked_for():
    """"meta" stands for a GPU: it mixes with the CPU's tensors as little."""
    canvas = draw([random_scene(seed, pair=.5) for seed in range(60)], 16, 24, 5, FPS, "meta", with_truth=True)
    assert {x.device.type for x in (canvas.image, canvas.owner, canvas.flow)} == {"meta"}


def test_a_batch_draws_each_scene_as_alone():
    scenes = [random_scene(i) for i in range(5)]
    batch = render_batch(scenes, **SIZE)
    for scene, video in zip(scenes, batch):
        assert torch.allclose(video, render_batch([scene], **SIZE)[0], atol=1e-5)


@pytest.mark.parametrize("field", [*ATTRIBUTES, "companion", "seed"])
def test_every_attribute_shows(field):
    """Changing any one field, to any other value, changes the video."""
    values = (ATTRIBUTES | dict(companion=(None, ("cat", "green"), ("cat", "white")), seed=(1, 2, 3)))[field]
    scene = replace(SCENE, place="beach")  # which has everyone
    videos = render_batch([replace(scene, **{field: value}) for value in values], **SIZE)
    for i in range(len(videos)):
        for j in range(i):
            changed = (videos[i] - videos[j]).abs().amax(0) > .1
            assert changed.float().mean() > .004, (values[i], values[j])


# ---- the truth behind them -------------------------------------------------------------------------------

@pytest.mark.parametrize("subject", toyland.SUBJECTS)
def test_the_mask_is_where_the_subject_is(subject):
    """Repainting the subject changes pixels inside its mask only, and a good part of them."""
    scene, size = replace(SCENE, subject=subject, place="beach", seed=21), dict(height=112, width=192, num_frames=3)
    changed = np.abs(render(scene, **size).astype(int) - render(replace(scene, colour="green"), **size)).max(-1) > 24
    mask = truth(scene, **size).masks[0]
    assert truth(scene, **size).masks.shape == (1, 3, 112, 192) and mask.any((1, 2)).all()
    assert (changed & ~grown(mask)).sum() == 0
    assert (changed & mask).sum() > .12 * mask.sum()


def grown(mask: np.ndarray) -> np.ndarray:
    """One pixel larger all around: antialiased borders are shared."""
    t = torch.from_numpy(mask).float()[None]
    return torch.nn.functional.max_pool2d(t, 3, 1, 1)[0].numpy() > 0


def test_two_subjects_have_two_masks_that_do_not_overlap():
    masks = truth(PAIR, **SIZE).masks
    assert masks.shape == (2, 9, 56, 96) and masks.any((2, 3)).all()
    assert not (masks[0] & masks[1]).any()
    video, other = (render(s, **SIZE).astype(int) for s in (PAIR, replace(PAIR, companion=("balloon", "green"))))
    changed = np.abs(video - other).max(-1) > 24
    assert changed.any() and not (changed & ~grown(masks[1])).any()  # the masks are in the order of scene.actors


@pytest.mark.parametrize("scene", [SCENE, replace(SCENE, direction="left"), replace(SCENE, speed="slow"),
                                   replace(SCENE, subject="ball", seed=4), replace(SCENE, subject="balloon", seed=5)],
                         ids=lambda s: f"{s.subject}-{s.direction}-{s.speed}")
def test_the_flow_is_the_motion_of_the_mask(scene):
    """The mask's centre goes, from frame to frame, where the flow says; nothing else moves on a clear street but
    the clouds."""
    size = dict(height=112, width=192, num_frames=9)
    true = truth(scene, **size)
    mask = true.masks[0]
    assert true.flow.shape == (9, 112, 192, 2) and true.flow.dtype == np.float32
    ys, xs = np.mgrid[:112, :192]
    centre = np.array([[(m * xs).sum(), (m * ys).sum()] for m in mask]) / mask.sum((1, 2))[:, None]
    flow = np.array([f[m].mean(0) for f, m in zip(true.flow, mask)])
    assert np.abs(np.diff(centre, axis=0) - flow[:-1]).max() < .6  # a wheel's edge, a spark of rounding
    assert np.abs(centre[-1] - centre[0] - flow[:-1].sum(0)).max() < 1.2
    assert (np.sign(flow[:, 0]) == (1 if scene.direction == "right" else -1)).all()
    ground = true.flow[:, 80:][~mask[:, 80:]]
    assert np.abs(ground).max() == 0


@pytest.mark.parametrize("sky, clear, down", [("snow", "night", 1.05), ("rain", "sunny", 4.2)])
def test_what_falls_moves_but_hides_no_subject(sky, clear, down):
    """At 112 rows a flake falls 1.05 pixels a frame, a drop 4.2; the masks are those of a clear sky."""
    size = dict(height=112, width=192, num_frames=3)
    clear, true = (truth(replace(SCENE, sky=weather, place="mountains"), **size) for weather in (clear, sky))
    assert np.array_equal(true.masks, clear.masks)
    falling = (true.flow != clear.flow).any(-1)
    assert .002 < falling.mean() < .1 and np.allclose(true.flow[falling][:, 1], down, atol=1e-3)


def test_high_motion_is_faster_than_slow_motion():
    size = dict(height=56, width=96, num_frames=3)
    for seed in range(5):
        slow, high = (truth(replace(SCENE, speed=speed, seed=seed), **size) for speed in ("slow", "high"))
        assert high.flow[high.masks[0]][:, 0].mean() > 2 * slow.flow[slow.masks[0]][:, 0].mean()
