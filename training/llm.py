"""Trains pocket's language model, then measures what can be read off it: `python -m training.llm --seconds 90`.

A LlamaModel learns to continue (system instruction, caption, answer) in Llama 3's chat format. Its output head is
the embedding matrix, used here only: HunyuanVideo reads the hidden states two layers below the last, over the
prompt's tokens. Afterwards the model is frozen. Weights go to OUT/text_encoder, the numbers to OUT/llm.json.
"""
from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from . import common
from .lessons import ANSWER_HEAD, ATTRIBUTES, END, KEYWORDS, TEMPLATES, answer, draw_lesson

TOKENIZER = Path(__file__).resolve().parent.parent / "t2v_kit" / "pocket" / "tokenizer"
LAYER = -3  # HunyuanVideoPipeline skips the last two layers (num_hidden_layers_to_skip=2)


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaModel:
    """Llama 3's architecture in small: 3.9 M parameters."""
    return LlamaModel(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=6,
        num_attention_heads=3, num_key_value_heads=3, head_dim=64, max_position_embeddings=512, rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.pad_token_id))


def examples(tokenizer, count: int, seed: int) -> torch.Tensor:
    """(count, L) int16 tokens of whole lessons, padded on the right."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        if rng.random() < 0.02:  # the empty prompt stands for 'no condition'; it must not be strange to the model
            texts.append(TEMPLATES[rng.choice(list(TEMPLATES))].format(""))
        else:
            lesson = draw_lesson(rng)
            texts.append(lesson.prompt + ANSWER_HEAD + lesson.answer + END)
    return tokenizer(texts, padding="longest", return_tensors="pt").input_ids.to(torch.int16)


def logits(model: LlamaModel, ids: torch.Tensor) -> torch.Tensor:
    """(B, L, vocabulary). Causal attention on right-padded rows needs no mask."""
    return model(input_ids=ids, use_cache=False).last_hidden_state @ model.embed_tokens.weight.T


def autocast(device: str):
    return torch.autocast("cuda", torch.bfloat16, enabled=device != "cpu", cache_enabled=False)


def train(model: LlamaModel, data: torch.Tensor, args):
    decayed = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([dict(params=decayed, weight_decay=0.1), dict(params=norms, weight_decay=0.0)],
                                  betas=(0.9, 0.95), fused=args.device != "cpu")
    pad = model.config.pad_token_id

    def step(ids):
        with autocast(args.device):
            scores = logits(model, ids[:, :-1])
        return (F.cross_entropy(scores.flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=pad),)

    recorder, clock = common.Recorder(model, args.device != "cpu"), common.Clock(args.seconds, args.log_every)
    for _ in clock:
        common.learning_rate(optimizer, args.peak, clock.progress, decay=0.5)
        (loss,) = recorder(step, ids=data[torch.randint(len(data), (args.batch,), device=data.device)].long())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        clock.log(loss=loss)
    print(f"{clock.step} steps of {args.batch}")


@torch.no_grad()
def rescale(model: LlamaModel, factor: float):
    """Multiply every hidden state by `factor` and change nothing else: each layer reads the residual stream through
    an RMSNorm, so it is enough to scale what is written to it (and the norms' epsilon)."""
    writers = [model.embed_tokens]
    writers += [m for layer in model.layers for m in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    for module in writers:
        module.weight.mul_(factor)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= factor**2
    model.config.rms_norm_eps *= factor**2


@torch.no_grad()
def read(model: LlamaModel, tokenizer, captions: list[str], device: str, batch: int = 256) -> list[torch.Tensor]:
    """Per caption, (L, 192) float32 on the CPU: what HunyuanVideo's transformer gets to see."""
    crop = len(tokenizer(TEMPLATES["describe"].split("{}")[0]).input_ids)
    states = []
    for start in range(0, len(captions), batch):
        texts = [TEMPLATES["describe"].format(caption) for caption in captions[start:start + batch]]
        tokens = tokenizer(texts, padding="longest", return_tensors="pt").to(device)
        hidden = model(**tokens, output_hidden_states=True, use_cache=False).hidden_states[LAYER].float().cpu()
        states += [h[crop:length] for h, length in zip(hidden, tokens.attention_mask.sum(1).tolist())]
    return states


@torch.no_grad()
def reply(model: LlamaModel, tokenizer, prompts: list[str], device: str, longest: int = 60) -> list[str]:
    """The model's most likely answer to each prompt."""
    tokens = tokenizer([prompt + ANSWER_HEAD for prompt in prompts], padding="longest", return_tensors="pt").to(device)
    ids = F.pad(tokens.input_ids, (0, longest), value=tokenizer.pad_token_id)
    first = tokens.attention_mask.sum(1)
    rows, end = torch.arange(len(ids), device=device), tokenizer.convert_tokens_to_ids(END)
    told = int((tokens.input_ids[0] == end).sum())  # the template's own end tokens
    for step in range(longest):
        with autocast(device):
            hidden = model(input_ids=ids, use_cache=False).last_hidden_state
        scores = hidden[rows, first + step - 1].float() @ model.embed_tokens.weight.T
        ids[rows, first + step] = scores.argmax(-1)
        if (ids == end).sum(1).min() > told:
            break
    return [tokenizer.decode(row[start:]).split(END)[0] for row, start in zip(ids, first.tolist())]


def exact_answers(model, tokenizer, device: str, count: int) -> dict[str, float]:
    """Share of right answers on scenes that training never saw. A retold caption is right if the model's own
    description of it is what the first caption says."""
    rates, rng = {}, random.Random(1)
    for name in TEMPLATES:
        asked = [draw_lesson(rng, name, unseen=True, rough=0) for _ in range(count)]
        answers = reply(model, tokenizer, [lesson.prompt for lesson in asked], device)
        wanted = [lesson.answer for lesson in asked]
        if name == "retell":
            answers = reply(model, tokenizer, [TEMPLATES["who"].format(a) for a in answers], device)
            answers = [" and ".join(sorted(a.split(" and "))) for a in answers]  # the order may change in retelling
            wanted = [" and ".join(sorted(answer("who", lesson.facts).split(" and "))) for lesson in asked]
        rates[name] = sum(a == w for a, w in zip(answers, wanted)) / count
    return rates


def linear_probe(x: torch.Tensor, labels: list, train_share: float = 0.75) -> float:
    """Accuracy of ridge regression onto one-hot labels, on the last quarter of the rows."""
    classes = sorted(set(labels))
    y = torch.tensor([classes.index(label) for label in labels])
    cut = int(len(x) * train_share)
    x = F.pad(((x - x[:cut].mean(0)) / x[:cut].std(0).clamp(min=1e-6)).double(), (0, 1), value=1.0)
    gram = x[:cut].T @ x[:cut] + 1e-2 * cut * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x[:cut].T @ F.one_hot(y[:cut], len(classes)).double())
    return float(((x[cut:] @ weights).argmax(1) == y[cut:]).double().mean())


def probes(model, tokenizer, device: str, count: int) -> dict[str, dict[str, float]]:
    """How well a linear probe reads each attribute off the states of held-out captions: from their mean, from the
    last token, and (for colours) from the token that names the subject. Two-subject captions only."""
    rng = random.Random(2)
    said = [draw_lesson(rng, "describe", unseen=True, silent=0, rough=0, pair=1.0) for _ in range(count)]
    states = read(model, tokenizer, [lesson.caption for lesson in said], device)
    mean, last = torch.stack([s.mean(0) for s in states]), torch.stack([s[-1] for s in states])
    table = {}
    for attribute in ATTRIBUTES:
        labels = [lesson.facts[attribute] for lesson in said]
        table[attribute] = dict(mean=linear_probe(mean, labels), last=linear_probe(last, labels))
    for noun, colour in (("subject", "colour"), ("companion", "companion_colour")):
        spots = [noun_token(tokenizer, lesson.caption, lesson.facts[noun]) for lesson in said]
        x = torch.stack([s[spot] for s, spot in zip(states, spots)])
        table[colour]["noun"] = linear_probe(x, [lesson.facts[colour] for lesson in said])
    return table


def noun_token(tokenizer, caption: str, subject: str) -> int:
    """Index of the token, among the caption's own, that ends the subject's name."""
    end = re.search(rf"\b({KEYWORDS[subject]})\b", caption.lower()).end()
    return tokenizer(caption, add_special_tokens=False).char_to_token(end - 1)


def main():
    args = common.options(__doc__, seconds=90.0, batch=256, examples=120_000, peak=2e-3, questions=500, probed=8000)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    start = time.monotonic()
    data = examples(tokenizer, args.examples, args.seed).to(args.device)
    print(f"{data.shape[0]} lessons of up to {data.shape[1]} tokens in {time.monotonic() - start:.0f} s", flush=True)
    model = build(tokenizer).to(args.device)
    train(model, data, args)
    model.eval()

    sample = [draw_lesson(random.Random(seed), "describe", unseen=True).caption for seed in range(500)]
    before = torch.cat(read(model, tokenizer, sample, args.device)).square().mean().sqrt().item()
    rescale(model, 1 / before)  # the transformer's text input then has unit scale
    common.save(model, args.out / "text_encoder")
    model = LlamaModel.from_pretrained(args.out / "text_encoder", dtype=torch.float32).to(args.device).eval()
    states = torch.cat(read(model, tokenizer, sample, args.device))
    numbers = dict(
        steps_seconds=args.seconds, parameters=model.num_parameters(), rms_trained=before,
        rms_saved=states.square().mean().sqrt().item(), largest=states.abs().max().item(),
        exact=exact_answers(model, tokenizer, args.device, args.questions),
        probes=probes(model, tokenizer, args.device, args.probed))
    (args.out / "llm.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print("hidden states: rms {rms_trained:.3f} as trained, {rms_saved:.3f} as saved, "
          "largest {largest:.1f}".format(**numbers))
    for name, rate in numbers["exact"].items():
        print(f"answer {name:10s} {rate:6.1%} right")
    for name, accuracy in numbers["probes"].items():
        print(f"probe {name:17s} " + "  ".join(f"{where} {value:6.1%}" for where, value in accuracy.items()))


if __name__ == "__main__":
    main()
