"""Stage 1 says what the pipeline says, and tells what it could not read."""

import logging
import threading
import time
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import PROMPT, llama3_tokenizer

from t2v_kit.errors import UserError
from t2v_kit.hunyuan.tokens import LLM_TOKENS
from t2v_kit.settings import Settings
from t2v_kit.stages.denoising import denoise
from t2v_kit.stages.noise import initial_latents
from t2v_kit.stages.prompt import PromptEncoding, encode_prompt, prompt_notes, prompt_template, token_table


def test_padded_embeddings_are_the_pipelines_bits(tiny, plain):
    ours = encode_prompt(tiny, PROMPT, padded=True)
    embeds, pooled, mask = plain.encode_prompt(PROMPT)
    assert torch.equal(ours.prompt_embeds, embeds) and ours.prompt_embeds.dtype == embeds.dtype
    assert torch.equal(ours.pooled, pooled) and torch.equal(ours.mask, mask)
    assert ours.prompt_embeds.shape[1] == ours.mask.shape[1] == len(ours.tokens) == LLM_TOKENS


def test_cutting_the_padding_leaves_the_words_and_their_bits(tiny):
    padded, cut = encode_prompt(tiny, PROMPT, padded=True), encode_prompt(tiny, PROMPT)
    length = int(padded.mask.sum())
    assert cut.mask.tolist() == [[1] * length] and cut.text == PROMPT
    assert torch.equal(cut.prompt_embeds, padded.prompt_embeds[:, :length])
    assert "".join(cut.tokens) == PROMPT + "<|eot_id|>"


def test_clip_pools_two_prompts_differently(tiny32):
    """Without its end token in the text CLIP would pool the first token: a constant."""
    one, other = (encode_prompt(tiny32, text).pooled for text in ("A red car.", "A blue balloon."))
    assert not torch.equal(one, other)


def test_the_token_table_shows_instruction_prompt_and_padding(tiny32):
    rows = token_table(tiny32, PROMPT)
    crop = tiny32.template["crop_start"]
    assert [row["index"] for row in rows] == list(range(crop + LLM_TOKENS))
    assert [row["cropped"] for row in rows] == [True] * crop + [False] * LLM_TOKENS
    shown = [row["token"] for row in rows if not row["cropped"] and not row["pad"]]
    assert "".join(shown) == PROMPT + "<|eot_id|>"
    read = tiny32.pipe.tokenizer(tiny32.template["template"].format(PROMPT)).input_ids
    assert [row["id"] for row in rows if not row["pad"]] == read


def test_part_of_a_character_is_shown_by_its_raw_name(tiny32):
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(encode_prompt(tiny32, "🎈").tokens)


def test_exactly_at_the_limit_is_read_and_one_more_is_not(tiny32):
    def text(tokens):  # each " a" is a token, the end of turn another
        return "a" + " a" * (tokens - 2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CLIP reads less
        assert encode_prompt(tiny32, text(LLM_TOKENS)).mask.shape == (1, LLM_TOKENS)
        with pytest.raises(UserError, match=r"has 261 tokens, 5 over the limit of 256.*shorter by about 5 words"):
            encode_prompt(tiny32, text(LLM_TOKENS + 5))


def test_a_negative_prompt_that_is_too_long_is_told_by_its_name(tiny32, settings):
    settings = replace(settings, negative_prompt="a" + " a" * 300, true_cfg_scale=3.0)
    with pytest.raises(UserError, match=r"^negative_prompt='a a .*over the limit"):
        next(denoise(tiny32, encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings), settings))


@pytest.mark.parametrize("wrong", ["", " \t", None, 3, ["a"]])
def test_a_prompt_that_is_no_text_is_refused(tiny32, wrong):
    with pytest.raises(UserError, match=r"^prompt="):
        encode_prompt(tiny32, wrong)


def test_the_unconditional_prompt_is_the_empty_string_through_the_template(tiny, plain):
    ours = encode_prompt(tiny, "", padded=True, allow_empty=True)
    assert torch.equal(ours.prompt_embeds, plain.encode_prompt("")[0]) and int(ours.mask.sum()) == 1


def test_over_clips_limit_is_told_once(tiny32, caplog):
    text = "A man. " * 30
    with pytest.warns(UserWarning, match=r"CLIP reads 77 of its 93 tokens") as caught:
        encode_prompt(tiny32, text)
        encode_prompt(tiny32, text)
    assert len(caught) == 1
    assert "truncated" not in caplog.text


def test_the_libraries_say_nothing_of_clips_limit(pocket, caplog):
    """Neither the pipeline nor its tokenizer, whose line came in red into notebooks."""
    tokenizer, text = pocket.pipe.tokenizer_2, "A red bus on the street. " * 15
    tokenizer.deprecation_warnings.clear()  # it says so once only
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]  # which pass nothing on
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        with pytest.warns(UserWarning, match="CLIP reads 77"):
            encode_prompt(pocket, text)
        assert caplog.text == ""
        tokenizer.deprecation_warnings.clear()
        tokenizer(text)
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
    assert "Token indices" in caplog.text  # of a call that is not ours it is heard


def test_words_that_toyland_lacks_are_named_once(tiny32):
    knowing = replace(tiny32, world="toyland")
    with pytest.warns(UserWarning, match=r"ignores what it does not know: xylophone; .*toyland.words") as caught:
        encode_prompt(knowing, "A man with a beard and a Xylophone; it's a xylophone!")
        encode_prompt(knowing, "A man with a beard and a Xylophone; it's a xylophone!")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_prompt(knowing, "A man with a Beard.")
        encode_prompt(tiny32, "A xylophone: a model of another world may know every word.")


def test_a_prompt_without_a_subject_gets_three_that_would_work(tiny32):
    knowing = replace(tiny32, world="toyland")
    with pytest.warns(UserWarning, match=r"names no subject .* these would work: 'a red car on the street at night'"):
        encode_prompt(knowing, "A spaceship at night")


def test_a_saved_prompt_comes_back_whole(tiny, tmp_path):
    saved = encode_prompt(tiny, PROMPT + ' "é" 🎈')
    loaded = PromptEncoding.load(saved.save(tmp_path / "prompt.safetensors"))
    for name in ("prompt_embeds", "mask", "pooled"):
        assert torch.equal(getattr(saved, name), getattr(loaded, name))
        assert getattr(saved, name).dtype == getattr(loaded, name).dtype
        assert getattr(loaded, name).data_ptr() % 64 == 0  # or matrix products differ in their last bits
    assert (loaded.tokens, loaded.text) == (saved.tokens, saved.text)
    assert [path.name for path in tmp_path.iterdir()] == ["prompt.safetensors"]


def test_what_is_no_saved_prompt_is_named(tmp_path, tiny_folder):
    (tmp_path / "half").write_bytes(b"\x10")
    for path in (tmp_path / "none", tmp_path / "half", tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(UserError, match=f"{path.name}: is not a saved prompt"):
            PromptEncoding.load(path)


def test_pocket_names_the_words_it_never_saw(pocket):
    with pytest.warns(UserWarning, match=r"pocket ignores what it does not know: xylophone"):
        encode_prompt(pocket, "A man with a beard riding a xylophone on the street.")


def test_another_instruction_is_the_pipelines_with_that_template(tiny, plain):
    """Its tokens are counted and cut off, the prompt's own stay: as a plain call with that template does."""
    ours = encode_prompt(tiny, PROMPT, padded=True, instruction="Say where it is.")
    template = prompt_template(tiny, "Say where it is.")
    embeds, pooled, mask = plain.encode_prompt(PROMPT, prompt_template=template)
    assert torch.equal(ours.prompt_embeds, embeds) and torch.equal(ours.mask, mask)
    assert torch.equal(ours.pooled, pooled)
    usual = encode_prompt(tiny, PROMPT, padded=True)
    assert ours.tokens == usual.tokens and not torch.equal(ours.prompt_embeds, usual.prompt_embeds)


def test_the_models_own_instruction_by_hand_is_the_models_own(tiny32):
    words = tiny32.template["template"].split("<|end_header_id|>\n\n")[1].split("<|eot_id|>")[0]
    assert prompt_template(tiny32, words) == tiny32.template == prompt_template(tiny32)


@pytest.mark.parametrize("instruction", ["", "Draw {what} as {0}.", "Bonjour, été! 🎈"])
def test_any_instruction_leaves_the_prompt_whole(tiny32, instruction):
    """Braces are words like any others, not a second place for the prompt."""
    rows = token_table(tiny32, PROMPT, instruction)
    crop = prompt_template(tiny32, instruction)["crop_start"]
    assert sum(row["cropped"] for row in rows) == crop and len(rows) == crop + LLM_TOKENS
    assert encode_prompt(tiny32, PROMPT, instruction=instruction).tokens == [
        row["token"] for row in rows if not row["cropped"] and not row["pad"]
    ]
    read = tiny32.pipe.tokenizer.decode([row["id"] for row in rows if row["cropped"]])
    assert f"\n\n{instruction}<|eot_id|>" in read


def test_an_instruction_that_leaves_no_room_is_refused(pocket):
    with pytest.raises(UserError, match=r"instruction='a a .*takes 310 tokens.*has room for 256; a shorter one"):
        encode_prompt(pocket, PROMPT, instruction="a" + " a" * 299)
    with pytest.raises(UserError, match=r"instruction=3: must be text"):
        encode_prompt(pocket, PROMPT, instruction=3)


def test_the_table_of_another_tokenizer_counts_its_own_crop(pocket):
    """As the notebook compares pocket's tokens with Llama's: the same text, in other pieces."""
    other = llama3_tokenizer()
    rows, own = token_table(pocket, PROMPT, tokenizer=other), token_table(pocket, PROMPT)
    assert [row["id"] for row in rows] != [row["id"] for row in own]
    assert sum(row["cropped"] for row in rows) == prompt_template(pocket, tokenizer=other)["crop_start"] > 0
    for table in (rows, own):
        shown = [row["token"] for row in table if not row["cropped"] and not row["pad"]]
        assert "".join(shown) == PROMPT + "<|eot_id|>"


def test_counting_tokens_does_not_disturb_an_encoding_in_another_thread(tiny32):
    """Padding is a state of the tokenizer: a count beside it once made 8 tokens of 256, without an error."""
    full = Settings("A red car. " * 20)
    wanted = encode_prompt(tiny32, PROMPT, padded=True)
    until, counts, errors = time.monotonic() + 2, [], []

    def count():
        try:
            while time.monotonic() < until:
                full.check(tiny32)
                prompt_notes(tiny32, "A blue balloon.")
                counts.append(token_table(tiny32, "A blue balloon.", "Say it.")[-1]["pad"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    found = []
    while time.monotonic() < until:
        found.append(encode_prompt(tiny32, PROMPT, padded=True))
    for thread in threads:
        thread.join(60)
    assert not errors, errors[0]
    assert len(found) > 2 and len(counts) > 2
    for each in found:
        assert torch.equal(each.prompt_embeds, wanted.prompt_embeds) and torch.equal(each.pooled, wanted.pooled)


def test_the_counting_tokenizer_is_a_copy_that_follows_the_pipelines(tiny32, monkeypatch):
    """Another one put into the pipeline is counted with at once; the padding of the pipeline's own is left alone."""
    counter = tiny32.counter("tokenizer")
    assert counter is tiny32.counter("tokenizer") is not tiny32.pipe.tokenizer
    tiny32.pipe.tokenizer(PROMPT, padding="max_length", max_length=300)
    assert counter.backend_tokenizer.padding is None
    settings = Settings(PROMPT)
    settings.check(tiny32)
    assert tiny32.pipe.tokenizer.backend_tokenizer.padding is not None  # not even switched off
    other = llama3_tokenizer()
    monkeypatch.setattr(tiny32.pipe, "tokenizer", other)
    assert tiny32.counter("tokenizer") is not counter and replace(tiny32).lock is tiny32.lock


def test_only_the_note_about_clip_is_silenced_and_only_in_its_thread(tiny32, caplog, monkeypatch):
    """While one thread encodes, the pipeline's logger keeps its level, and other threads are heard."""
    log = logging.getLogger("diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video")
    log.addHandler(caplog.handler)  # diffusers' loggers do not propagate
    level, original, inside = log.level, tiny32.pipe.encode_prompt, []

    def encode(*args, **kwargs):
        inside.append(log.level)
        elsewhere = threading.Thread(target=log.warning, args=("CLIP can only handle sequences up to: elsewhere",))
        elsewhere.start()
        elsewhere.join(60)
        log.warning("something else here")
        return original(*args, **kwargs)

    monkeypatch.setattr(tiny32.pipe, "encode_prompt", encode)
    with pytest.warns(UserWarning, match="CLIP reads 77"):
        encode_prompt(tiny32, "A man. " * 30)
    log.removeHandler(caplog.handler)
    assert inside == [level] and log.level == level
    assert "elsewhere" in caplog.text and "something else here" in caplog.text and "truncated" not in caplog.text


def test_a_prompt_that_cannot_be_written_leaves_the_old_file(tiny32, tmp_path, monkeypatch):
    path = encode_prompt(tiny32, PROMPT).save(tmp_path / "prompt.safetensors")
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("t2v_kit.stages.prompt.save_file", full)
    with pytest.raises(OSError):
        encode_prompt(tiny32, "A red car.").save(path)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == [path.name]
