"""Training: gradients, resuming, LoRA files, data as people have it, and what is said when it is wrong."""

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import t2v_kit
from t2v_kit import TrainSettings, UserError, read_clips, train, write_toyland
from t2v_kit.cli import main
from t2v_kit.hunyuan.masks import skip_full_masks
from t2v_kit.model import streamed
from t2v_kit.model.loading import load
from t2v_kit.run import fine_tuning
from t2v_kit.run.fine_tuning import Training
from t2v_kit.training import levers, offloading
from t2v_kit.training.cache import CACHE, encode_clips
from t2v_kit.training.looping import Trainer, draw_sigmas
from t2v_kit.training.options import TRAIN_KNOBS, train_settings_from
from tests.forks import together

SMALL = TrainSettings(steps=3, rank=2, learning_rate=1e-2, warmup=0, batch_size=2, activations="keep")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of 9 frames of 32x48, with captions that the tiny model reads in lengths of their own."""
    return write_toyland(tmp_path_factory.mktemp("data") / "clips", 3, 32, 48, 9)


@pytest.fixture
def tiny_model(tiny_folder):
    """A model of the test's own, whose weights may change."""
    return load(tiny_folder, device="cpu")


def plain_gradients(models, data, settings, index) -> dict[str, torch.Tensor]:
    """Gradients of a step by autograd alone, the loss written out from the definition of flow matching."""
    trainer = Trainer(models, data, settings)
    with trainer.prepared():
        transformer = trainer.transformer
        numbers = trainer._batch(index)
        seed = np.random.SeedSequence((settings.seed, index, 0)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed) >> 1)
        sigmas = draw_sigmas(len(numbers), models.defaults["flow_shift"], settings.high_noise, generator)
        noise = torch.randn(len(numbers), *data.latents[0].shape, generator=generator)
        loss = torch.zeros(())
        for place, number in enumerate(numbers):  # one by one: no padding, no mask
            clean, prompt, sigma = data.latents[number][None], data.prompts[number], sigmas[place]
            velocity = transformer(
                (1 - sigma) * clean + sigma * noise[place : place + 1],
                timestep=(sigma * 1000)[None],
                encoder_hidden_states=prompt.prompt_embeds,
                encoder_attention_mask=prompt.mask,
                pooled_projections=prompt.pooled,
                guidance=torch.tensor([settings.guidance_scale * 1000]),
            ).sample
            loss = loss + (velocity - (noise[place : place + 1] - clean)).square().mean() / len(numbers)
        loss.backward()
        return {name: weight.grad.clone() for name, weight in trainer.weights.items()}


def own_gradients(models, data, settings, index) -> dict[str, torch.Tensor]:
    trainer = Trainer(models, data, settings)
    with trainer.prepared():
        trainer.losses(index)[0].mean().backward()
        return {name: weight.grad.clone() for name, weight in trainer.weights.items()}


PLAIN = {"activations": "keep", "offloaded_blocks": None, "chunk": 0, "streamed_blocks": 0}
LEVERS = {
    "keep": {},
    "recompute": {"activations": "recompute"},
    "offload": {"activations": "offload"},
    "chunk": {"activations": "recompute", "chunk": 7},
    "streamed": {"activations": "offload", "chunk": 7, "streamed_blocks": 2},
    **{f"offload {n}": {"activations": "offload", "offloaded_blocks": n} for n in range(3)},  # of three blocks
    "offload 2, streamed 2": {"activations": "offload", "offloaded_blocks": 2, "streamed_blocks": 2},
}


@pytest.mark.parametrize("rank", [2, 0], ids=["lora", "all weights"])
@pytest.mark.parametrize("lever", LEVERS)
def test_gradients_are_those_of_plain_autograd(tiny_model, clips, lever, rank):
    """Every lever but fp8 changes where numbers are kept, not what they are: 1e-4 in float32."""
    if rank == 0 and "streamed" in lever:
        pytest.skip("weights that are trained are not streamed")
    data = encode_clips(tiny_model, clips, SMALL)
    settings = replace(SMALL, rank=rank, caption_dropout=0.0, **LEVERS[lever])
    with torch.no_grad():  # a LoRA that is still nothing has no gradient in half of it: the base is moved instead
        tiny_model.pipe.transformer.proj_out.weight.mul_(3.0)
    expected = plain_gradients(tiny_model, data, replace(settings, **PLAIN), 1)
    found = own_gradients(tiny_model, data, settings, 1)
    assert expected.keys() == found.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert scale > 0
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-4 * scale), name


def test_inputs_in_eight_bits_are_nearly_right_and_really_in_eight_bits(tiny_model, clips, monkeypatch):
    """fp8 packs the streams of each block, and the gradients point the same way."""
    data = encode_clips(tiny_model, clips, SMALL)
    packed, to_fp8 = [], levers._to_fp8
    monkeypatch.setattr(levers, "_to_fp8", lambda tensor: packed.append(to_fp8(tensor)) or packed[-1])
    settings = replace(SMALL, rank=0, activations="fp8")
    found = own_gradients(tiny_model, data, settings, 0)
    expected = own_gradients(tiny_model, data, replace(settings, activations="keep"), 0)
    small = [kept for kept in packed if isinstance(kept, tuple)]
    assert len(small) == 2 * 3  # video and text of three blocks
    assert all(kept[0].dtype == torch.float8_e4m3fn for kept in small)
    flat = [torch.cat([gradient.flatten() for gradient in side.values()]) for side in (found, expected)]
    assert not torch.equal(*flat)
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99


@pytest.mark.parametrize("count", [None, 0, 1, 2])
def test_the_inputs_of_the_first_blocks_wait_in_ram(tiny_model, clips, monkeypatch, count):
    """Of so many of three blocks; each input is on the device again one block before it is needed, and no earlier."""
    made, asked = [], []
    init, take = offloading._Waiting.__init__, offloading._Waiting.take

    def watched(self, *arguments):
        init(self, *arguments)
        made.append(self)

    def taken(self):
        asked.append(([made.index(each) // 2 for each in made if each.there is not None], made.index(self) // 2))
        return take(self)

    monkeypatch.setattr(offloading._Waiting, "__init__", watched)
    monkeypatch.setattr(offloading._Waiting, "take", taken)
    data = encode_clips(tiny_model, clips, SMALL)
    trainer = Trainer(tiny_model, data, replace(SMALL, activations="offload", offloaded_blocks=count))
    with trainer.prepared():
        loss = trainer.losses(0)[0].mean()
        offloaded = 3 if count is None else count
        assert len(made) == 2 * offloaded  # video and text
        # The last two of all blocks need not leave: the way back begins with them.
        assert [each.there is None for each in made] == [number < 1 for number in range(offloaded) for _ in "vt"]
        loss.backward()
    assert [number for _, number in asked] == [number for number in reversed(range(offloaded)) for _ in "vt"]
    for there, number in asked:
        assert number in there and all(number - 1 <= other <= number for other in there), asked
    assert all(each.there is None for each in made)


def test_streamed_weights_leave_the_device(tiny_model, clips, monkeypatch):
    """With a 4-bit base, of all blocks two at most have weights on the device when the forward pass is over."""
    pytest.importorskip("bitsandbytes")
    from benchmarks.training import random_nf4

    config = dict(tiny_model.pipe.transformer.config)
    tiny_model.pipe.transformer = random_nf4({name: value for name, value in config.items() if name[0] != "_"})
    skip_full_masks(tiny_model.pipe.transformer)
    copies, copy = [], streamed.StreamedBlocks._copy

    def watched(self, number):
        copy(self, number)
        copies.append([weakref.ref(tensor.untyped_storage()) for tensor in self._ready[number][0]])

    monkeypatch.setattr(streamed.StreamedBlocks, "_copy", watched)
    data = encode_clips(tiny_model, clips, SMALL)
    trainer = Trainer(tiny_model, data, replace(SMALL, activations="offload", chunk=7, streamed_blocks=3))
    with trainer.prepared():
        loss = trainer.losses(0)[0].mean()
        gc.collect()
        alive = [any(weight() is not None for weight in block) for block in copies]
        assert len(alive) == 3 and sum(alive) <= 2
        loss.backward()
        assert len(copies) == 3 + 1  # the last two were still there
        assert all(weight.grad is not None for weight in trainer.weights.values())


def test_the_model_is_as_before(tiny_model, clips):
    """A LoRA leaves no weight, hook, processor or request for gradients behind, also when the loop is left early."""
    transformer = tiny_model.pipe.transformer
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    processors = [type(module.processor) for module in transformer.modules() if hasattr(module, "processor")]
    asked = [weight.requires_grad for weight in transformer.parameters()]
    frugal = replace(SMALL, activations="offload", chunk=5, streamed_blocks=1)
    for step in train(tiny_model, clips, frugal):
        if step.index == 1:
            break
    del step
    after = transformer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert processors == [type(module.processor) for module in transformer.modules() if hasattr(module, "processor")]
    assert asked == [weight.requires_grad for weight in transformer.parameters()]
    assert not transformer.is_gradient_checkpointing


def test_a_lora_that_finds_no_memory_leaves_the_model_as_it_was(tiny_model, clips, monkeypatch):
    """Half a LoRA would be in the way of the next one: on a full card that is how the first attempt ends."""
    before = [name for name, _ in tiny_model.pipe.transformer.named_parameters()]

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("peft.inject_adapter_in_model", full)
        with pytest.raises((torch.OutOfMemoryError, UserError)):
            next(iter(train(tiny_model, clips, TrainSettings(steps=1, rank=2))))
    assert [name for name, _ in tiny_model.pipe.transformer.named_parameters()] == before
    assert [step.index for step in train(tiny_model, clips, TrainSettings(steps=1, rank=2))] == [0]


def test_the_loss_falls_on_one_clip(tiny_model, tmp_path):
    """Overfitting one clip: the loss of the last steps is well below that of the first."""
    folder = write_toyland(tmp_path / "one", 1, 32, 48, 5)
    settings = TrainSettings(
        steps=40, rank=0, learning_rate=5e-3, caption_dropout=0, high_noise=1, activations="keep", batch_size=1
    )
    losses = [step.loss for step in train(tiny_model, folder, settings)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def weights_after(models, clips, settings, **more) -> dict[str, torch.Tensor]:
    *_, last = train(models, clips, settings, **more)
    return {name: weight.detach().clone() for name, weight in last._trainer.masters.items()}


@pytest.mark.parametrize(("ema", "optimizer"), [(0.0, "adamw"), (0.9, "adamw"), (0.0, "adamw8bit")])
def test_resuming_gives_the_same_bits(tiny_model, clips, tmp_path, ema, optimizer):
    """Weights, average and optimiser go on as if nothing had happened."""
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    rank = 64 if optimizer == "adamw8bit" else 2  # it keeps the state of small weights in 32 bits
    settings = replace(SMALL, steps=6, ema=ema, optimizer=optimizer, rank=rank, targets="all")
    whole = weights_after(tiny_model, clips, settings)
    for step in train(tiny_model, clips, settings):
        if step.index == 2:
            step.checkpoint(tmp_path / "half.safetensors")
            break
    resumed = weights_after(tiny_model, clips, settings, resume_from=tmp_path / "half.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


VICTIM = """
import sys
import weakref
from dataclasses import replace
from t2v_kit import TrainSettings, train
from t2v_kit.model.loading import load
settings = TrainSettings(**eval(sys.argv[4]))
for step in train(load(sys.argv[1], device="cpu"), sys.argv[2], settings):
    step.checkpoint(sys.argv[3])
    print(step.index, flush=True)
"""


def test_a_killed_training_goes_on_with_the_same_bits(tiny_model, tiny_folder, clips, tmp_path):
    """kill -9 in the middle: the checkpoint is whole, and what comes of it is what would have come."""
    settings, checkpoint = replace(SMALL, steps=200, ema=0.9), tmp_path / "checkpoint.safetensors"
    command = [sys.executable, "-c", VICTIM, str(tiny_folder), str(clips), str(checkpoint), repr(asdict(settings))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as victim:
        for line in victim.stdout:
            if line.strip() == "3":
                victim.send_signal(signal.SIGKILL)
                break
    index = json.loads(_metadata(checkpoint)["notes"])["index"]
    assert 3 <= index < 199
    short = replace(settings, steps=200)
    rest = train(tiny_model, clips, short, resume_from=checkpoint)
    resumed = {}
    for step in rest:
        if step.index == index + 2:
            resumed = {name: weight.detach().clone() for name, weight in step._trainer.masters.items()}
            with pytest.raises(UserError, match="another training of this model is under way"):
                next(train(tiny_model, clips, short))
            break
    rest.close()
    for step in train(tiny_model, clips, short):
        if step.index == index + 2:
            whole = step._trainer.masters
            assert all(torch.equal(whole[name], resumed[name]) for name in whole)
            break


def _metadata(path) -> dict:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_checkpoint_of_something_else_is_refused(tiny_model, clips, tmp_path):
    """Another rate, other data, a file that is no checkpoint: one line each."""
    for step in train(tiny_model, clips, SMALL):
        step.checkpoint(tmp_path / "a.safetensors")
        break
    with pytest.raises(UserError, match=r"learning_rate=0\.5: the training has 0\.01"):
        next(train(tiny_model, clips, replace(SMALL, learning_rate=0.5), tmp_path / "a.safetensors"))
    other = write_toyland(tmp_path / "other", 1, 32, 48, 9, seed=9)
    with pytest.raises(UserError, match="other clips"):
        next(train(tiny_model, other, SMALL, tmp_path / "a.safetensors"))
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a checkpoint"):
        next(train(tiny_model, clips, SMALL, tmp_path / "b.safetensors"))


def test_plain_diffusers_takes_the_lora(tiny_model, tiny_folder, clips, tmp_path):
    """The file's keys all match, and the pipeline then computes what the trained model computed."""
    settings = replace(SMALL, rank=4, alpha=2.0, steps=4)
    prompt = t2v_kit.encode_prompt(tiny_model, "A red car.")
    latents = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    for step in train(tiny_model, clips, settings):
        if step.index == 3:
            with step.sampling():
                trained = t2v_kit.velocity(tiny_model, prompt, latents, 0.7)
            step.save(tmp_path / "lora.safetensors")
    untrained = t2v_kit.velocity(tiny_model, prompt, latents, 0.7)
    plain = HunyuanVideoPipeline.from_pretrained(tiny_folder)
    plain.load_lora_weights(tmp_path / "lora.safetensors")
    tiny_model.pipe.load_lora_weights(tmp_path / "lora.safetensors")
    loaded = t2v_kit.velocity(tiny_model, prompt, latents, 0.7)
    assert not torch.allclose(trained, untrained, atol=1e-4)
    assert torch.allclose(trained, loaded, atol=1e-6)
    (adapter,) = plain.transformer.peft_config.values()
    assert (adapter.r, adapter.lora_alpha) == (4, 2.0)
    tensors = load_file(tmp_path / "lora.safetensors")
    assert all(name.startswith("transformer.") and ".lora_" in name for name in tensors)
    said = json.loads(_metadata(tmp_path / "lora.safetensors")["t2v_kit"])
    assert said["steps"] == 4 and said["samples"] == 3 and len(said["captions"]) == 3
    assert said["settings"]["rank"] == 4


def test_all_weights_are_saved_as_a_folder_that_load_takes(tiny_model, clips, tmp_path):
    """rank=0 changes the model itself, and `save` writes all of it."""
    *_, last = train(tiny_model, clips, replace(SMALL, rank=0))
    last.save(tmp_path / "model")
    again = load(tmp_path / "model", device="cpu")
    mine, theirs = tiny_model.pipe.transformer.state_dict(), again.pipe.transformer.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert again.defaults["num_frames"] == 9


def test_the_average_is_what_is_saved(tiny_model, clips, tmp_path):
    """With ema, the file has the average, and the loop goes on with the weights themselves."""
    for step in train(tiny_model, clips, replace(SMALL, ema=0.5)):
        step.save(tmp_path / "lora.safetensors")
    trainer, saved = step._trainer, load_file(tmp_path / "lora.safetensors")
    name = next(iter(trainer.average))
    assert torch.equal(saved[f"transformer.{name}"], trainer.average[name])
    assert not torch.equal(trainer.masters[name], trainer.average[name])


def test_bfloat16_trains_float32_copies(tiny_folder, clips):
    """Steps too small for bfloat16 are not lost: the copy moves though the rounded weight may not."""
    models = load(tiny_folder, device="cpu", dtype="bfloat16")
    *_, last = train(models, clips, replace(SMALL, learning_rate=1e-6, weight_decay=0.0))
    masters, weights = last._trainer.masters, last._trainer.weights
    assert all(weight.dtype == torch.float32 for weight in masters.values())
    assert all(torch.equal(weights[name], masters[name].bfloat16()) for name in masters)
    assert any(not torch.equal(masters[name], masters[name].bfloat16().float()) for name in masters)


def test_data_is_encoded_once(tiny_model, clips, monkeypatch):
    """A second call reads the cache; another size does not take the first one's latents."""
    first = encode_clips(tiny_model, clips, SMALL)
    monkeypatch.setattr("t2v_kit.training.cache.encode", lambda *_: pytest.fail("encoded again"))
    monkeypatch.setattr("t2v_kit.training.cache.encode_prompt", lambda *_, **__: pytest.fail("encoded again"))
    second = encode_clips(tiny_model, clips, SMALL)
    assert first.key == second.key
    assert all(map(torch.equal, first.latents, second.latents))
    monkeypatch.undo()
    other = encode_clips(tiny_model, clips, replace(SMALL, num_frames=5))
    assert other.key != first.key and other.latents[0].shape[1] == 2
    assert (clips / CACHE).is_dir()


def test_samples_have_the_sizes_asked_for(clips):
    """Pieces of num_frames; a given size; by default a clip's own shape within the model's area."""
    found, defaults = read_clips(clips), {"height": 32, "width": 48, "num_frames": 9}
    assert [sample.size for sample in found.samples(SMALL, defaults)] == [(9, 32, 48)] * 3
    five = found.samples(replace(SMALL, num_frames=1), defaults)
    assert [(sample.start, sample.num_frames) for sample in five[:9]] == [(start, 1) for start in range(9)]
    square = found.samples(replace(SMALL, height=32, width=32), defaults)
    assert {sample.size for sample in square} == {(9, 32, 32)}
    with pytest.raises(UserError, match=r"too short for num_frames=17.*num_frames=9 would work"):
        found.samples(replace(SMALL, num_frames=17), defaults)
    with pytest.raises(UserError, match="4k \\+ 1; 13 or 17 would work"):
        found.samples(replace(SMALL, num_frames=16), defaults)


@pytest.fixture
def bad(tmp_path):
    """A good clip, and one of each thing that can be wrong."""
    write_toyland(tmp_path, 1, 32, 48, 9)
    good = (tmp_path / "000.mp4").read_bytes()
    (tmp_path / "mute.mp4").write_bytes(good)
    (tmp_path / "garbage.mp4").write_bytes(b"not a video at all")
    t2v_kit.save_video(tmp_path / "brief.mp4", np.zeros((3, 32, 48, 3), np.uint8), 16)
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    for name in ("garbage", "brief", "small"):
        (tmp_path / f"{name}.txt").write_text("A red car.")
    return tmp_path


def test_bad_data_gets_a_line_each_before_anything_runs(tiny_model, bad, monkeypatch):
    """All problems are found at once; training refuses the folder, and takes what read_clips kept."""
    found = read_clips(bad)
    assert [clip.path.name for clip in found.clips] == ["000.mp4"]
    said = "\n".join(found.problems)
    for words in ("mute.mp4: has no caption", "garbage.mp4: cannot be read", "brief.mp4: has 3 frames, too short",
                  "small.png: is 8x8, too small"):  # fmt: skip
        assert words in said
    assert len(found.problems) == 4
    monkeypatch.setattr("t2v_kit.training.cache.encode", lambda *_: pytest.fail("nothing may run yet"))
    with pytest.raises(UserError, match="and 3 more"):
        next(train(tiny_model, bad, SMALL))
    monkeypatch.undo()
    assert next(train(tiny_model, found, SMALL)).index == 0


def test_frames_of_two_sizes_are_refused(tmp_path):
    """A film whose picture changes its size half way would be stretched in silence."""
    for name, side in (("a", 48), ("b", 64)):
        t2v_kit.save_video(tmp_path / f"{name}.mp4", np.full((9, 32, side, 3), 90, np.uint8), 16)
    films = tmp_path / "films"
    films.mkdir()
    import imageio_ffmpeg

    parts = []
    for name in ("a", "b"):  # transport streams can be put one behind the other
        part = tmp_path / f"{name}.ts"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", tmp_path / f"{name}.mp4", "-c", "copy"]
        subprocess.run([*command, part], check=True)
        parts.append(part.read_bytes())
    (films / "two.ts").write_bytes(b"".join(parts))
    (films / "two.txt").write_text("A red car.")
    assert "two sizes" in read_clips(films).problems[0]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_table_of_captions_is_read(clips, tmp_path, name):
    """Hugging Face's videofolder, in either form; rows without a file or a text get a line."""
    (tmp_path / "a.mp4").write_bytes((clips / "000.mp4").read_bytes())
    rows = [("a.mp4", "A cat, asleep."), ("b.mp4", "A dog."), ("a.mp4", "")]
    if name.endswith("csv"):
        text = "file_name,text\n" + "".join(f'{file},"{words}"\n' for file, words in rows)
    else:
        text = "".join(json.dumps({"file_name": file, "text": words}) + "\n" for file, words in rows)
    (tmp_path / name).write_text(text)
    found = read_clips(tmp_path)
    assert [clip.caption for clip in found.clips] == ["A cat, asleep."]
    assert len(found.problems) == 2
    assert "b.mp4: there is no such file" in found.problems[1] and "has no caption" in found.problems[0]


def test_noise_levels_are_shifted_and_often_high():
    """Shifting moves the middle as in sampling; high_noise=1 draws from 0.9 to 1 alone."""
    generator = torch.Generator().manual_seed(0)
    plain, shifted = draw_sigmas(4000, 1.0, 0.0, generator), draw_sigmas(4000, 7.0, 0.0, generator)
    assert plain.median() == pytest.approx(0.5, abs=0.02)
    assert shifted.median() == pytest.approx(7 / 8, abs=0.01)
    assert draw_sigmas(4000, 1.0, 1.0, generator).min() >= 0.9
    assert plain.min() > 0 and plain.max() <= 1


def test_each_sample_comes_once_in_an_epoch(tiny_model, clips):
    """Every process has a share, and nothing is left out."""
    data = encode_clips(tiny_model, clips, SMALL)
    trainer = Trainer(tiny_model, data, SMALL)
    epochs = [sorted(trainer._batch(2 * epoch) + trainer._batch(2 * epoch + 1)) for epoch in range(3)]
    assert epochs == [[0, 1, 2]] * 3
    trainer.world, shares = 2, []
    for rank in (0, 1):
        trainer.rank = rank
        shares += trainer._batch(0)
    assert set(shares) == {0, 1, 2} and len(shares) == 4


TWO = """
import sys, torch
from t2v_kit import TrainSettings, train
from t2v_kit.model import streamed
from t2v_kit.model.loading import load
torch.set_num_threads(1)
*_, last = train(load(sys.argv[1], device="cpu"), sys.argv[2], TrainSettings(**eval(sys.argv[3])))
last.save(f"{sys.argv[4]}/{last._trainer.rank}.safetensors")
"""


def test_two_processes_share_a_step(tiny_folder, clips, tmp_path):
    """Gradients are averaged by accelerate: both processes end with the same weights."""
    script = tmp_path / "two.py"
    script.write_text(TWO)
    settings = repr(asdict(replace(SMALL, steps=2)))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    together(2, [script, tiny_folder, clips, settings, tmp_path], environment)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(tensor.abs().max() > 0 for name, tensor in first.items() if "lora_B" in name)


def test_settings_say_what_is_wrong():
    """Each knob has its words, and a mistake is one line."""
    assert all(knob.help and knob.label for knob in TRAIN_KNOBS.values())
    for bad, words in (
        ({"steps": 0}, "steps=0: must be a whole number"),
        ({"activations": "ofload"}, "did you mean 'offload'"),
        ({"height": 64}, "needs width too"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"rank": 0, "streamed_blocks": 2}, "cannot wait in RAM"),
        ({"offloaded_blocks": 2}, "is for activations='offload', not 'recompute'"),
        ({"activations": "keep", "streamed_blocks": 2}, "activations='recompute' would work"),
    ):
        with pytest.raises(UserError, match=words):
            train_settings_from(**bad)
    rates = [TrainSettings(steps=10, warmup=2, learning_rate=1.0).rate_at(step) for step in range(10)]
    assert rates[0] < rates[1] < rates[2] == 1.0 == rates[7] > rates[8] > rates[9] > 0


def test_layers_are_named_by_their_ends(tiny_model, clips):
    """ "all" adds the feed-forward layers of the blocks; a name that fits nothing is refused with the nearest."""
    counts = {}
    for targets in ("attention", "all", "to_q"):
        trainer = Trainer(tiny_model, encode_clips(tiny_model, clips, SMALL), replace(SMALL, targets=targets))
        with trainer.prepared():
            counts[targets] = len(trainer.weights) // 2
    assert counts == {"attention": 8 + 2 * 3, "all": 8 + 4 + 2 * 5, "to_q": 3}
    with pytest.raises(UserError, match=r"did you mean 'attn\.to_q'"):
        next(train(tiny_model, clips, replace(SMALL, targets="attn.to_qq")))


def test_a_loss_that_is_no_number_stops(tiny_model, clips):
    """The step and what to do, instead of a LoRA full of NaN."""
    with torch.no_grad():
        tiny_model.pipe.transformer.proj_out.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="step 0: the loss is nan"):
        next(train(tiny_model, clips, SMALL))


def test_a_step_that_is_over_saves_nothing(tiny_model, clips, tmp_path):
    """The weights have moved on: writing them under the old step's name would be wrong."""
    first, *_ = train(tiny_model, clips, SMALL)
    with pytest.raises(UserError, match="step 0: the training is at step 2"):
        first.save(tmp_path / "a.safetensors")


def test_there_is_no_sampling_with_a_lora_that_has_left(tiny_model, clips):
    """When the loop has ended, the model has no LoRA: pictures of it would be those of before."""
    *_, step = train(tiny_model, clips, SMALL)
    with pytest.raises(UserError, match="its LoRA has left the model"), step.sampling():
        pass
    *_, step = train(tiny_model, clips, replace(SMALL, rank=0))
    with step.sampling():  # weights that are all trained stay
        pass


def t2v(*words: object) -> int:
    return main([str(word) for word in words])


QUICK = ("--steps", 4, "--rank", 2, "--batch-size", 1, "--activations", "keep", "--sample-every", 2)


def test_the_command_trains_in_a_folder_and_the_gallery_shows_it(tiny_folder, clips, tmp_path, capsys):
    """Settings, losses, samples, a checkpoint and the LoRA; a card and a line in the gallery."""
    out = tmp_path / "runs" / "mine"
    assert t2v("train", clips, "--model", tiny_folder, "--out", out, "--device", "cpu", *QUICK) == 0
    training = Training.read(out)
    assert training.finished and [row["step"] for row in training.losses] == [1, 2, 3, 4]
    assert [path.name for path in training.samples] == ["000002.mp4", "000004.mp4"]
    with t2v_kit.video_reader(training.samples[-1]) as frames:
        assert (frames.shape, len(list(frames))) == ((32, 48), 9)
    assert load_file(out / "lora.safetensors")
    assert t2v("gallery", tmp_path / "runs") == 0
    assert "mine  training, finished" in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "runs" / "gallery.png")).std() > 0
    assert t2v("train", clips, "--model", tiny_folder, "--out", out, *QUICK) == 2
    assert "is there and not empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("train", "--resume"), ("resume",)], ids=" ".join)
def test_ctrl_c_keeps_a_checkpoint_to_go_on_from(tiny_folder, clips, tmp_path, monkeypatch, capsys, command):
    """What comes of the rest is what an uninterrupted training gives."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    begin = ("--model", tiny_folder, "--device", "cpu", *QUICK[:-1], 0)
    assert t2v("train", clips, "--out", whole, *begin) == 0
    record = fine_tuning._record

    def stop(models, training, step):
        record(models, training, step)
        if step.index == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(fine_tuning, "_record", stop)
    assert t2v("train", clips, "--out", broken, *begin) == 130
    assert f"t2v train --resume {broken}" in capsys.readouterr().err
    assert not Training.read(broken).finished
    monkeypatch.undo()
    assert t2v(*command, broken) == 0
    first, second = (load_file(folder / "lora.safetensors") for folder in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(Training.read(broken).losses) == 4


def test_mistakes_of_the_command_are_one_line(clips, tmp_path, capsys):
    """Each before a model is loaded."""
    for words, said in (
        (("train",), "DATA is missing"),
        (("train", clips, "--steps", 0), "steps=0: must be a whole number"),
        (("train", tmp_path / "none"), "there is no such folder of clips"),
        (("train", clips, "--resume", tmp_path), "takes the place of DATA"),
        (("train", "--resume", tmp_path), "holds no training"),
        (("train", clips, "--memory", "much"), "must be nf4, none or GB"),
    ):
        assert t2v(*words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_the_benchmark_of_training_runs_small(tmp_path, monkeypatch):
    """Both ways of a row give seconds, and one step repeated has a falling loss."""
    from benchmarks import training

    out = tmp_path / "training.json"
    arguments = ["training", "--tiny", "--rows", "8 GB", "--overfit", "8", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(training, "STEPS", 2)
    assert training.main() == 0
    report = json.loads(out.read_text())
    row = report["8 GB"]
    assert row["naive"]["step_seconds"] > 0 and row["levers_run"]["step_seconds"] > 0 and row["times_naive"] > 0
    assert row["levers"]["streamed_blocks"] == 1
    losses = report["overfit"]["losses"]
    assert losses[-1] < losses[0]
