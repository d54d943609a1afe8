"""Videos and pictures that a run is given: read, fitted, noised, held while the rest is made, continued, recorded."""

import json
import warnings
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from conftest import PROMPT
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from PIL import Image
from test_cli import status
from test_denoise import assert_same_bits

import t2v_kit as t2v
from t2v_kit.errors import UserError
from t2v_kit.run.generating import generate, resume
from t2v_kit.run.target import read_record
from t2v_kit.settings import Settings
from t2v_kit.stages.decoding import decode, encode, latent_frames
from t2v_kit.stages.denoising import denoise
from t2v_kit.stages.known import Known, covered, known_parts, renoise
from t2v_kit.stages.noise import add_noise, initial_latents, sigma_schedule, start_step
from t2v_kit.stages.prompt import encode_prompt
from t2v_kit.video.clips import digest_of, fit_clip, read_clip
from t2v_kit.video.metrics import psnr

QUICK = {"upscale": "none", "progress": False}


def noise_clip(frames: int = 9, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, of which an encoder keeps something."""
    coarse = torch.rand(1, 3, frames, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    return (fine[0].permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()


def counting_file(path, rate, times, base=Fraction(1, 1000)):
    """A lossless film whose n-th frame has the grey level 5 n, shown at times[n] seconds."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 48, 32, "bgr0", base
        stream.codec_context.time_base = base
        for number, seconds in enumerate(times):
            picture = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 5 * number, np.uint8), "rgb24")
            picture.pts, picture.time_base = round(Fraction(seconds) / base), base
            file.mux(stream.encode(picture.reformat(format="bgr0")))
        file.mux(stream.encode(None))
    return path


def numbers(clip) -> list[int]:
    return (clip.frames[:, 0, 0, 0] // 5).tolist()


@pytest.fixture
def quiet():
    """Notes are wanted here, and not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A clip of the tiny model's size as a file whose pixels are stored without loss."""
    path = tmp_path_factory.mktemp("film") / "in.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgr0"
        for frame in noise_clip():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="bgr0")))
        file.mux(stream.encode(None))
    return path


class TestReading:
    def test_24_frames_a_second_become_16_by_leaving_out_every_third(self, tmp_path):
        film = counting_file(tmp_path / "in.mkv", 24, [Fraction(n, 24) for n in range(25)])
        assert numbers(read_clip(film, fps=16)) == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22, 24]
        assert numbers(read_clip(film, fps=24)) == numbers(read_clip(film)) == list(range(25))
        assert numbers(read_clip(film, fps=48))[:6] == [0, 0, 1, 1, 2, 2]

    def test_timestamps_count_and_not_the_stated_rate(self, tmp_path):
        """0.5 s of silence between frames 3 and 4 are 8 frames at 16 a second."""
        times = [Fraction(n, 16) for n in range(4)] + [Fraction(n, 16) for n in range(12, 16)]
        film = counting_file(tmp_path / "in.mkv", 16, times)
        assert numbers(read_clip(film, fps=16)) == [0, 1, 2, *[3] * 9, 4, 5, 6, 7]

    def test_of_a_long_file_no_more_is_read_than_is_wanted(self, tmp_path):
        film = counting_file(tmp_path / "in.mkv", 16, [Fraction(n, 16) for n in range(40)])
        clip = read_clip(film, fps=16, most=9)
        assert numbers(clip) == list(range(9)) and clip.more

    def test_a_picture_is_one_frame_from_a_file_an_array_and_pillow(self, tmp_path):
        picture = noise_clip(1)[0]
        Image.fromarray(picture).save(tmp_path / "in.png")
        for source in (tmp_path / "in.png", picture, Image.fromarray(picture)):
            np.testing.assert_array_equal(read_clip(source, fps=16).frames, picture[None])

    def test_the_digest_is_of_the_content(self, film, tmp_path):
        copy = tmp_path / "elsewhere.mkv"
        copy.write_bytes(film.read_bytes())
        assert digest_of(film) == digest_of(copy) == read_clip(copy).digest
        assert digest_of(noise_clip()) != digest_of(noise_clip(seed=1)) != digest_of(noise_clip().reshape(9, 48, 32, 3))


class TestFitting:
    def test_crop_covers_and_keeps_the_middle(self):
        clip = read_clip(np.arange(100, dtype=np.uint8)[None, None, :, None].repeat(50, 1).repeat(3, 3))
        with pytest.warns(UserWarning, match="0 rows and 20 columns cut off around the middle"):
            fitted = fit_clip(clip, 50, 80, 1, "crop")
        assert fitted[0, 0, :, 0].tolist() == list(range(10, 90))

    def test_crop_scales_to_cover(self):
        with pytest.warns(UserWarning, match="scaled from 64x64 to 48x48, 16 rows and 0 columns cut off"):
            assert fit_clip(read_clip(noise_clip(5, 64, 64)), 32, 48, 5, "crop").shape == (5, 32, 48, 3)

    def test_pad_lies_within_on_black_and_holds_the_last_frame(self):
        clip = read_clip(np.full((3, 64, 64, 3), 200, np.uint8))
        with pytest.warns(UserWarning, match="0 black rows and 16 black columns added; the last frame held for 2 more"):
            fitted = fit_clip(clip, 32, 48, 5, "pad")
        assert (fitted[:, :, 8:40] == 200).all() and not fitted[:, :, :8].any() and not fitted[:, :, 40:].any()

    @pytest.mark.parametrize("fit, shape", [("crop", (5, 24, 40)), ("pad", (9, 32, 48))])
    def test_without_a_size_it_is_the_nearest_whole_one(self, fit, shape, quiet):
        assert fit_clip(read_clip(noise_clip(8, 30, 46)[:, :, :, :]), fit=fit).shape[:3] == shape

    def test_longer_clips_keep_their_first_frames_and_say_so(self):
        with pytest.warns(UserWarning, match="the first 5 frames kept"):
            assert len(fit_clip(read_clip(noise_clip(9)), 32, 48, 5, "crop")) == 5

    def test_what_fits_is_the_same_array_without_a_note(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(fit_clip(read_clip(noise_clip()), 32, 48, 9, "crop"), noise_clip())

    @pytest.mark.parametrize(
        "clip, size, fit, says",
        [
            (
                noise_clip(8),
                (32, 48, 9),
                "crop",
                "video has 8 frames: 9 are needed; num_frames=5 would work.*fit='pad'",
            ),
            (noise_clip(9), (32, 32, 9), "refuse", "32x48 pixels: must be 32x32.*fit='crop' would work"),
            (noise_clip(9), (32, 48, 5), "refuse", "9 frames: must have 5"),
            (noise_clip(9), (32, 48, 9), "squeeze", "fit='squeeze': must be crop, pad or refuse"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, clip, size, fit, says):
        with pytest.raises(UserError, match=says):
            fit_clip(read_clip(clip), *size, fit)

    def test_encode_takes_files_and_fits_them(self, tiny32, film, quiet):
        assert torch.equal(encode(tiny32, film), encode(tiny32, noise_clip()))
        assert encode(tiny32, film, fit="crop", height=16, width=32, num_frames=5).shape == (1, 4, 2, 2, 4)
        assert encode(tiny32, Image.fromarray(noise_clip(1)[0])).shape == (1, 4, 1, 4, 6)
        with pytest.raises(UserError, match="height=20: must be a multiple of 8"):
            encode(tiny32, film, height=20)


class TestStrength:
    @pytest.mark.parametrize("strength, start", [(0.0, 3), (1 / 3, 2), (2 / 3, 1), (1.0, 0)])
    def test_it_is_the_share_of_the_steps(self, tiny32, settings, strength, start):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert start_step(tiny32, settings, strength) == start

    def test_a_share_between_steps_is_said(self, tiny32, settings):
        with pytest.warns(UserWarning, match="strength=0.6 of 3 steps is 1.8: 2 are run, as with strength=0.667"):
            assert start_step(tiny32, settings, 0.6) == 1

    def test_the_ends_are_noise_and_the_video(self, tiny32, settings):
        noise, clean = initial_latents(tiny32, settings), encode(tiny32, noise_clip())
        assert torch.equal(initial_latents(tiny32, settings, noise_clip(), 1.0), noise)
        assert torch.equal(initial_latents(tiny32, settings, noise_clip(), 0.0), clean)
        assert torch.equal(initial_latents(tiny32, settings, clean, 1.0), noise)

    def test_strength_1_is_text_to_video_and_0_the_reconstruction(self, tiny32, quiet):
        plain = generate(PROMPT, tiny32, **QUICK)
        again = generate(PROMPT, tiny32, video=noise_clip(), strength=1, **QUICK)
        assert torch.equal(plain.latents, again.latents) and np.array_equal(plain.video, again.video)
        kept = generate(PROMPT, tiny32, video=noise_clip(), strength=0, **QUICK)
        np.testing.assert_array_equal(kept.video, decode(tiny32, encode(tiny32, noise_clip())))

    @pytest.mark.parametrize("strength, run", [(1 / 3, 1), (2 / 3, 2), (1.0, 3)])
    def test_it_is_diffusers_video_to_video(self, tiny, plain, settings, strength, run):
        """The loop of its pipelines, get_timesteps and scale_noise as in WanVideoToVideoPipeline, on this network."""
        full = replace(settings, strength=strength).check(tiny)
        prompt, clean = encode_prompt(tiny, PROMPT), encode(tiny, noise_clip())
        ours = initial_latents(tiny, full, clean)
        steps = list(denoise(tiny, prompt, ours, full, start=start_step(tiny, full)))
        assert_same_bits(steps, reference(plain, full, prompt, clean, run))


def reference(pipe, full, prompt, clean, run, mask=None):
    """Latents after each step, by diffusers' scheduler and transformer alone; mask: 1 where the video is made anew."""
    dtype = pipe.transformer.dtype
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=full.flow_shift)
    sigmas = np.linspace(1.0, 0.0, full.num_inference_steps + 1)[:-1]
    scheduler.set_timesteps(sigmas=sigmas)
    begin = max(full.num_inference_steps - min(int(full.num_inference_steps * full.strength + 1e-9), len(sigmas)), 0)
    assert len(sigmas) - begin == run
    timesteps = scheduler.timesteps[begin:]
    scheduler.set_begin_index(begin)
    noise = torch.randn(clean.shape, generator=torch.Generator("cpu").manual_seed(full.seed))
    latents, made = scheduler.scale_noise(clean, timesteps[:1], noise), []
    for index, timestep in enumerate(timesteps):
        with torch.no_grad():
            velocity = pipe.transformer(
                hidden_states=latents.to(dtype),
                timestep=timestep.expand(1).to(latents.dtype),
                encoder_hidden_states=prompt.prompt_embeds.to(dtype),
                encoder_attention_mask=prompt.mask.to(dtype),
                pooled_projections=prompt.pooled.to(dtype),
                guidance=torch.tensor([full.guidance_scale], dtype=dtype) * 1000.0,
                return_dict=False,
            )[0]
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        if mask is not None:  # as StableDiffusion3InpaintPipeline does after each step
            last = index == len(timesteps) - 1
            given = clean if last else scheduler.scale_noise(clean, timesteps[index + 1 : index + 2], noise)
            latents = (1 - mask).to(dtype) * given.to(dtype) + mask.to(dtype) * latents
        made.append(latents)
    return made


class TestKnown:
    def test_it_is_diffusers_inpainting(self, tiny, plain, settings):
        full = replace(settings, strength=1.0).check(tiny)
        prompt, clean = encode_prompt(tiny, PROMPT), encode(tiny, noise_clip())
        given = torch.zeros(1, 1, 3, 4, 6, dtype=torch.bool)
        given[:, :, 0], given[..., :2] = True, True
        steps = list(denoise(tiny, prompt, initial_latents(tiny, full), full, known=Known(clean, given)))
        assert_same_bits(steps, reference(plain, full, prompt, clean, 3, (~given).float()))

    @pytest.mark.parametrize("resample", [1, 3])
    def test_what_is_known_is_at_each_steps_noise_level(self, tiny32, settings, resample):
        full = replace(settings, resample=resample).check(tiny32)
        clean = encode(tiny32, noise_clip())
        given = torch.zeros(1, 1, 3, 4, 6, dtype=torch.bool)
        given[:, :, 1] = True
        noise, sigmas = initial_latents(tiny32, full), sigma_schedule(tiny32, full)
        prompt = encode_prompt(tiny32, PROMPT)
        steps = list(denoise(tiny32, prompt, noise, full, known=Known(clean, given)))
        assert [step.index for step in steps] == [0, 1, 2]
        for step in steps:
            wanted = add_noise(clean, noise, sigmas[step.index + 1].item())
            assert torch.equal(step.latents[:, :, 1], wanted[:, :, 1])
        free = list(denoise(tiny32, prompt, noise, full))
        assert not torch.equal(steps[-1].latents[:, :, 2], free[-1].latents[:, :, 2])

    @pytest.mark.parametrize("resample", [1, 2])
    def test_a_resumed_run_has_the_same_bits(self, tiny, settings, resample):
        full = replace(settings, resample=resample).check(tiny)
        known = known_parts(tiny, full, first=noise_clip(1)[0])
        prompt, noise = encode_prompt(tiny, PROMPT), initial_latents(tiny, full)
        steps = list(denoise(tiny, prompt, noise, full, known=known))
        rest = list(denoise(tiny, prompt, steps[0].latents, full, start=1, known=known))
        assert_same_bits(rest, [step.latents for step in steps[1:]])

    def test_noising_again_gives_the_mixture_of_that_level(self):
        """Of a clip of 0 the noise's deviation is sigma; of a constant clip the mean is 1 - sigma."""

        def draw(seed):
            return torch.randn(200_000, generator=torch.Generator().manual_seed(seed))

        lower = add_noise(torch.full((200_000,), 2.0), draw(0), 0.3)
        higher = renoise(lower, 0.3, 0.8, draw(1))
        assert abs(higher.mean() - 2 * 0.2) < 0.01 and abs(higher.std() - 0.8) < 0.01

    def test_a_latent_stands_for_one_frame_then_for_four_each(self, tiny32):
        """Changed frames change this latent and later ones, none before: with the norms held, which mix all frames."""
        long = noise_clip(13)
        with t2v.frozen_norms(tiny32):
            before = encode(tiny32, long)
            for index in range(4):
                changed = long.copy()
                changed[list(latent_frames(index))] = 255 - changed[list(latent_frames(index))]
                differs = (encode(tiny32, changed) != before).flatten(3).any(-1)[0].any(0)
                assert differs.tolist() == [later >= index for later in range(4)]  # causal: it and what follows
        assert sum(len(latent_frames(index)) for index in range(4)) == 13

    def test_a_cell_is_known_where_all_its_pixels_are(self):
        kept = np.ones((9, 32, 48), bool)
        kept[6, 9, 17] = False
        where = (~covered(kept)[0, 0]).nonzero().tolist()
        assert where == [[2, 1, 2]]

    def test_beginning_end_and_mask_land_in_their_latents(self, tiny32, settings, quiet):
        clip, still = noise_clip(), noise_clip(1)[0]
        first = known_parts(tiny32, settings, first=still)
        assert first.mask[0, 0, :, 0, 0].tolist() == [True, False, False]
        assert torch.equal(first.latents[:, :, :1], encode(tiny32, still))
        assert known_parts(tiny32, settings, first=clip[:5]).mask[0, 0, :, 0, 0].tolist() == [True, True, False]
        both = known_parts(tiny32, settings, first=still, last=still)
        assert both.mask[0, 0, :, 0, 0].tolist() == [True, False, True]
        held = encode(tiny32, still[None].repeat(5, 0))
        assert torch.equal(both.latents[:, :, 2:], held[:, :, 1:])
        white = np.zeros((32, 48), bool)
        white[:, 24:] = True
        part = known_parts(tiny32, settings, video=clip, mask=white)
        assert part.mask[0, 0, 0].tolist() == [[True] * 3 + [False] * 3] * 4 and part.share == 0.5

    @pytest.mark.parametrize(
        "given, says",
        [
            ({"first": noise_clip()}, "cover all 9 frames: nothing is left to make; num_frames=13 would work"),
            (
                {"first": noise_clip(4)},
                "first_frame has 4 frames: must have 4k.1; 1 would work|the first 1 frames kept",
            ),
            ({"last": noise_clip(5)}, "last_frame has 5 frames: must be a picture or 4k frames; the last 4 would work"),
            ({"video": noise_clip(), "mask": np.ones((32, 48), bool)}, "mask is white everywhere: nothing of the"),
            ({"video": noise_clip(), "mask": np.zeros((32, 48), bool)}, "mask is black everywhere"),
            ({"video": noise_clip(), "mask": np.ones((32, 32), bool)}, "mask is 32x32 pixels.*32x48 would work"),
            ({"video": noise_clip(), "mask": np.ones((5, 32, 48), bool)}, "mask has 5 frames.*; 9 would work"),
            ({"mask": np.ones((32, 48), bool)}, "mask is given without a video"),
        ],
    )
    def test_what_makes_no_known_part_is_refused(self, tiny32, settings, given, says):
        with pytest.raises(UserError, match=says):
            known_parts(tiny32, replace(settings, fit="refuse"), **given)

    @pytest.mark.parametrize("value, says", [(True, "known covers everything"), (False, "known covers nothing")])
    def test_known_is_a_part(self, value, says):
        with pytest.raises(UserError, match=says):
            Known(torch.zeros(1, 4, 3, 4, 6), torch.full((1, 1, 3, 4, 6), value))
        with pytest.raises(UserError, match="known mask is torch"):
            Known(torch.zeros(1, 4, 3, 4, 6), torch.zeros(1, 1, 3, 4, 6))

    def test_resampling_needs_a_scheduler_and_a_cache_without_a_past(self, tiny32, settings):
        known = known_parts(tiny32, settings, first=noise_clip(1)[0])
        tiny32.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        try:
            with pytest.raises(UserError, match="resample=2: a step cache remembers earlier steps"):
                next(denoise(tiny32, encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings),
                             replace(settings, resample=2), known=known))  # fmt: skip
        finally:
            tiny32.pipe.transformer.disable_cache()


class TestRuns:
    def test_the_record_has_path_content_and_strength(self, tiny32, film, tmp_path, quiet):
        run = generate(PROMPT, tiny32, tmp_path / "run", video=film, strength=1 / 3, **QUICK)
        record = read_record(run.folder)
        assert record["settings"]["video"] == str(film) and record["settings"]["strength"] == 1 / 3
        assert record["made_with"]["given"] == {"video": digest_of(film)}
        again = generate(**record["settings"] | {"upscale": "none"}, progress=False)
        assert torch.equal(run.latents, again.latents)

    def test_latents_are_reused_by_content(self, tiny32, film, tmp_path, quiet):
        one = generate(PROMPT, tiny32, tmp_path / "one", video=film, strength=1 / 3, **QUICK)
        copy = tmp_path / "copy.mkv"
        copy.write_bytes(film.read_bytes())
        two = generate(PROMPT, tiny32, tmp_path / "two", video=copy, strength=1 / 3, **QUICK)
        assert two.reused == one.folder and torch.equal(one.latents, two.latents)
        for other in (
            {"strength": 2 / 3},
            {"strength": 1 / 3, "first_frame": noise_clip(1)[0]},
            {"strength": 1 / 3, "fps": 4},
        ):
            assert generate(PROMPT, tiny32, tmp_path / "other", video=copy, fit="pad", **other, **QUICK).reused is None

    def test_settings_that_do_not_act_hinder_no_reuse(self, tiny32, tmp_path, quiet):
        one = generate(PROMPT, tiny32, tmp_path / "one", **QUICK)
        assert (
            generate(PROMPT, tiny32, tmp_path / "two", strength=0.2, fit="pad", resample=3, **QUICK).reused
            == one.folder
        )

    @pytest.mark.parametrize("given", ["video", "first_frame"])
    def test_a_stopped_run_goes_on_with_the_same_bits(self, tiny32, film, tmp_path, given, quiet):
        if given == "first_frame":
            source = tmp_path / "in.png"
            Image.fromarray(noise_clip(1)[0]).save(source)
        else:
            source = film
        told = {given: source, "strength": 1.0 if given == "video" else 0.6}
        whole = generate(PROMPT, tiny32, **told, **QUICK)
        seen = []
        with pytest.raises(t2v.Stopped):
            generate(PROMPT, tiny32, tmp_path / "run", **told, **QUICK, on_step=seen.append, stop=lambda: len(seen) > 1)
        gone_on = resume(tmp_path / "run", tiny32, progress=False)
        assert gone_on.reused == tmp_path / "run" and torch.equal(gone_on.latents, whole.latents)

    def test_a_run_from_an_array_is_not_resumed_and_says_how_it_continues(self, tiny32, tmp_path, quiet):
        seen = []
        told = {"video": noise_clip(), "strength": 1.0, **QUICK}
        with pytest.raises(t2v.Stopped):
            generate(PROMPT, tiny32, tmp_path / "run", **told, on_step=seen.append, stop=lambda: len(seen) > 1)
        with pytest.raises(UserError, match=r"video was given as an array.*call generate with it again"):
            resume(tmp_path / "run", tiny32)
        assert generate(PROMPT, tiny32, tmp_path / "run", **told).reused == tmp_path / "run"

    def test_resume_refuses_another_file_under_the_same_name(self, tiny32, film, tmp_path, quiet):
        copy, seen = tmp_path / "in.mkv", []
        copy.write_bytes(film.read_bytes())
        with pytest.raises(t2v.Stopped):
            generate(PROMPT, tiny32, tmp_path / "run", video=copy, strength=1.0, **QUICK,
                     on_step=seen.append, stop=lambda: len(seen) > 1)  # fmt: skip
        counting_file(copy, 8, [Fraction(n, 8) for n in range(9)])
        with pytest.raises(UserError, match=r"the rest would not be the bits of an uninterrupted run .*video was"):
            resume(tmp_path / "run", tiny32)

    @pytest.mark.parametrize(
        "given, says",
        [
            ({"video": "missing.mp4"}, "video='.*missing.mp4': cannot be read .No such file"),
            ({"video": "sound.wav"}, "video: cannot read .*sound.wav' as a video: it has no pictures"),
            ({"video": "text.txt"}, "video: cannot read .*text.txt' as a video"),
            ({"video": noise_clip(8)}, "video has 8 frames: 9 are needed; num_frames=5 would work"),
            ({"video": noise_clip(9, 32, 64), "fit": "refuse"}, "video is 32x64 pixels: must be 32x48"),
            ({"video": noise_clip(), "strength": 1.5}, "strength=1.5: must be a number from 0 to 1"),
            ({"video": noise_clip(), "mask": np.ones((16, 16), bool)}, "mask is 16x16 pixels"),
            ({"video": noise_clip(), "mask": np.ones((32, 48), bool)}, "mask is white everywhere"),
            ({"video": noise_clip(), "mask": np.zeros((32, 48), bool)}, "mask is black everywhere"),
            ({"mask": "mask.png"}, "mask='.*mask.png'"),
            ({"first_frame": noise_clip(9)}, "nothing is left to make"),
            ({"video": 3}, "video=3: must be the path of a file"),
            ({"fit": "stretch"}, "fit='stretch': must be one of crop, pad, refuse; 'crop' would work"),
        ],
    )
    def test_a_mistake_is_one_line_and_nothing_is_written(self, tiny32, tmp_path, monkeypatch, given, says, quiet):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "text.txt").write_text("not a film")
        with av.open("sound.wav", "w") as file:
            stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            sound.sample_rate = 8000
            file.mux(stream.encode(sound))
            file.mux(stream.encode(None))
        with pytest.raises(UserError, match=says) as caught:
            generate(PROMPT, tiny32, tmp_path / "run", **given, **QUICK)
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def run(tiny32, tmp_path_factory):
    return generate(PROMPT, tiny32, tmp_path_factory.mktemp("extend") / "run", **QUICK)


class TestExtend:
    def test_new_frames_follow_and_seams_are_measured(self, tiny32, run, tmp_path):
        longer = t2v.extend(run, 6, overlap=5, model=tiny32, out=tmp_path, progress=False)
        assert longer.video.shape == (15, 32, 48, 3) and len(longer.runs) == 2
        np.testing.assert_array_equal(longer.video[:9], run.video)
        np.testing.assert_array_equal(longer.video[9:13], longer.runs[0].video[5:])
        np.testing.assert_array_equal(longer.video[13:], longer.runs[1].video[5:7])
        assert [seam.frame for seam in longer.seams] == [9, 13]
        jump = np.abs(longer.video[9].astype(int) - longer.video[8]).mean()
        assert longer.seams[0].jump == pytest.approx(jump)
        assert longer.seams[0].given_psnr == psnr(run.video[-5:], longer.runs[0].video[:5])
        assert longer.runs[0].settings.seed == run.settings.seed + 1 and longer.file.exists()
        given = known_parts(tiny32, run.settings, first=run.video[-5:])
        assert torch.equal(longer.runs[0].latents[:, :, :2], given.latents[:, :, :2])

    def test_a_folder_and_another_prompt(self, tiny32, run):
        longer = t2v.extend(run.folder, 4, model=tiny32, prompt="A red car.", seed=7, progress=False)
        assert longer.runs[0].settings.prompt == "A red car." and longer.runs[0].settings.seed == 7
        assert psnr(longer.video[:9], run.video) > 20  # read back from H.264

    def test_a_loop_ends_in_its_beginning(self, tiny32, run, quiet):
        circle = t2v.extend(run, 4, overlap=1, model=tiny32, loop=True, progress=False)
        assert len(circle.video) == 13 and [seam.frame for seam in circle.seams] == [9, 0]
        end = known_parts(tiny32, circle.runs[0].settings, last=run.video[:4])
        assert torch.equal(circle.runs[0].latents[:, :, -1], end.latents[:, :, -1])

    @pytest.mark.parametrize(
        "keywords, says",
        [
            ({"frames": 0}, "frames=0: must be a whole number"),
            ({"frames": 4, "overlap": 4}, "overlap=4: must be 4k.1, whole latents; 5 would work"),
            ({"frames": 4, "overlap": 9}, "overlap=9: must be a whole number of frames from 1 to 8; 5 would work"),
            ({"frames": 5, "loop": True}, "frames=5: must be a multiple of 4 to close a loop; 4 would work"),
            ({"frames": 4, "first_frame": "a.png"}, "first_frame='a.png': extend sets it from the run"),
        ],
    )
    def test_numbers_that_do_not_fit_are_refused(self, tiny32, run, keywords, says):
        with pytest.raises(UserError, match=says):
            t2v.extend(run, model=tiny32, **keywords)


def test_the_settings_of_a_given_video_survive_json(film):
    settings = Settings(PROMPT, video=str(film), strength=0.3)
    assert Settings(**json.loads(json.dumps(vars(settings)))) == settings


def test_the_command_line_takes_a_video_and_refuses_before_loading(tiny_folder, film, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = [PROMPT, "--model", str(tiny_folder), "--upscale", "none", "--steps", "2", "--out", "run"]
    assert status(*argv, "--video", str(film), "--strength", "0.5") == 0
    assert read_record("run")["settings"]["strength"] == 0.5 and (tmp_path / "run/video.mp4").exists()
    capsys.readouterr()
    assert status(*argv[:-1], "other", "--video", "missing.mp4") == 2
    printed = capsys.readouterr()
    assert "missing.mp4" in printed.err and printed.err.count("\n") == 1 and "loading" not in printed.out
    assert status(*argv[:-1], "other", "--mask", str(film)) == 2 and not (tmp_path / "other").exists()
