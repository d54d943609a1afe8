"""Models that start from a picture: loaded, read, the pipeline's bits in both forms, planned, and mistakes told."""

import json
from dataclasses import replace

import conftest
import numpy as np
import pytest
import torch
from conftest import byte_level_tokenizer, tiny_text_encoders, tiny_transformer, tiny_vae
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE
from PIL import Image
from test_cli import status
from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import t2v_kit as t2v
from benchmarks import image_to_video
from t2v_kit.errors import UserError
from t2v_kit.hunyuan.chunks import remove_chunks, use_chunks
from t2v_kit.hunyuan.llava import language_model
from t2v_kit.memory.choose import plan
from t2v_kit.memory.estimate import estimate
from t2v_kit.memory.plan import Part, Plan, Size
from t2v_kit.memory.weights import Configs, weights
from t2v_kit.model.loading import load
from t2v_kit.model.residence import Residence
from t2v_kit.run.generating import generate, resume
from t2v_kit.run.target import read_record
from t2v_kit.settings import Settings
from t2v_kit.stages.decoding import decode
from t2v_kit.stages.denoising import denoise, velocity
from t2v_kit.stages.image import read_picture
from t2v_kit.stages.known import Known
from t2v_kit.stages.noise import initial_latents
from t2v_kit.stages.prompt import encode_prompt

PROMPT = "A man with a beard riding a motorcycle."
FORMS = {"token_replace": 4, "latent_concat": 9}  # channels of the transformer's input
QUICK = {"upscale": "none", "progress": False}


def picture(seed: int = 0) -> np.ndarray:
    coarse = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (32, 48), mode="bilinear")
    return (fine[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def tiny_pipeline(form: str) -> HunyuanVideoImageToVideoPipeline:
    """HunyuanVideo-I2V's classes at the smallest size; an eye of 24 x 24 patches, as the published one has."""
    torch.manual_seed(0)
    specials = [f"<|{name}|>" for name in ("begin_of_text", "eot_id", "start_header_id", "end_header_id")]
    words = byte_level_tokenizer([*specials, "<pad>", "<image>"], "<|begin_of_text|>", "<|eot_id|>", "<pad>")
    clip_words = byte_level_tokenizer(
        ["<|startoftext|>", "<|endoftext|>"], "<|startoftext|>", "<|endoftext|>", "<|endoftext|>"
    )
    _, clip = tiny_text_encoders(len(words), len(clip_words), clip_words.eos_token_id)
    small = {"intermediate_size": 64, "num_attention_heads": 2}
    eye = CLIPVisionConfig(hidden_size=16, num_hidden_layers=2, image_size=48, patch_size=2, projection_dim=16, **small)
    llama = LlamaConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=4, max_position_embeddings=2048, **small
    )
    places = {"image_token_id": words.convert_tokens_to_ids("<image>"), "pad_token_id": words.pad_token_id}
    config = {name: each for name, each in tiny_transformer().config.items() if not name.startswith("_")}
    config |= {"image_condition_type": form, "in_channels": FORMS[form], "guidance_embeds": form == "token_replace"}
    return HunyuanVideoImageToVideoPipeline(
        text_encoder=LlavaForConditionalGeneration(LlavaConfig(vision_config=eye, text_config=llama, **places)),
        tokenizer=words,
        transformer=HunyuanVideoTransformer3DModel(**config),
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip,
        tokenizer_2=clip_words,
        image_processor=CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each form. The template's words are in the tokenizer, so that it has 103 tokens as Llama 3's has."""
    sentences = [DEFAULT_PROMPT_TEMPLATE["template"].replace("<image>", ""), *["system user assistant\n\n"] * 20]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "SENTENCES", [*conftest.SENTENCES, *sentences])
        made = {}
        for form in FORMS:
            made[form] = tmp_path_factory.mktemp("i2v") / form
            tiny_pipeline(form).save_pretrained(made[form])
            defaults = {"height": 32, "width": 48, "num_frames": 13, "num_inference_steps": 3, "fps": 8}
            (made[form] / "t2v_kit.json").write_text(json.dumps({"defaults": defaults}))
    return made


@pytest.fixture(scope="module", params=[*FORMS])
def form(request):
    return request.param


@pytest.fixture(scope="module")
def models(folders, form):
    return load(folders[form], device="cpu")


@pytest.fixture(scope="module")
def replacing(folders):
    return load(folders["token_replace"], device="cpu")


class TestBits:
    def test_the_template_is_the_published_one(self, models):
        assert models.template == DEFAULT_PROMPT_TEMPLATE

    @pytest.mark.parametrize("dtype, scale", [("float32", 2.0), ("bfloat16", 1.0)])
    def test_every_stage_gives_the_pipelines(self, folders, form, dtype, scale):
        models = load(folders[form], device="cpu", dtype=dtype)
        plain = HunyuanVideoImageToVideoPipeline.from_pretrained(folders[form], dtype=getattr(torch, dtype))
        plain.set_progress_bar_config(disable=True)
        extra = {"true_cfg_scale": scale, "negative_prompt": "blurry", "guidance_scale": 1.0} if scale > 1 else {}
        settings = Settings(PROMPT, seed=3, padded_prompt=True, **extra).check(models)
        given = read_picture(models, settings, picture())
        prompt = encode_prompt(models, PROMPT, padded=True, image=given)
        noise = initial_latents(models, settings, image=given)
        ours = [step.latents for step in denoise(models, prompt, noise, settings, image=given)]
        seen = []

        def keep(pipe, index, timestep, given):
            seen.append(given["latents"].clone())
            return {}

        keywords = {"height": 32, "width": 48, "num_frames": 13, "num_inference_steps": 3, **extra}
        keywords |= {"guidance_scale": settings.guidance_scale, "generator": torch.Generator().manual_seed(3)}
        theirs = plain(
            Image.fromarray(picture()), PROMPT, **keywords, output_type="np", callback_on_step_end=keep
        ).frames[0]
        assert len(ours) == len(seen) == 3
        assert all(map(torch.equal, ours, seen)) and ours[-1].dtype == seen[-1].dtype
        np.testing.assert_array_equal(decode(models, ours[-1]), (theirs * 255).round().astype(np.uint8))

    def test_a_prompt_without_its_padding_is_the_same_words(self, models, form):
        settings = Settings(PROMPT).check(models)
        given = read_picture(models, settings, picture())
        short, long = (encode_prompt(models, PROMPT, padded, image=given) for padded in (False, True))
        count = int(long.mask.sum())
        assert torch.equal(short.prompt_embeds, long.prompt_embeds[:, :count]) and short.mask.all()
        assert long.prompt_embeds.shape[1] == 576 // {"token_replace": 4, "latent_concat": 2}[form] + 256 - 4
        words = [token for token in short.tokens if token != "<image>"]
        assert len(short.tokens) == count and "".join(words).strip() == PROMPT and words[-1] == "\n\n"

    def test_chunks_are_the_same_mathematics(self, replacing):
        settings = Settings(PROMPT, num_inference_steps=1).check(replacing)
        given = read_picture(replacing, settings, picture())
        prompt = encode_prompt(replacing, PROMPT, image=given)
        noise = initial_latents(replacing, settings, image=given)
        (whole,) = denoise(replacing, prompt, noise, settings, image=given)
        use_chunks(replacing.pipe.transformer, 7)
        try:
            (parts,) = denoise(replacing, prompt, noise, settings, image=given)
        finally:
            remove_chunks(replacing.pipe.transformer)
        assert (whole.latents - parts.latents).abs().max() < 1e-4


class TestRuns:
    def test_the_picture_is_given_recorded_and_decides(self, replacing, tmp_path):
        Image.fromarray(picture()).save(tmp_path / "in.png")
        run = generate(PROMPT, replacing, tmp_path / "one", image=tmp_path / "in.png", **QUICK)
        record = read_record(run.folder)
        assert record["settings"]["image"] == str(tmp_path / "in.png") and set(record["made_with"]["given"]) == {
            "image"
        }
        given = read_picture(replacing, run.settings, picture())
        assert torch.equal(run.latents[:, :, :1], given.latents)  # the first frame is the picture
        again = generate(PROMPT, replacing, tmp_path / "two", image=picture(), **QUICK)
        assert torch.equal(again.latents, run.latents)
        other = generate(PROMPT, replacing, tmp_path / "three", image=picture(1), **QUICK)
        assert other.reused is None and other.reused_prompt is None and not torch.equal(other.latents, run.latents)

    def test_a_stopped_run_goes_on_with_the_same_bits(self, replacing, tmp_path):
        Image.fromarray(picture()).save(tmp_path / "in.png")
        whole = generate(PROMPT, replacing, image=tmp_path / "in.png", **QUICK)
        seen = []
        with pytest.raises(t2v.Stopped):
            generate(PROMPT, replacing, tmp_path / "run", image=tmp_path / "in.png", on_step=seen.append,
                     stop=lambda: len(seen) > 1, **QUICK)  # fmt: skip
        assert torch.equal(resume(tmp_path / "run", replacing, progress=False).latents, whole.latents)

    def test_frames_of_the_picture_alone_are_left_out_and_a_note_says_so(self, folders):
        models = load(folders["latent_concat"], device="cpu")
        with pytest.warns(UserWarning, match="shows 9 of 13 frames: the first 4 are the picture's own"):
            run = generate(PROMPT, models, image=picture(), **QUICK)
        assert run.video.shape == (9, 32, 48, 3)

    def test_the_command_line_takes_a_picture(self, folders, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Image.fromarray(picture()).save("in.png")
        argv = [PROMPT, "--model", str(folders["token_replace"]), "--upscale", "none", "--steps", "1", "--out", "run"]
        assert status(*argv, "--image", "in.png") == 0 and (tmp_path / "run/video.mp4").exists()


class TestMistakes:
    @pytest.mark.parametrize(
        "given, says",
        [
            ({}, "image is missing: .* starts from a picture; image='in.png' would work"),
            ({"image": "none.png"}, "image='.*none.png': cannot be read"),
            ({"image": np.zeros((9, 32, 48, 3), np.uint8)}, "image is a video: must be a picture"),
            ({"image": picture(), "video": np.zeros((13, 32, 48, 3), np.uint8)}, "video=.*holds no other parts"),
            ({"image": picture(), "first_frame": picture()}, "first_frame=.*holds no other parts"),
        ],
    )
    def test_one_line_and_nothing_is_written(self, replacing, tmp_path, given, says):
        with pytest.raises(UserError, match=says) as caught:
            generate(PROMPT, replacing, tmp_path / "run", **given, **QUICK)
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()

    def test_stages_say_what_is_missing(self, replacing):
        settings = Settings(PROMPT).check(replacing)
        given = read_picture(replacing, settings, picture())
        prompt, noise = encode_prompt(replacing, PROMPT, image=given), torch.randn(1, 4, 4, 4, 6)
        known = Known(noise, torch.arange(4).view(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 6) == 0)
        for action, says in (
            (lambda: encode_prompt(replacing, PROMPT), "image is missing: .* reads a picture before the prompt"),
            (lambda: initial_latents(replacing, settings), "image is missing: .*read_picture"),
            (lambda: next(denoise(replacing, prompt, noise, settings)), "image is missing"),
            (lambda: next(denoise(replacing, prompt, noise, settings, image=picture())), "image is ndarray"),
            (lambda: next(denoise(replacing, prompt, noise, settings, image=given, known=known)), "known: "),
            (lambda: velocity(replacing, prompt, noise, 0.5), "velocity: .* needs a picture at every step"),
        ):
            with pytest.raises(UserError, match=says):
                action()

    def test_a_model_of_words_takes_no_picture(self, tiny32, tmp_path):
        with pytest.raises(UserError, match=r"makes videos from text; first_frame=.* would work"):
            generate(PROMPT, tiny32, tmp_path / "run", image=picture(), **QUICK)
        with pytest.raises(UserError, match="known_parts"):
            read_picture(tiny32, Settings(PROMPT), picture())

    @pytest.mark.parametrize(
        "argv, says",
        [
            (["--model", "hunyuan-i2v"], "--model hunyuan-i2v: starts from a picture; --image in.png would work"),
            (["--image", "in.png"], "makes videos from text; --first-frame in.png would work"),
            (["--model", "hunyuan-i2w", "--image", "in.png"], "did you mean 'hunyuan-i2v'"),
        ],
    )
    def test_the_command_line_says_so_before_anything_is_loaded(self, tmp_path, monkeypatch, capsys, argv, says):
        monkeypatch.chdir(tmp_path)
        Image.fromarray(picture()).save("in.png")
        assert status(PROMPT, *argv, "--out", "run") == 2
        said = capsys.readouterr()
        assert says in said.err and said.err.count("\n") == 1 and "loading" not in said.out

    def test_an_instruction_without_a_place_for_the_picture(self, folders, tmp_path):
        broken = tmp_path / "broken"
        broken.mkdir()
        for part in folders["token_replace"].iterdir():
            (broken / part.name).symlink_to(part)
        (broken / "text_encoder").unlink()
        (broken / "text_encoder").mkdir()
        for file in (folders["token_replace"] / "text_encoder").iterdir():
            (broken / "text_encoder" / file.name).symlink_to(file)
        config = json.loads((broken / "text_encoder/config.json").read_text())
        (broken / "text_encoder/config.json").unlink()
        (broken / "text_encoder/config.json").write_text(json.dumps(config | {"image_token_index": 500}))
        with pytest.raises(UserError, match="the instruction has 0 places for a picture, must be one"):
            load(broken, device="cpu")


class TestPlans:
    def test_the_published_models_are_known_without_their_files(self):
        words, i2v = Configs.of("hunyuan"), Configs.of("hunyuan-i2v")
        more = weights(i2v, "text_encoder", 2).total - weights(words, "text_encoder", 2).total
        # The eye (CLIP ViT-L/14 at 336 pixels, 303.5 M), its projector (21.0 M) and the head (525.6 M).
        assert more == pytest.approx(2 * 850.1e6, rel=0.005)
        assert len(weights(i2v, "text_encoder", 2).stacks[0]) == 32  # Llama's blocks are those that are streamed
        size = Size(544, 960, 61)
        chosen = plan(vram_gb=16, ram_gb=120, height=544, width=960, num_frames=61, model="hunyuan-i2v")
        rows = {row["stage"]: row["vram_gb"] for row in estimate(chosen, size, "hunyuan-i2v").rows}
        assert all(need < 16 for need in rows.values())
        assert rows["encode"] > estimate(chosen, size, "hunyuan").rows[0]["vram_gb"] + 1.4

    def test_a_folder_is_counted_by_what_is_in_it(self, models):
        real = models.pipe.text_encoder
        numbers = sum(tensor.numel() for tensor in (*real.parameters(), *real.buffers()))
        assert weights(Configs.of(models), "text_encoder", 4).total == 4 * numbers

    @pytest.mark.parametrize("offload, one_stage", [("group", False), ("disk", True)])
    def test_a_streamed_llava_reads_the_same(self, folders, models, form, offload, one_stage):
        part = Part("float32", "none", offload)
        streamed = Plan("streamed", part, part, Part("float32", "none", "model"), one_stage=one_stage)
        residence = Residence(models.files, streamed, models.device, lambda _: type(models.loras)())
        pipe = type(models.pipe)(**models.pipe.components | residence.parts)
        residence.start()
        ours = replace(models, pipe=pipe, residence=residence, memory=streamed)
        settings = Settings(PROMPT).check(models)
        given = read_picture(models, settings, picture())
        for _ in range(2):  # again, after its weights have left
            prompts = [encode_prompt(each, PROMPT, image=given) for each in (models, ours)]
            assert torch.equal(prompts[0].prompt_embeds, prompts[1].prompt_embeds)
        assert one_stage or hasattr(language_model(residence.parts["text_encoder"]), "_diffusers_hook")
        noise = initial_latents(models, settings, image=given)
        steps = [next(denoise(each, prompts[0], noise, settings, image=given)) for each in (models, ours)]
        assert torch.equal(steps[0].latents, steps[1].latents)


def test_the_benchmark_goes_through_every_stage(tmp_path, monkeypatch):
    for more in (["--make"], ["--out", str(tmp_path / "report.json")]):
        monkeypatch.setattr("sys.argv", ["image_to_video", "--tiny", "--weights", str(tmp_path / "weights"), *more])
        assert image_to_video.main() == 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["finished"] and [*report["stages"]] == ["load", "picture", "encode", "denoise", "decode"]
    assert len(report["stages"]["denoise"]["step_seconds"]) == 3
