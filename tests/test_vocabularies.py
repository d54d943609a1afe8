"""The 13B model's text path on the vocabularies it was trained with, where the wheels that carry them are installed.

The commands that install them, and their licences: see vocabularies.py.
"""

import pytest
import torch
import vocabularies
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel

from t2v_kit.errors import UserError
from t2v_kit.hunyuan.tokens import LLM_TOKENS, load_tokenizer, own_template, token_rows

TEXTS = [
    "A man with a beard riding a motorcycle on the street.",
    "Ein Mädchen läuft über die Straße, „schnell“, im Herbst.",
    "Красный автомобиль едет по пляжу на закате.",
    "一只戴着红帽子的猫在雪地里奔跑。慢动作。",
    "夕暮れの海辺を走る赤い車。ゆっくりと。",
    "빨간 자동차가 해변을 달린다.",
    "قطة ترتدي قبعة حمراء تركض في الثلج.",
    "חתול רץ בשלג",
    "लाल कार समुद्र तट पर चलती है।",
    "แมวสีแดงวิ่งในหิมะ",
    "🚗💨 👩‍🚀 🏳️‍🌈 👍🏽 é é",
    "tabs\tand\n\nlines,   spaces  and 1234567890 numbers\r\n",
    "<b>&amp;</b> {braces} \\ %s",
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Llama 3's tokenizer as `load_tokenizer` reads it from a model folder, and the template with its crop."""
    if lacking := vocabularies.missing("llama_models", "tiktoken"):
        pytest.skip(f"{' and '.join(lacking)} not installed: Llama 3's vocabulary is not here")
    folder = tmp_path_factory.mktemp("llama") / "tokenizer"
    vocabularies.llama3().save_pretrained(folder)
    return load_tokenizer(folder, own_template({}), folder.parent)


@pytest.fixture(scope="module")
def clip():
    if lacking := vocabularies.missing("open_clip"):
        pytest.skip(f"{' and '.join(lacking)} not installed: CLIP's vocabulary is not here")
    return vocabularies.clip()


def test_llama_3_has_its_published_ids(llama):
    """As Meta's tokenizer numbers them, with llava's padding behind; 'Hello world' is 9906, 1917."""
    tokenizer, _ = llama
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [128000, 128001, 128006, 128007, 128009]
    assert tokenizer("Hello world").input_ids == [128000, 9906, 1917]
    assert len(tokenizer) == 128258 and tokenizer.pad_token_id == 128257


def test_the_crop_is_exactly_the_instruction(llama):
    """diffusers crops 95 tokens: on the real vocabulary that is the template's prefix, and another crop is refused."""
    tokenizer, template = llama
    assert template == {"template": DEFAULT_PROMPT_TEMPLATE["template"], "crop_start": 95}
    prefix, _ = template["template"].split("{}")
    assert len(tokenizer(prefix).input_ids) == 95
    rows = token_rows(tokenizer, template, TEXTS[0])
    own = [row["token"] for row in rows if not row["cropped"] and not row["pad"]]
    assert "".join(own) == TEXTS[0] + "<|eot_id|>" and rows[95]["token"] == "A"
    assert len(rows) == 95 + LLM_TOKENS


def test_another_crop_is_refused(llama, tmp_path):
    tokenizer, _ = llama
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="crops 94 tokens, but the instruction before the prompt has 95"):
        load_tokenizer(tmp_path, own_template({"crop_start": 94}), tmp_path)


def test_padding_is_on_the_right_and_masked(llama):
    """What the pipeline does with a short prompt: its tokens first, then only masked padding."""
    tokenizer, template = llama
    text = template["template"].format(TEXTS[0])
    short = tokenizer(text).input_ids
    padded = tokenizer(text, padding="max_length", max_length=95 + LLM_TOKENS, truncation=True)
    assert padded.input_ids[: len(short)] == short and set(padded.input_ids[len(short) :]) == {tokenizer.pad_token_id}
    assert padded.attention_mask == [1] * len(short) + [0] * (95 + LLM_TOKENS - len(short))


@pytest.mark.parametrize("text", TEXTS)
def test_every_script_comes_back(llama, text):
    """No character is lost or changed on its way to tokens and back, inside the template and outside."""
    tokenizer, template = llama
    for whole in (text, template["template"].format(text)):
        ids = tokenizer(whole).input_ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "<|begin_of_text|>" + whole


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back(llama, text):
    tokenizer, _ = llama
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "<|begin_of_text|>" + text


def test_a_special_token_in_a_prompt_is_shown(llama):
    """A prompt may hold a special token, which transformers reads as one: the token table shows it."""
    tokenizer, template = llama
    rows = token_rows(tokenizer, template, "<|eot_id|> cat")
    assert [row["token"] for row in rows[95:98]] == ["<|eot_id|>", " cat", "<|eot_id|>"]


def test_clip_has_its_published_ids(clip):
    """As OpenAI's own tokenizer gives them: 'a photo of a cat' between 49406 and 49407."""
    assert len(clip) == 49408 and (clip.bos_token_id, clip.eos_token_id) == (49406, 49407)
    assert clip("A  photo of a CAT").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (
        clip.decode(clip("a man's car, 3 red!").input_ids, skip_special_tokens=True).strip() == "a man 's car , 3 red !"
    )


def test_clip_pools_at_the_end_of_the_text(clip):
    """The pooled vector is the state at the first end token, whether the text is padded or not, with the real ids.

    The published configuration has eos_token_id 2, for which transformers takes the largest id: that is 49407.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for end in (2, clip.eos_token_id):
        model = CLIPTextModel(CLIPTextConfig(vocab_size=49408, eos_token_id=end, bos_token_id=0, **sizes)).eval()
        for text in (TEXTS[0], TEXTS[3], TEXTS[10], "cat"):
            ids = torch.tensor([clip(text, padding="max_length", max_length=77, truncation=True).input_ids])
            place = len(clip(text).input_ids) - 1
            assert int(ids[0, place]) == clip.eos_token_id
            with torch.no_grad():
                result = model(ids)
            assert torch.equal(result.pooler_output[0], result.last_hidden_state[0, place])


def test_clip_keeps_what_it_reads_of_any_script(clip):
    """Nothing becomes an unknown token, so two prompts in any script pool differently; lower case and spaces apart."""
    for text in TEXTS:
        ids = clip(text).input_ids
        assert clip.unk_token_id not in ids[1:-1]
    first, second = (clip(text).input_ids for text in (TEXTS[3], TEXTS[4]))
    assert first != second
