"""Models for the tests: a tiny HunyuanVideo folder with random weights, and pocket as it is shipped."""

import t2v_kit  # noqa: F401, I001  (first: it makes torchvision importable)

import gc
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import mediapy
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from t2v_kit import toyland
from t2v_kit.errors import fresh_notes
from t2v_kit.hunyuan.files import POCKET
from t2v_kit.model.loading import load
from t2v_kit.model.models import Models
from t2v_kit.settings import Settings

# The split pattern in the tokenizer.json of meta-llama/Meta-Llama-3-8B.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = [
    DEFAULT_PROMPT_TEMPLATE["template"],
    "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street.",
    "A red car drives to the left on the beach at sunset, slow motion.",
    "A blue balloon rises over the mountains on a starry night.",
]
PROMPT = "A man with a beard riding a motorcycle."

mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())  # the tests read videos with mediapy
gc.freeze()  # the libraries' objects are never garbage, and looking through them takes 0.2 s each time


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def drawn(scale: int, count: int = 3) -> np.ndarray:
    """Held-out scenes at `scale` times 56x96: (count, H, W, 3) uint8."""
    scenes = [toyland.random_scene(seed, unseen=True) for seed in range(count)]
    frames = toyland.render_batch(scenes, 56 * scale, 96 * scale, 1)[:, :, 0]
    return (frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def write_gguf(path: Path, weights: dict[str, torch.Tensor]) -> int:
    """A transformer as a GGUF file, the blocks' matrices in Q8_0: rows of 32 numbers in 8 bits with a scale.

    Returns how many tensors are packed.
    """
    gguf = pytest.importorskip("gguf")
    writer, packed = gguf.GGUFWriter(path, "hyvid"), 0
    for name, weight in weights.items():
        array = weight.numpy()
        if array.ndim == 2 and array.shape[1] % 32 == 0 and "blocks" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
            packed += 1
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return packed


def pytest_collection_modifyitems(items):
    """nbval waits 5 seconds at most for a cell's outputs once the cell is done; a busy machine can take longer."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 60


@pytest.fixture(autouse=True)
def notes_again():
    """Each test hears every note, also those that an earlier test heard of the same model."""
    with fresh_notes():
        yield


def byte_level_tokenizer(specials: list[str], bos: str, eos: str, pad: str, padding_side: str = "right"):
    """A byte-level BPE in Llama 3's style, trained on SENTENCES; `bos` is put before every text."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    last = f" {eos}" if pad == eos else ""  # CLIP closes with its end token, which is its padding too
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A{last}", special_tokens=[(t, tokenizer.token_to_id(t)) for t in (bos, eos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, padding_side=padding_side
    )


def llama3_tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """Special tokens as HunyuanVideo's prompt template uses them."""
    names = ("begin_of_text", "eot_id", "start_header_id", "end_header_id")
    specials = [f"<|{name}|>" for name in names] + ["<pad>"]
    return byte_level_tokenizer(specials, "<|begin_of_text|>", "<|eot_id|>", "<pad>", padding_side)


def tiny_transformer() -> HunyuanVideoTransformer3DModel:
    return HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=32,
        pooled_projection_dim=24,
        rope_axes_dim=(4, 6, 6),
    )


def tiny_vae() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def tiny_text_encoders(words: int, clip_words: int, clip_end: int) -> tuple[LlamaModel, CLIPTextModel]:
    llama = LlamaConfig(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=2048,
    )
    clip = CLIPTextConfig(
        vocab_size=clip_words,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=clip_end,
        pad_token_id=clip_end,
    )
    return LlamaModel(llama), CLIPTextModel(clip)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """HunyuanVideo's layout at the smallest size, random weights; t2v_kit.json counts the crop."""
    torch.manual_seed(0)
    llama_words = llama3_tokenizer()
    clip_words = byte_level_tokenizer(
        ["<|startoftext|>", "<|endoftext|>"], "<|startoftext|>", "<|endoftext|>", "<|endoftext|>"
    )
    llama, clip = tiny_text_encoders(len(llama_words), len(clip_words), clip_words.eos_token_id)
    pipe = HunyuanVideoPipeline(
        text_encoder=llama,
        tokenizer=llama_words,
        transformer=tiny_transformer(),
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip,
        tokenizer_2=clip_words,
    )
    folder = tmp_path_factory.mktemp("tiny")
    pipe.save_pretrained(folder)
    (folder / "t2v_kit.json").write_text(
        '{"defaults": {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 3, "fps": 8},'
        ' "crop_start": null, "trained_sizes": [[9, 32, 48], [5, 32, 48]]}'
    )
    return folder


def shared(models: Models) -> Iterator[Models]:
    """A model that many tests use. Changed weights would fail tests elsewhere, in an order that differs by worker."""

    def weights() -> list[torch.Tensor]:
        pipe = models.pipe
        networks = (pipe.text_encoder, pipe.text_encoder_2, pipe.transformer, pipe.vae)
        return [tensor.clone() for network in networks for tensor in network.state_dict().values()]

    before = weights()
    yield models
    unchanged = all(map(torch.equal, before, weights()))
    assert unchanged, f"a test has changed the weights of the shared {models.name}"


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def tiny(request, tiny_folder):
    """The tiny model in both dtypes in which the bits must be the pipeline's."""
    yield from shared(load(tiny_folder, device="cpu", dtype=request.param))


@pytest.fixture(scope="session")
def tiny32(tiny_folder):
    yield from shared(load(tiny_folder, device="cpu"))


@pytest.fixture(scope="session")
def plain(tiny, tiny_folder) -> HunyuanVideoPipeline:
    """The same files through diffusers alone: no part of this package has touched it."""
    pipe = HunyuanVideoPipeline.from_pretrained(tiny_folder, dtype=tiny.pipe.transformer.dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def pocket():
    if not (POCKET / "model_index.json").exists():
        pytest.skip("t2v_kit/pocket/model_index.json is missing: pocket is not in this checkout")
    yield from shared(load("pocket", device="cpu"))


@pytest.fixture
def settings() -> Settings:
    """A small run: 9 frames of 32x48 in 3 steps, by the tiny model's defaults."""
    return Settings(PROMPT, seed=3)
