"""Heat maps are sums of the true attention, watching changes no bit, and what judges the maps is right itself."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.nn import functional as F

import t2v_kit
from t2v_kit import UserError, toyland
from t2v_kit.attention.maps import auc, find_tokens, overlay_heat, token_mask, watch_attention
from t2v_kit.attention.watching import _queries_at_once, summed_attention
from t2v_kit.hunyuan.masks import NoFullMask
from t2v_kit.stages.decoding import encode
from t2v_kit.stages.denoising import denoise
from t2v_kit.stages.noise import add_noise, initial_latents, sigma_schedule
from t2v_kit.stages.prompt import encode_prompt, token_table

from conftest import PROMPT  # isort: skip


def blocks_of(models):
    return [*models.pipe.transformer.transformer_blocks, *models.pipe.transformer.single_transformer_blocks]


def processors(models):
    return [block.attn.processor for block in blocks_of(models)]


def run(models, prompt, settings, **keywords):
    return list(denoise(models, prompt, initial_latents(models, settings), settings, **keywords))


def naive(models, block: int, prompt, settings, padded: bool) -> torch.Tensor:
    """The first step's attention of one block, (heads, tokens, tokens) float64: whole, from the layers alone."""
    module, caught = blocks_of(models)[block].attn, {}

    def catch(_, args, kwargs):
        caught.update(kwargs)

    with module.register_forward_pre_hook(catch, with_kwargs=True):
        next(denoise(models, prompt, initial_latents(models, settings), settings))
    video, text, rope = caught["hidden_states"], caught["encoder_hidden_states"], caught["image_rotary_emb"]
    dual = module.add_q_proj is not None
    parts = {}
    for name, norm, own, own_norm in (
        (
            "q",
            module.norm_q,
            module.add_q_proj if dual else module.to_q,
            module.norm_added_q if dual else module.norm_q,
        ),
        (
            "k",
            module.norm_k,
            module.add_k_proj if dual else module.to_k,
            module.norm_added_k if dual else module.norm_k,
        ),
    ):
        heads = lambda x: x.unflatten(2, (module.heads, -1)).transpose(1, 2)  # noqa: E731
        of_video = apply_rotary_emb(norm(heads(getattr(module, f"to_{name}")(video))), rope)
        parts[name] = torch.cat([of_video, own_norm(heads(own(text)))], dim=2)[0].double()
    scores = parts["q"] @ parts["k"].mT / parts["q"].shape[-1] ** 0.5
    if padded:
        scores[..., video.shape[1] + int(prompt.mask.sum()) :] = -torch.inf
    return scores.softmax(dim=-1).detach()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_maps_are_sums_of_the_full_attention(tiny32, settings, block, padded):
    """A dual-stream block and two single-stream ones, with the prompt's padding and without it."""
    prompt = encode_prompt(tiny32, PROMPT, padded=padded)
    own = find_tokens(prompt, "motorcycle")["motorcycle"]
    full = naive(tiny32, block, prompt, settings, padded)
    video = full.shape[1] - prompt.mask.shape[1]
    video_to_word, word_to_video = full[:, :video, [video + n for n in own]], full[:, [video + n for n in own], :video]
    of_text = video_to_word.sum(-1) / full[:, :video, video:].sum(-1)
    for keywords, expected in (
        ({}, video_to_word.sum(-1)),
        ({"among": "text"}, of_text),
        ({"looker": "word"}, word_to_video.mean(1)),
    ):
        for by_head in (False, True):
            with watch_attention(tiny32, prompt, "motorcycle", [block], by_head=by_head, **keywords) as watched:
                next(denoise(tiny32, prompt, initial_latents(tiny32, settings), settings))
            heat = watched.maps["motorcycle"]
            assert heat.shape == (1, 1, *((2,) if by_head else ()), 3, 2, 3)
            wanted = expected if by_head else expected.mean(0)
            np.testing.assert_allclose(heat.reshape(wanted.shape), wanted, rtol=2e-5, atol=1e-9)
            assert watched.shares.shape == (1, 1, int(prompt.mask.sum()) + 1)
            np.testing.assert_allclose(watched.shares.sum(-1), 1, atol=1e-6)
    text = full[:, :video, video : video + int(prompt.mask.sum())].mean(dim=(0, 1))
    with watch_attention(tiny32, prompt, "motorcycle", [block]) as watched:
        next(denoise(tiny32, prompt, initial_latents(tiny32, settings), settings))
    np.testing.assert_allclose(watched.shares[0, 0, :-1], text, rtol=2e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_watching_changes_no_bit(tiny, settings, padded):
    """In float32 and bfloat16, all blocks watched: the same latents after every step."""
    prompt = encode_prompt(tiny, PROMPT, padded=padded)
    plain = run(tiny, prompt, settings)
    with watch_attention(tiny, prompt, ["man", "motorcycle"]) as watched:
        seen = run(tiny, prompt, settings)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(plain, seen))
    assert watched.maps["man"].shape == (3, 3, 3, 2, 3) and np.isfinite(watched.maps["man"]).all()
    assert watched.sigmas == pytest.approx([step.sigma for step in plain], rel=5e-3)
    assert watched.blocks == ["dual 0", "single 0", "single 1"]
    np.testing.assert_allclose(watched.shares.sum(-1), 1, atol=1e-2 if tiny.pipe.dtype == torch.bfloat16 else 1e-5)


def test_every_second_token_is_a_part_of_all(tiny32):
    settings = t2v_kit.Settings(PROMPT, seed=3, height=64, width=96)
    prompt = encode_prompt(tiny32, PROMPT)
    maps = {}
    for every in (1, 2):
        with watch_attention(tiny32, prompt, "man", every=every) as watched:
            run(tiny32, prompt, settings)
        maps[every] = watched.maps["man"]
    assert maps[1].shape == (3, 3, 3, 4, 6) and maps[2].shape == (3, 3, 3, 2, 3)
    np.testing.assert_allclose(maps[2], maps[1][..., ::2, ::2], rtol=1e-5)


def test_queries_in_parts_give_the_same(tiny32, settings, monkeypatch):
    """Five queries at a time, with a remainder."""
    prompt = encode_prompt(tiny32, PROMPT)
    maps = []
    for _ in range(2):
        with watch_attention(tiny32, prompt, "man") as watched:
            run(tiny32, prompt, settings)
        maps.append(watched)
        monkeypatch.setattr("t2v_kit.attention.watching._queries_at_once", lambda key: 5)
    np.testing.assert_allclose(maps[0].maps["man"], maps[1].maps["man"], rtol=1e-5)
    np.testing.assert_allclose(maps[0].shares, maps[1].shares, rtol=1e-5)


def test_the_parts_are_small_at_full_size():
    """At 720x1280x129 in the 13B: 24 heads, 118,800 video tokens and a long prompt stay within 256 MiB."""
    key = torch.empty(1, 24, 118_800 + 256, 128, device="meta")
    assert _queries_at_once(key) * 24 * (118_800 + 256) * 4 <= 256 * 2**20


@pytest.mark.parametrize("groups", [3, 16, 40])
def test_summed_attention_is_softmax_times_columns(groups):
    """Also with more groups than a head has numbers (16), with a mask and another scale."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, n, 16, generator=generator) for n in (7, 50))
    columns = F.one_hot(torch.arange(50) % groups, groups)
    mask = (torch.arange(50) < 44)[None, None, None]
    for scale in (None, 0.5):
        weights = (query @ key.mT * (scale or 0.25)).masked_fill(~mask, -torch.inf).softmax(-1)
        told = summed_attention(query, key, columns, mask, scale)
        torch.testing.assert_close(told, weights @ columns.float(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(told.sum(-1), torch.ones(1, 2, 7))


def test_processors_come_back(tiny32, settings):
    """After a watch, after an exception in it, and when the watch could not even begin."""
    prompt, before = encode_prompt(tiny32, PROMPT), processors(tiny32)
    hooks = len(tiny32.pipe.transformer._forward_pre_hooks)
    assert all(isinstance(processor, NoFullMask) for processor in before)
    with watch_attention(tiny32, prompt, "man", blocks=[1]):
        assert [a is b for a, b in zip(processors(tiny32), before)] == [True, False, True]
        with pytest.raises(UserError, match="watched already"), watch_attention(tiny32, prompt, "man", blocks=[0, 1]):
            pass
    with pytest.raises(KeyboardInterrupt), watch_attention(tiny32, prompt, "man"):
        raise KeyboardInterrupt
    assert all(a is b for a, b in zip(processors(tiny32), before))
    assert len(tiny32.pipe.transformer._forward_pre_hooks) == hooks


def test_only_this_prompt_is_watched(tiny32, settings):
    """True classifier-free guidance asks twice a step: the negative prompt's attention is another matter."""
    settings = dataclasses.replace(settings, negative_prompt="A blue balloon.", true_cfg_scale=3.0)
    prompt = encode_prompt(tiny32, PROMPT)
    with watch_attention(tiny32, prompt, "man") as watched:
        run(tiny32, prompt, settings)
    assert watched.maps["man"].shape[0] == len(watched.sigmas) == 3
    with watch_attention(tiny32, prompt, "man") as watched:
        run(tiny32, encode_prompt(tiny32, "A red car."), settings)
    with pytest.raises(UserError, match="nothing was watched"):
        _ = watched.maps


def test_another_attention_is_told(tiny32, settings, monkeypatch):
    """A backend that does not call PyTorch's attention leaves nothing to see: said at once, not after the run."""
    name = "diffusers.models.transformers.transformer_hunyuan_video.dispatch_attention_fn"
    monkeypatch.setattr(name, lambda query, key, value, **_: value)
    prompt = encode_prompt(tiny32, PROMPT)
    with pytest.raises(UserError, match="set_attention_backend"), watch_attention(tiny32, prompt, "man"):
        run(tiny32, prompt, settings)


def test_words_are_found_as_whole_words(tiny32):
    prompt = encode_prompt(tiny32, PROMPT, padded=True)

    def spelled(word):
        return "".join(prompt.tokens[n] for n in find_tokens(prompt, word)[word])

    assert spelled("motorcycle") == " motorcycle"
    assert spelled("MAN") == " man" and spelled("a beard riding") == " a beard riding"
    assert len(find_tokens(prompt, ["a"])["a"]) == 3
    assert find_tokens(prompt, {"first": [0]}) == {"first": [0]}
    with pytest.raises(UserError, match=r"word 'motorcycles': .*did you mean 'motorcycle'\?"):
        find_tokens(prompt, "motorcycles")
    for wrong, said in (("cycle", "not in the prompt"), ("pad", "not in the prompt"), ([""], "is empty"), ([], "one")):
        with pytest.raises(UserError, match=said):
            find_tokens(prompt, wrong)
    with pytest.raises(UserError, match="must be from 0 to"):
        find_tokens(prompt, {"padding": [len(prompt.tokens) - 1]})


@pytest.mark.parametrize("word", ["café", "汽车", "🚗", "grünes", "naïve Ärzte"])
@pytest.mark.parametrize("form", ["A {}, at the café.", "\n{} on the beach", "{}"])
def test_words_of_any_alphabet_are_found(tiny32, word, form):
    """Their letters are several tokens each, which only the whole text can tell: those tokens and no others."""
    text = form.format(word)
    prompt = encode_prompt(tiny32, text)
    (found,) = find_tokens(prompt, word).values()
    ids = [row["id"] for row in token_table(tiny32, text) if not row["cropped"]]
    spelled = tiny32.pipe.tokenizer.decode([ids[number] for number in found])
    assert "".join(spelled.split()) == "".join(word.split()) * text.count(word)


@pytest.mark.parametrize(
    "keywords, said",
    [
        ({"blocks": [3]}, "block 3: must be from 0 to 2"),
        ({"blocks": []}, "None watches all"),
        ({"looker": "text"}, "looker='text': must be 'video' or 'word'"),
        ({"among": "words"}, "among='words': must be 'all' or 'text'"),
        ({"among": "text", "looker": "word"}, "among='text': needs looker='video'"),
        ({"every": 0}, "every=0: must be a whole number from 1"),
    ],
)
def test_mistakes_are_told(tiny32, keywords, said):
    before = processors(tiny32)
    with (
        pytest.raises(UserError, match=said),
        watch_attention(tiny32, encode_prompt(tiny32, PROMPT), "man", **keywords),
    ):
        pass
    assert processors(tiny32) == before


def test_auc_counts_pairs():
    """By its definition, all pairs compared, on numbers with ties; shares of a place weigh the pairs."""
    random = np.random.default_rng(0)
    heat, share = random.integers(0, 5, (3, 4, 5)).astype(np.float32), random.random((3, 4, 5)).round(1)
    for mask in (share > 0.6, share):
        inside, outside = mask.ravel()[:, None].astype(float), 1 - mask.ravel()[None].astype(float)
        wins = np.sign(heat.ravel()[:, None] - heat.ravel()[None]) / 2 + 0.5
        assert auc(heat, mask) == pytest.approx((wins * inside * outside).sum() / (inside.sum() * outside.sum()))
    assert auc(share, share > 0.6) == 1 and auc(-share, share > 0.6) == 0
    assert auc(np.zeros(10), np.arange(10) < 3) == 0.5
    with pytest.raises(UserError, match="0% of the places"):
        auc(heat, heat > 9)
    with pytest.raises(UserError, match="one shape"):
        auc(heat[0], share)


def test_a_mask_becomes_shares_of_tokens():
    """The first frame alone, then four frames a latent; a token that is half covered says a half."""
    mask = np.zeros((9, 32, 48), bool)
    mask[0, :16, :8] = True  # half of the first token, in the first frame
    mask[3:5, 16:, 32:] = True  # the last token, in two of the four frames of the second latent
    shares = token_mask(mask, (3, 2, 3))
    assert shares[0, 0, 0] == 0.5 and shares[1, 1, 2] == 0.5 and shares.sum() == 1
    assert token_mask(mask[:1], (1, 2, 3)).shape == (1, 2, 3)


def test_the_overlay_glows_where_and_when_it_is_hot():
    heat = np.zeros((3, 2, 3), np.float32)
    heat[1, 0, 0] = 1
    video = np.full((9, 32, 48, 3), 128, np.uint8)
    film = overlay_heat(video, heat)
    assert film.shape == video.shape and film.dtype == np.uint8
    redness = film[..., 0].astype(int) - film[..., 2]
    middle = redness[2:4].mean(axis=0)
    assert middle[:8, :8].min() > 40 and np.abs(redness[8]).max() == np.abs(redness[0]).max() == 0
    assert (film[:, 31, 47] == film[0, 31, 47]).all()
    assert overlay_heat(video, heat, highest=10.0)[..., 0].max() < film[..., 0].max()
    with pytest.raises(UserError, match="must be finite"):
        overlay_heat(video, heat[0])


def test_the_word_finds_its_subject(pocket):
    """On true Toyland clips, noised: in pocket's best block the word's share of the text finds the subject."""
    found = []
    for subject, seed in (("car", 1), ("balloon", 2), ("dog", 3)):
        scene = toyland.Scene(subject, "red", "meadow", "sunny", "right", "slow", seed=seed)
        text = f"A red {subject} moving to the right in a meadow on a sunny day, slow motion."
        settings = t2v_kit.Settings(text, seed=seed).check(pocket)
        prompt, clean = encode_prompt(pocket, text), encode(pocket, toyland.render(scene))
        sigma = sigma_schedule(pocket, settings)[10]
        noisy = add_noise(clean, initial_latents(pocket, settings), sigma)
        with watch_attention(pocket, prompt, subject, among="text") as watched:
            next(denoise(pocket, prompt, noisy, settings, start=10))
        heat = watched.maps[subject][0]
        inside = token_mask(toyland.truth(scene).masks[0], heat.shape[1:])
        found.append([auc(block, inside) for block in heat])
    assert np.mean(found, axis=0).max() > 0.7
