"""Pocket's text side: two tokenizers, two text encoders, and the way HunyuanVideoPipeline reads them."""

import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import t2v_kit
from t2v_kit.toyland import Scene, caption, random_scene

POCKET = Path(t2v_kit.__file__).parent / "pocket"
LONG = "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street."
PROMPTS = [LONG, "a red dog", "a blue dog", "", " two  spaces\nand a line", "ein Bär fährt Fahrrad 🎈"]


@pytest.fixture(scope="module")
def pipe():
    """The plain pipeline with pocket's text parts only: enough for encode_prompt."""
    from diffusers import HunyuanVideoPipeline
    from transformers import CLIPTextModel, CLIPTokenizer, LlamaModel, PreTrainedTokenizerFast

    return HunyuanVideoPipeline(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(POCKET / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(POCKET / "tokenizer_2"),
        text_encoder=LlamaModel.from_pretrained(POCKET / "text_encoder", dtype=torch.float32).eval(),
        text_encoder_2=CLIPTextModel.from_pretrained(POCKET / "text_encoder_2", dtype=torch.float32).eval(),
        transformer=None, vae=None, scheduler=None)


@torch.no_grad()
def encode(pipe, prompts, **options):
    embeds, pooled, mask = pipe.encode_prompt(prompts, device=torch.device("cpu"), **options)
    return embeds, pooled, mask


def test_the_default_instruction_is_the_95_tokens_that_the_pipeline_crops(pipe):
    from training.lessons import TEMPLATES

    before, after = TEMPLATES["describe"].split("{}")
    prefix = pipe.tokenizer(before).input_ids
    assert len(prefix) == 95 and prefix[0] == pipe.tokenizer.bos_token_id
    for prompt in PROMPTS:  # whatever follows, the prefix keeps its tokens
        ids = pipe.tokenizer(before + prompt + after).input_ids
        assert ids[:95] == prefix
        assert pipe.tokenizer.decode(ids[95:]) == prompt + "<|eot_id|>"


def test_llama_tokenizer_gives_any_text_back(pipe):
    rng = random.Random(0)
    ranges = (range(32, 127), range(160, 0xD800), range(0x10000, 0x1FFFF))  # ASCII, the plane below surrogates, emoji
    strange = ["".join(chr(rng.choice(rng.choice(ranges))) for _ in range(40)) for _ in range(50)]
    for text in [*PROMPTS, *strange, "tabs\tand\r\nlines\n\n", "1234567 it's"]:
        assert pipe.tokenizer.decode(pipe.tokenizer(text, add_special_tokens=False).input_ids) == text


def test_llama_tokenizer_pads_on_the_right(pipe):
    tokens = pipe.tokenizer(["a red dog", "a"], padding=True)
    assert tokens.attention_mask == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert tokens.input_ids[1][2:] == [pipe.tokenizer.pad_token_id] * 2


def test_saved_tokenizers_come_back_with_the_same_tokens(pipe, tmp_path):
    """Also through AutoTokenizer, and after save_pretrained, as in a saved pipeline."""
    from transformers import AutoTokenizer

    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(pipe, name)
        tokenizer.save_pretrained(tmp_path / name)
        again = AutoTokenizer.from_pretrained(tmp_path / name)
        assert type(again) is type(tokenizer)
        assert again(PROMPTS, padding=True)["input_ids"] == tokenizer(PROMPTS, padding=True)["input_ids"]


def test_pipeline_keeps_exactly_the_prompts_tokens_and_the_end_token(pipe):
    """Cropping is right: what the pipeline returns is the model's reading of the whole text, without padding,
    from token 95 on."""
    from training.lessons import TEMPLATES

    embeds, _, mask = encode(pipe, PROMPTS)
    for prompt, states, kept in zip(PROMPTS, embeds, mask):
        count = len(pipe.tokenizer(prompt, add_special_tokens=False).input_ids) + 1
        assert kept.tolist() == [1] * count + [0] * (256 - count)
        ids = pipe.tokenizer(TEMPLATES["describe"].format(prompt), return_tensors="pt").input_ids
        with torch.no_grad():
            whole = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-3]
        torch.testing.assert_close(states[:count], whole[0, 95:], rtol=1e-4, atol=1e-4)


def test_the_pipeline_counts_95_when_the_template_has_no_crop(pipe):
    """'{}' is one token, as for Llama 3, and nothing pads the template: so an instruction of one's own needs no
    counting."""
    from training.lessons import TEMPLATES

    counted = encode(pipe, "a red dog", prompt_template={"template": TEMPLATES["describe"]})
    for mine, plain in zip(counted, encode(pipe, "a red dog")):
        assert torch.equal(mine, plain)


def test_the_unconditional_prompt_is_one_end_token(pipe):
    """An all-zero mask would divide by zero in the token refiner."""
    embeds, pooled, mask = encode(pipe, "")
    assert mask.sum() == 1
    assert embeds.isfinite().all() and pooled.isfinite().all()


def test_two_prompts_read_differently(pipe):
    embeds, pooled, _ = encode(pipe, ["a red dog", "a blue dog"])
    assert embeds.shape == (2, 256, 192) and pooled.shape == (2, 128)
    assert (embeds[0, 2] - embeds[1, 2]).abs().max() > 0.2  # "dog" has heard of its colour
    assert (pooled[0] - pooled[1]).abs().max() > 0.2


def test_another_instruction_changes_how_the_prompt_is_read(pipe):
    from training.lessons import TEMPLATES

    plain = encode(pipe, "a red dog")[0]
    other = encode(pipe, "a red dog", prompt_template={"template": TEMPLATES["motion"]})[0]
    assert (plain[0, :4] - other[0, :4]).abs().max() > 0.1


def test_hidden_states_have_unit_scale(pipe):
    embeds, _, mask = encode(pipe, [caption(random_scene(seed)) for seed in range(50)])
    assert embeds[mask.bool()].square().mean().sqrt() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("prompt", ["a red dog", LONG, "dog " * 100])
def test_clip_pools_the_first_end_token(pipe, prompt):
    """Without an end token, or with a wrong one configured, CLIP would pool the start token: a constant."""
    tokens = pipe.tokenizer_2(prompt, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    end = tokens.attention_mask.sum() - 1
    assert tokens.input_ids[0, 0] == pipe.tokenizer_2.bos_token_id
    assert tokens.input_ids[0, end] == pipe.tokenizer_2.eos_token_id == pipe.text_encoder_2.config.eos_token_id
    with torch.no_grad():
        out = pipe.text_encoder_2(tokens.input_ids)
    assert torch.equal(out.pooler_output[0], out.last_hidden_state[0, end])
    assert torch.equal(encode(pipe, prompt)[1], out.pooler_output)


def test_clip_reads_small_and_capital_letters_alike_and_knows_every_byte(pipe):
    assert pipe.tokenizer_2("A RED Dog").input_ids == pipe.tokenizer_2("a red dog").input_ids
    ids = pipe.tokenizer_2("ein bär 🎈 日本").input_ids
    assert ids.count(pipe.tokenizer_2.unk_token_id) == 1  # only as the end token it also is
    assert pipe.tokenizer_2.decode(ids, skip_special_tokens=True).split() == ["ein", "bär", "🎈", "日本"]


def test_vocabulary_lists_every_word_of_captions_and_each_is_one_token(pipe):
    words = (POCKET / "vocabulary.txt").read_text().split()
    assert words == sorted(set(words))
    said = {w for seed in range(3000) for w in re.findall("[a-z]+", caption(random_scene(seed)).lower())}
    assert said <= set(words)
    assert [w for w in words if len(pipe.tokenizer.tokenize(" " + w)) > 1] == []


def test_a_word_is_taught_once(tmp_path):
    from transformers import LlamaModel, PreTrainedTokenizerFast

    from training.words import teach

    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(POCKET / part, tmp_path / part)
    shutil.copy(POCKET / "vocabulary.txt", tmp_path)
    before = LlamaModel.from_pretrained(POCKET / "text_encoder").embed_tokens.weight
    assert teach(tmp_path, {"red": ("scarlet", "red")}) == ["scarlet"]
    assert teach(tmp_path, {"red": ("scarlet",)}) == []
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    after = LlamaModel.from_pretrained(tmp_path / "text_encoder").embed_tokens.weight
    assert torch.equal(after[: len(before)], before) and len(after) == len(before) + 4
    for red, scarlet in (("red", "scarlet"), (" red", " scarlet"), ("Red", "Scarlet"), (" Red", " Scarlet")):
        [old], [new] = (tokenizer(text, add_special_tokens=False).input_ids for text in (red, scarlet))
        assert old < len(before) <= new and torch.equal(after[old], after[new])
        assert tokenizer.decode([new]) == scarlet
    assert "scarlet" in (tmp_path / "vocabulary.txt").read_text().split()
    with pytest.raises(KeyError, match="xylophone"):
        teach(tmp_path, {"xylophone": ("gong",)})


def test_words_that_captions_lack_are_read_as_those_they_stand_for(pipe, tmp_path):
    """And what captions say is read as before, to the last bit."""
    from transformers import LlamaModel, PreTrainedTokenizerFast

    from training.words import FORMS, teach

    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(POCKET / part, tmp_path / part)
    shutil.copy(POCKET / "vocabulary.txt", tmp_path)
    teach(tmp_path)
    encoder = LlamaModel.from_pretrained(tmp_path / "text_encoder", dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    assert len(tokenizer) == len(encoder.embed_tokens.weight)

    def rows(text):
        """Of the embedding: all that the language model gets to see."""
        return encoder.embed_tokens(tokenizer(text, return_tensors="pt").input_ids)[0]

    for text in (LONG, *map(caption, map(random_scene, range(50)))):
        before = pipe.text_encoder.embed_tokens(pipe.tokenizer(text, return_tensors="pt").input_ids)[0]
        assert torch.equal(rows(text), before)
    for known, others in FORMS.items():
        for word in others:
            for form in ("A red car {} left.", "it {}", "{}"):
                assert torch.equal(rows(form.format(word)), rows(form.format(known))), word
                assert torch.equal(rows(form.format(word).capitalize()), rows(form.format(known).capitalize())), word


def test_answers_depend_on_the_captions_words_only():
    """Which of two subjects is the scene's main one a caption cannot say; so neither may an answer."""
    from training.lessons import answer, read_facts

    scene = Scene("dog", "red", "beach", "night", "left", "slow", companion=("balloon", "blue"))
    turned = replace(scene, subject="balloon", colour="blue", companion=("dog", "red"))
    for seed in range(20):
        text = caption(scene, seed)
        assert read_facts(scene, text, ()) == read_facts(turned, text, ())
    facts = read_facts(scene, "a blue hot air balloon and a red puppy", ("sky",))
    assert answer("who", facts) == "blue balloon and red dog"
    assert answer("where", facts) == "place: beach. sky: unknown."


@torch.no_grad()
def test_rescaling_the_language_model_changes_only_the_scale():
    from transformers import LlamaConfig, LlamaModel

    from training.llm import rescale

    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
                                   num_attention_heads=2, num_key_value_heads=2)).eval()
    ids = torch.randint(50, (2, 9))
    before = model(ids, output_hidden_states=True)
    rescale(model, 3.0)
    after = model(ids, output_hidden_states=True)
    torch.testing.assert_close(after.last_hidden_state, before.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.hidden_states[-3], 3 * before.hidden_states[-3], rtol=1e-4, atol=1e-5)
