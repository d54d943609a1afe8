"""What holds for every size, tile, chunk and plan, not only for examples. Few draws, the same in every run."""

import dataclasses
import json
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from t2v_kit import UserError, steady
from t2v_kit.hunyuan.chunks import in_chunks, slices
from t2v_kit.memory.choose import as_plan
from t2v_kit.memory.estimate import estimate
from t2v_kit.memory.footprint import attention_flops, linear_flops
from t2v_kit.memory.machine import Machine
from t2v_kit.memory.plan import DTYPES, OFFLOADS, QUANTISATIONS, Part, Plan, Size
from t2v_kit.memory.weights import Weights
from t2v_kit.stages.upscaling.enlarging import upscale_frames
from t2v_kit.stages.upscaling.network import SMALLEST_TILE, halved, tiled
from t2v_kit.stages.upscaling.planes import as_planes

few = settings(max_examples=25, deadline=None, derandomize=True)
sides = st.integers(1, 40)

parts = st.builds(Part, *(st.sampled_from(list(known)) for known in (DTYPES, QUANTISATIONS, OFFLOADS)))
tiles = st.tuples(st.integers(1, 64), st.integers(1, 64)).map(lambda t: (16 * max(t), 16 * min(t)))
plans = st.builds(
    Plan,
    name=st.text(max_size=20),
    text_encoder=parts,
    transformer=parts,
    vae=parts,
    one_stage=st.booleans(),
    tile=st.none() | tiles,
    slicing=st.booleans(),
    chunk=st.none() | st.integers(1, 10**6),
    attention=st.sampled_from(["native", "flash", "sage"]),
    compile=st.booleans(),
)


# --- plans and estimates


@few
@given(plans)
def test_a_plan_comes_back_from_json(plan):
    """Equal and of the same types, through `as_plan`, which load and the command line use, as well."""
    stored = json.loads(json.dumps(plan.as_dict()))
    for back in (Plan(**stored), as_plan(stored, machine=Machine(24, 64))):
        assert back == plan and hash(back) == hash(plan) and back.as_dict() == plan.as_dict()


@few
@given(size=st.integers(-40, 600), distance=st.integers(-40, 600))
@example(256, 256)
@example(16, 16)
@example(256, 0)
def test_a_tile_is_taken_exactly_when_it_can_be_laid(size, distance):
    """Multiples of 16, and no gap between two tiles."""
    good = 0 < distance <= size and size % 16 == 0 and distance % 16 == 0
    if good:
        assert Plan(tile=[size, distance]).tile == (size, distance)
    else:
        with pytest.raises(UserError, match=r"\(256, 192\) would work"):
            Plan(tile=(size, distance))


PLANS = [
    Plan(),
    Plan(chunk=512, tile=(256, 192)),
    Plan(transformer=Part("bfloat16", "none", "group"), vae=Part("float16", "none", "model"), compile=True),
]


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    plan=st.sampled_from(PLANS),
    size=st.tuples(st.integers(2, 8), st.integers(2, 8), st.integers(0, 4)),
    more=st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)),
)
def test_a_larger_video_never_needs_less(plan, size, more):
    """In any direction: GPU memory, RAM, what is read and the time of every stage."""
    small, large = (
        Size(32 * height, 32 * width, 4 * time + 1) for height, width, time in (size, map(sum, zip(size, more)))
    )
    for one, other in zip(*(estimate(plan, each, "pocket").rows for each in (small, large))):
        for key in ("vram_gb", "ram_gb", "disk_gb", "work_gb", "seconds"):
            assert one[key] <= other[key] * (1 + 1e-9), (one["stage"], key)


@few
@given(tokens=st.integers(1, 10**6), times=st.integers(2, 9))
def test_operations_grow_as_they_must(tokens, times):
    """Matrices linearly with the tokens, attention with their square; twice the blocks, twice the operations."""
    config = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "num_single_layers": 5}
    double = config | {"num_layers": 6, "num_single_layers": 10}
    for count, power in ((linear_flops, 1), (attention_flops, 2)):
        assert count(config, times * tokens) == pytest.approx(times**power * count(config, tokens))
        assert count(double, tokens) == pytest.approx(2 * count(config, tokens))


@few
@given(st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=6), min_size=1, max_size=3), st.integers(0, 100))
def test_streamed_weights_are_two_blocks_and_the_rest(stacks, rest):
    """At most two neighbours and what is in no block; never more than all, and never less than the largest block."""
    blocks = [block for stack in stacks for block in stack]
    network = Weights(sum(blocks) + rest, tuple(map(tuple, stacks)))
    *working, idle = network.streamed
    assert network.rest == rest == idle and len(working) == len(stacks)
    assert rest + max(blocks) <= max(working) <= network.total
    neighbours = [a + b for a, b in zip(blocks, [*blocks[1:], 0])]
    assert max(working) == rest + max(neighbours)


# --- chunks and tiles


@few
@given(length=st.integers(0, 500), size=st.integers(1, 600))
def test_slices_cover_everything_once(length, size):
    pieces = list(slices(length, size))
    assert [n for piece in pieces for n in range(piece.start, piece.stop)] == list(range(length))
    assert all(0 < piece.stop - piece.start <= size for piece in pieces)


@few
@given(length=st.integers(1, 60), size=st.integers(1, 70))
def test_chunks_give_what_the_whole_gives(length, size):
    """In place as well as elsewhere."""
    tokens = torch.arange(3.0 * length).view(1, length, 3)
    out = in_chunks(lambda x: 2 * x + 1, tokens, size, out=torch.empty_like(tokens))
    assert torch.equal(out, 2 * tokens + 1)
    assert torch.equal(in_chunks(lambda x: 2 * x + 1, tokens, size, out=tokens), out)


class Enlarger(torch.nn.Module):
    """An upscaler for `tiled`: a 3x3 blur with zeros around, then every pixel as scale x scale ones."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale, self.blur = scale, torch.nn.Conv2d(3, 3, 3, padding=1, bias=False, groups=3)
        torch.nn.init.constant_(self.blur.weight, 1 / 9)

    def forward(self, pixels):
        return F.interpolate(self.blur(pixels), scale_factor=self.scale)


@few
@given(height=sides, width=sides, tile=st.integers(1, 5).map(lambda n: 8 * n), scale=st.integers(1, 4))
@example(40, 7, 8, 2)
@torch.no_grad()
def test_tiles_give_the_whole_frame(height, width, tile, scale):
    """At any size, also where the last tile is one pixel wide: nothing lost, doubled or shifted."""
    enlarger = Enlarger(scale)
    net = types.SimpleNamespace(model=enlarger, scale=scale)

    class Net:
        model, architecture = enlarger, types.SimpleNamespace(id="Compact")

        def __call__(self, pixels):
            seen.append(pixels.shape[2:])
            return enlarger(pixels)

    Net.scale, seen = net.scale, []
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    assert torch.allclose(tiled(Net(), pixels, tile), enlarger(pixels), atol=1e-6)
    if tile < max(height, width):
        assert len(seen) == -(-height // tile) * -(-width // tile)
        assert (
            max(max(shape) for shape in seen) <= tile + 2 * 8
        )  # one convolution looks 8 pixels around, in whole eights


@few
@given(batch=st.integers(1, 64), tile=st.integers(0, 64).map(lambda n: 8 * n), side=st.integers(1, 4000))
def test_less_at_once_ends(batch, tile, side):
    """Every retry takes less than the one before, and frames are cut only once there is one at a time."""
    for _ in range(40):
        try:
            now = halved(batch, tile, side)
        except UserError:
            assert batch == 1 and min(tile or side, side) <= SMALLEST_TILE
            return
        assert now[0] < batch and now[1] == tile if batch > 1 else now[0] == 1
        if batch == 1:
            assert now[1] % 8 == 0 and SMALLEST_TILE <= now[1] < min(tile or side, side)
        batch, tile = now
    pytest.fail("it never ends")


@few
@given(scale=st.floats(1, 16, allow_nan=False), tile=st.integers(0, 20), batch=st.integers(1, 9))
@example(1, 0, 1)
@example(16, 1, 1)
def test_options_within_their_ranges_are_taken(scale, tile, batch):
    """And what lies just outside of them is refused, before the first frame."""
    assert list(upscale_frames([], scale=scale, tile=8 * tile, batch=batch, progress=False)) == []
    for wrong in ({"scale": 0.999}, {"scale": 16.001}, {"tile": 8 * tile + 4}, {"tile": -8}, {"batch": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}="):
            upscale_frames([], progress=False, **wrong)


# --- colours and steadiness


@few
@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(1, 6), st.integers(1, 6))
@example((255, 255, 255), 1, 1)
@example((0, 0, 0), 1, 2)
@example((255, 0, 0), 2, 1)
@example((0, 0, 255), 1, 1)
def test_planes_are_bt709_in_the_limited_range(colour, half_height, half_width):
    """By ITU-R BT.709-6, items 3.2 and 3.4; black is 16, white 235, and grey has no colour."""
    height, width = 2 * half_height, 2 * half_width
    pixels = torch.tensor(colour).div(255).view(1, 3, 1, 1).expand(1, 3, height, width)
    planes = as_planes(pixels.contiguous())
    assert planes.shape == (1, height * 3 // 2, width)
    red, green, blue = (value / 255 for value in colour)
    bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    wanted = (16 + 219 * bright, 128 + 224 * (blue - bright) / 1.8556, 128 + 224 * (red - bright) / 1.5748)
    flat, count = planes[0].ravel().astype(int), height * width
    for plane, value in zip((flat[:count], flat[count : count * 5 // 4], flat[count * 5 // 4 :]), wanted):
        assert np.abs(plane - value).max() <= 0.51


def moving(level: int, x: int, width: int = 40) -> np.ndarray:
    """Two grey frames (2, 8, width, 3), in the second of which the columns from x on are brighter by `level`."""
    video = np.full((2, 8, width, 3), 100, np.uint8)
    video[1, :, x:] += np.uint8(level)
    return video


@few
@given(level=st.integers(60, 155), x=st.integers(8, 30))
def test_steady_leaves_what_moves_and_what_is_near_it(level, x):
    """Two pixels around what moves count as moving as well: the network, which looks around, changes those too.

    The mean over 5 pixels reaches 2 pixels past the edge, so 4 in all are shown as they came; further away noise is
    held still.
    """
    video = moving(level, x)
    noisy = video.astype(int)
    noisy[1] += 10  # what the network makes of the second frame flickers everywhere
    enlarged = noisy.astype(np.uint8)
    held = steady(enlarged, video, motion=False)
    assert np.array_equal(held[0], enlarged[0])
    assert np.array_equal(held[1, :, x - 4 :], enlarged[1, :, x - 4 :])
    assert np.array_equal(held[1, :, : x - 4], np.full_like(held[1, :, : x - 4], 102))  # 0.8 of what was shown


@few
@given(keep=st.floats(0, 0.99), tolerance=st.floats(0.1, 100))
def test_steady_keeps_as_much_as_it_says(keep, tolerance):
    """Of a still scene, `keep` of what was shown; of one frame nothing changes."""
    video = np.full((2, 4, 4, 3), 50, np.uint8)
    enlarged = np.stack([np.full((8, 8, 3), 0, np.uint8), np.full((8, 8, 3), 200, np.uint8)])
    held = steady(enlarged, video, tolerance, keep)
    assert held.dtype == np.uint8 and np.abs(held[1].astype(float) - 200 * (1 - keep)).max() <= 0.51
    assert np.array_equal(steady(enlarged[:1], video[:1], tolerance, keep), enlarged[:1])


@pytest.mark.parametrize("wrong", [{"keep": 1}, {"keep": -0.1}, {"tolerance": 0}, {"keep": float("nan")}])
def test_steady_refuses_numbers_out_of_range(wrong):
    with pytest.raises(UserError, match=r"keep=.*try 0.8 and 8"):
        steady(moving(9, 8), moving(9, 8), **wrong)


def test_steady_needs_as_many_frames():
    with pytest.raises(UserError, match="2 frames came from 1"):
        steady(moving(9, 8), moving(9, 8)[:1])


@few
@given(plans, st.sampled_from([field.name for field in dataclasses.fields(Plan)]))
def test_a_misspelt_field_of_a_plan_is_refused(plan, name):
    stored = plan.as_dict()
    assume(name + "s" not in stored)
    with pytest.raises(UserError, match=f"memory plan: has no '{name}s'"):
        as_plan({**stored, name + "s": stored[name]}, machine=Machine(24, 64))
