"""Pocket's text side: two tokenizers, two text encoders, and the way HunyuanVideoPipeline reads them."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import t2v_kit
from t2v_kit.toyland import COLOURS, SUBJECTS, Scene, caption, random_scene
from t2v_kit.toyland.grammar import known_words, plural

POCKET = Path(t2v_kit.__file__).parent / "pocket"
LONG = "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street."
PROMPTS = [LONG, "a red dog", "a blue dog", "", " two  spaces\nand a line", "ein Bär fährt Fahrrad 🎈"]


@pytest.fixture(scope="module")
def tokenizers():
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    return (
        PreTrainedTokenizerFast.from_pretrained(POCKET / "tokenizer"),
        CLIPTokenizer.from_pretrained(POCKET / "tokenizer_2"),
    )


@pytest.fixture(scope="module")
def pipe(tokenizers):
    """The plain pipeline with pocket's text parts only: enough for encode_prompt."""
    from diffusers import HunyuanVideoPipeline
    from transformers import CLIPTextModel, LlamaModel

    return HunyuanVideoPipeline(
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        text_encoder=LlamaModel.from_pretrained(POCKET / "text_encoder", dtype=torch.float32).eval(),
        text_encoder_2=CLIPTextModel.from_pretrained(POCKET / "text_encoder_2", dtype=torch.float32).eval(),
        transformer=None,
        vae=None,
        scheduler=None,
    )


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
    assert embeds.shape == (2, 256, 256) and pooled.shape == (2, 128)
    assert (embeds[0, 2] - embeds[1, 2]).abs().max() > 0.2  # "dog" has heard of its colour
    assert (pooled[0] - pooled[1]).abs().max() > 0.05


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


def test_every_word_of_captions_is_one_token(tokenizers):
    words = sorted(known_words())
    for tokenizer, form in ((tokenizers[0], " {}"), (tokenizers[1], "{}")):
        assert [word for word in words if len(tokenizer.tokenize(form.format(word))) > 1] == []


@pytest.mark.parametrize("form", [str, str.capitalize, str.upper])
@pytest.mark.parametrize("word", [*SUBJECTS, *COLOURS])
def test_subjects_and_colours_are_tokens_in_every_case_first_and_later(tokenizers, word, form):
    for text in (form(word), " " + form(word)):
        assert tokenizers[0].tokenize(text) == [text.replace(" ", "Ġ")]


def test_ids_stay_under_those_of_llama(tokenizers):
    assert len(tokenizers[0]) == 4400 and len(tokenizers[1]) < 4000


def test_the_speller_uses_pieces_only_and_gives_the_same_text(tokenizers):
    from training.tokenizers import speller

    spelt = speller(tokenizers[0], dropout=0.1)
    for text in PROMPTS:
        ids = spelt.encode(text, add_special_tokens=False).ids
        assert tokenizers[0].decode(ids) == text
        assert len(ids) >= len(tokenizers[0](text, add_special_tokens=False).input_ids)


def test_the_forms_of_a_word_share_their_letters(tokenizers):
    """So that what is learnt of 'red' holds for 'RED': only the form's part of the embedding differs."""
    from training.llm import Reader, forms

    letters, form, count = forms(tokenizers[0])
    ids = {
        text: tokenizers[0].convert_tokens_to_ids(text)
        for text in ("red", "Red", "RED", "Ġred", "ĠRed", "ĠRED", "Ġblue")
    }
    assert len({int(letters[ids[text]]) for text in list(ids)[:-1]}) == 1
    assert [int(form[ids[text]]) for text in ids] == [0, 1, 2, 3, 4, 5, 3]
    assert letters.max() + 1 == count < len(letters)
    reader = Reader(tokenizers[0])
    table = reader.finished().embed_tokens.weight
    assert torch.allclose(table[ids["RED"]] - table[ids["red"]], reader.of_forms[2] - reader.of_forms[0], atol=1e-6)
    scores = reader(torch.tensor([[ids["Red"], ids["Ġblue"]]]))
    states = reader.llama(input_ids=torch.tensor([[ids["Red"], ids["Ġblue"]]])).last_hidden_state
    torch.testing.assert_close(scores, states @ table.T)  # the finished matrix is what training embedded by


def test_lessons_are_written_as_the_pipeline_tokenises_them(tokenizers):
    """Prompt, then answer; where nothing is spelt in pieces the tokens are those of the whole text."""
    from training import llm

    class Straight(random.Random):
        def random(self):
            return 0.999  # no word in pieces, no empty prompt

    llm.begin(tokenizers[0])
    tokens = tokenizers[0](llm.TEMPLATES["describe"].format(" red  car\n!") + llm.ANSWER_HEAD).input_ids
    before, after = llm.scribe.frames["describe"]
    assert before + llm.scribe.caption(" red  car\n!", Straight(0)) + after + llm.scribe.head == tokens
    for table, start in llm.written((40, 3, tokenizers[0].pad_token_id)):
        for row, begins in zip(table, start):
            whole = tokenizers[0].decode([i for i in row if i != tokenizers[0].pad_token_id])
            assert whole.count("<|begin_of_text|>") == 1 and whole.endswith("<|eot_id|>")
            assert tokenizers[0].decode(row[:begins]).endswith(("<|eot_id|>", llm.ANSWER_HEAD))


def test_answers_depend_on_the_captions_words_only():
    """Which of two subjects is the scene's main one a caption cannot say; so neither may an answer."""
    from t2v_kit.toyland.captions import Telling
    from training.lessons import answer, read_facts

    scene = Scene("dog", "red", "beach", "night", "left", "slow", companion=("balloon", "blue"))
    turned = replace(scene, subject="balloon", colour="blue", companion=("dog", "red"))
    actors = (("balloon", "blue"), ("dog", "red"))
    said = Telling("", "a blue hot air balloon and a red puppy", actors, frozenset({"sky"}))
    assert read_facts(scene, said) == read_facts(turned, said)
    facts = read_facts(scene, said)
    assert answer("who", facts) == "blue balloon and red dog"
    assert answer("where", facts) == "place: beach. sky: unknown."
    assert answer("plain", facts) == "blue balloon and red dog, left, slow, beach."
    partly = read_facts(scene, replace(said, unsaid=frozenset({"companion_colour"})))
    assert answer("who", partly) == "unknown balloon and red dog"


def test_an_answer_says_what_its_caption_says():
    """Of a caption that is written as it should be, every fact has its words; what is unknown has none."""
    from t2v_kit.toyland.lexicon import NOUNS, SHADES
    from training.lessons import draw_lesson

    rng = random.Random(0)
    for _ in range(200):
        lesson = draw_lesson(rng, "correct", rough=0, careless=False)
        assert lesson.answer == lesson.caption
        text, facts = lesson.caption.lower(), lesson.facts
        assert any(noun in text or plural(noun) in text for noun in NOUNS[facts["subject"]])
        assert facts["colour"] is None or any(shade in text for shade in (facts["colour"], *SHADES[facts["colour"]]))
        assert (facts["direction"] or "") in text


@torch.no_grad()
def test_rescaling_the_language_model_changes_only_the_scale():
    from transformers import LlamaConfig, LlamaModel

    from training.llm import rescale

    torch.manual_seed(0)
    model = LlamaModel(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).eval()
    ids = torch.randint(50, (2, 9))
    before = model(ids, output_hidden_states=True)
    rescale(model, 3.0)
    after = model(ids, output_hidden_states=True)
    torch.testing.assert_close(after.last_hidden_state, before.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.hidden_states[-3], 3 * before.hidden_states[-3], rtol=1e-4, atol=1e-5)
