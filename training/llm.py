"""Trains pocket's language model, then measures what can be read off it: `python -m training.llm --seconds 100`.

A LlamaModel learns to continue (system instruction, caption, answer) in Llama 3's chat format. Its output head is
the embedding matrix, used here only: HunyuanVideo reads the hidden states two layers below the last, over the
prompt's tokens. Afterwards the model is frozen. Weights go to OUT/text_encoder, the numbers to OUT/llm.json.

'Red', 'red', ' RED' are tokens of their own, and most are rare. So in training the embedding of a token is that of its
letters in lower case plus one of six for its form (a space before it or none; small, capitalised, capitals): what is
learnt of one form holds for all. And captions are spelt in pieces here and there, so that pieces mean something when a
mistyped word falls into them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from . import common
from .lessons import ANSWER_HEAD, ATTRIBUTES, END, KEYWORDS, TEMPLATES, answer, draw_lesson
from .tokenizers import SPACE, speller

TOKENIZER = Path(__file__).resolve().parent.parent / "t2v_kit" / "pocket" / "tokenizer"
LAYER = -3  # HunyuanVideoPipeline skips the last two layers (num_hidden_layers_to_skip=2)
LENGTHS = (112, 176, 288)  #: tokens of a whole lesson, padded: most are short, and a step is recorded for each
CAPTION_WEIGHT = 0.25  #: of a token before the answer in the loss; what a caption says next is mostly chance


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaModel:
    """Llama 3's architecture in small, with grouped queries as there: 3.9 M parameters."""
    return LlamaModel(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=352,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.convert_tokens_to_ids(END),
            pad_token_id=tokenizer.pad_token_id,
        )
    )


# ---- lessons as tokens -----------------------------------------------------------------------------------


class Scribe:
    """Writes lessons as tokens, some words of them in pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer, self.spelt = tokenizer.backend_tokenizer, speller(tokenizer, dropout=0.1)
        self.frames = {}
        for name, text in TEMPLATES.items():
            before, after = text.split("{}")
            self.frames[name] = [tokenizer.bos_token_id, *self.ids(before)], self.ids(after)
        self.head, self.end = self.ids(ANSWER_HEAD), self.ids(END)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def caption(self, text: str, rng: random.Random) -> list[int]:
        """In a third of the captions a quarter of the words is spelt in pieces."""
        if rng.random() > 0.33:
            return self.ids(text)
        ids = []
        for word in re.split("(?= )", text):
            ids += self.spelt.encode(word, add_special_tokens=False).ids if rng.random() < 0.25 else self.ids(word)
        return ids

    def lesson(self, rng: random.Random) -> tuple[list[int], int]:
        """The tokens of a random lesson, and where its answer begins."""
        if rng.random() < 0.02:  # the empty prompt stands for 'no condition'; it must not be strange to the model
            before, after = self.frames[rng.choice(list(TEMPLATES))]
            return before + after, len(before + after)
        while True:
            lesson = draw_lesson(rng)
            before, after = self.frames[lesson.name]
            prompt = before + self.caption(lesson.caption, rng) + after + self.head
            whole = prompt + self.ids(lesson.answer) + self.end
            if len(whole) <= LENGTHS[-1]:
                return whole, len(prompt)


def begin(tokenizer: PreTrainedTokenizerFast):
    """What every process that writes lessons does first."""
    global scribe
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are enough
    scribe = Scribe(tokenizer)


def written(job: tuple[int, int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each of LENGTHS (n, length) int16 tokens, padded on the right, and (n,) int16 beginnings of the answers."""
    count, seed, pad = job
    rng, rows = random.Random(seed), {length: [] for length in LENGTHS}
    for _ in range(count):
        ids, start = scribe.lesson(rng)
        rows[next(length for length in LENGTHS if len(ids) <= length)].append((ids, start))
    parts = []
    for length, lessons in rows.items():
        table = np.full((len(lessons), length), pad, np.int16)
        for row, (ids, _) in zip(table, lessons):
            row[: len(ids)] = ids
        parts.append((table, np.array([start for _, start in lessons], np.int16)))
    return parts


def examples(
    tokenizer, count: int, seed: int, processes: int, part: int = 2000
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`written` of `count` lessons, from several processes."""
    jobs = [(min(part, count - at), seed * 1_000_003 + at, tokenizer.pad_token_id) for at in range(0, count, part)]
    with multiprocessing.get_context("fork").Pool(processes, begin, (tokenizer,)) as pool:
        parts = pool.map(written, jobs, chunksize=1)
    return [tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*same)) for same in zip(*parts)]


# ---- training --------------------------------------------------------------------------------------------


def forms(tokenizer) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Of each token: the number of its letters in lower case, that of its form (0 to 5), and how many of the former."""
    letters, which, form = {}, [], []
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    for token in tokens:
        word = token.removeprefix(SPACE) or token
        case = 2 if len(word) > 1 and word.isupper() else 1 if word[:1].isupper() else 0
        chat = token in tokenizer.all_special_tokens or token.startswith("<|")
        which.append(letters.setdefault(token if chat else word.lower(), len(letters)))
        form.append(0 if chat else case + 3 * (word != token))
    return torch.tensor(which), torch.tensor(form), len(letters)


class Reader(nn.Module):
    """The language model with an embedding that is the sum of a token's letters and its form."""

    def __init__(self, tokenizer):
        super().__init__()
        self.llama = build(tokenizer)
        letters, form, count = forms(tokenizer)
        self.register_buffer("letters", letters)
        self.register_buffer("form", form)
        width = self.llama.config.hidden_size
        self.of_letters = nn.Parameter(0.02 * torch.randn(count, width))
        self.of_forms = nn.Parameter(0.02 * torch.randn(6, width))

    def table(self) -> torch.Tensor:
        return F.embedding(self.letters, self.of_letters) + F.embedding(self.form, self.of_forms)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, L) -> scores (B, L, vocabulary). Causal attention on right-padded rows needs no mask."""
        table = self.table()
        hidden = self.llama(inputs_embeds=F.embedding(ids, table), use_cache=False).last_hidden_state
        return hidden @ table.T

    @torch.no_grad()
    def finished(self) -> LlamaModel:
        """The language model with the sums written into its embedding matrix."""
        self.llama.embed_tokens.weight.copy_(self.table())
        return self.llama.eval()


def autocast(device: str):
    return torch.autocast("cuda", torch.bfloat16, enabled=device != "cpu", cache_enabled=False)


def train(model: Reader, data: list[tuple[torch.Tensor, torch.Tensor]], args):
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and "embed_tokens" not in name]
    norms = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=0.1), dict(params=norms, weight_decay=0.0)],
        lr=args.peak,
        betas=(0.9, 0.95),
        fused=args.device != "cpu",
    )
    pad = model.llama.config.pad_token_id

    def step(ids, start):
        with autocast(args.device):
            scores = model(ids[:, :-1])
        each = F.cross_entropy(scores.flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=pad, reduction="none")
        each = each.view(len(ids), -1)
        place = torch.arange(1, ids.shape[1], device=ids.device)
        answers = (place >= start[:, None]) & (ids[:, 1:] != pad)
        weight = CAPTION_WEIGHT * (ids[:, 1:] != pad) + (1 - CAPTION_WEIGHT) * answers
        return (each * weight).sum() / weight.sum(), (each * answers).sum() / answers.sum()

    recorder = common.Recorder(model, args.device != "cpu")
    clock = common.Clock(args.seconds, args.log_every, args.rank)
    sizes, rng = [len(tokens) for tokens, _ in data], random.Random(args.seed)  # alike on all GPUs: they step together
    for _ in clock:
        common.learning_rate(optimizer, args.peak, clock.progress, decay=0.5)
        tokens, start = rng.choices(data, sizes)[0]
        pick = torch.randint(len(tokens), (args.batch,), device=tokens.device)
        loss, of_answers = recorder(step, ids=tokens[pick].long(), start=start[pick].long())
        common.average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        clock.log(loss=loss, answers=of_answers)
    if args.rank == 0:
        print(f"{clock.step} steps of {args.batch} on {args.world} GPU(s)")


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
    """Per caption, (L, 256) float32 on the CPU: what HunyuanVideo's transformer gets to see."""
    crop = len(tokenizer(TEMPLATES["describe"].split("{}")[0]).input_ids)
    states = []
    for start in range(0, len(captions), batch):
        texts = [TEMPLATES["describe"].format(caption) for caption in captions[start : start + batch]]
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
            hidden = model(input_ids=ids[:, : first.max() + step], use_cache=False).last_hidden_state
        scores = hidden[rows, first + step - 1].float() @ model.embed_tokens.weight.T
        ids[rows, first + step] = scores.argmax(-1)
        if (ids == end).sum(1).min() > told:
            break
    return [tokenizer.decode(row[start:]).split(END)[0] for row, start in zip(ids, first.tolist())]


def exact_answers(model, tokenizer, device: str, count: int, careless: bool) -> dict[str, float]:
    """Share of right answers on scenes that training never saw, asked in captions as they should be written or as
    people type them. A retold caption is right if the model's own description of it is what the first caption says."""
    rates, rng = {}, random.Random(1)
    for name in TEMPLATES:
        asked = [draw_lesson(rng, name, unseen=True, rough=0, careless=careless) for _ in range(count)]
        asked = [lesson for lesson in asked if len(tokenizer(lesson.caption).input_ids) < 120]
        longest = 120 if name in ("retell", "correct") else 60
        answers = reply(model, tokenizer, [lesson.prompt for lesson in asked], device, longest)
        wanted = [lesson.answer for lesson in asked]
        if name == "retell":
            answers = reply(model, tokenizer, [TEMPLATES["who"].format(a) for a in answers], device)
            answers = [" and ".join(sorted(a.split(" and "))) for a in answers]  # the order may change in retelling
            wanted = [" and ".join(sorted(answer("who", lesson.facts).split(" and "))) for lesson in asked]
        rates[name] = sum(a == w for a, w in zip(answers, wanted)) / len(asked)
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
    last token, and (for colours) from the token that ends the subject's name, where it follows its colour's plain
    word. Two-subject captions only."""
    rng = random.Random(2)
    said = [
        draw_lesson(rng, "describe", unseen=True, silent=0, rough=0, pair=1.0, careless=False) for _ in range(count)
    ]
    states = read(model, tokenizer, [lesson.caption for lesson in said], device)
    mean, last = torch.stack([s.mean(0) for s in states]), torch.stack([s[-1] for s in states])
    table = {}
    for attribute in ATTRIBUTES:
        labels = [lesson.facts[attribute] for lesson in said]
        table[attribute] = dict(mean=linear_probe(mean, labels), last=linear_probe(last, labels))
    for noun, colour in (("subject", "colour"), ("companion", "companion_colour")):
        spots = [
            (i, noun_token(tokenizer, lesson.caption, lesson.facts[noun], lesson.facts[colour]))
            for i, lesson in enumerate(said)
        ]
        spots = [(i, spot) for i, spot in spots if spot is not None]
        x = torch.stack([states[i][spot] for i, spot in spots])
        table[colour]["noun"] = linear_probe(x, [said[i].facts[colour] for i, _ in spots])
    return table


def noun_token(tokenizer, caption: str, subject: str, colour: str) -> int | None:
    """Index of the token, among the caption's own, that ends the subject's name behind its colour; None without one."""
    name = re.search(rf"\b{colour} ({KEYWORDS[subject]})\b", caption.lower())
    return name and tokenizer(caption, add_special_tokens=False).char_to_token(name.end() - 1)


def main():
    args = common.options(
        __doc__.splitlines()[0], seconds=100.0, batch=256, examples=500_000, peak=2e-3, questions=400, probed=8000
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    start = time.monotonic()
    processes = max(1, (os.cpu_count() or 1) // args.world)
    data = examples(tokenizer, args.examples, args.seed + 100 * args.rank, processes)
    data = [tuple(column.to(args.device) for column in same) for same in data]
    print(
        f"{' and '.join(f'{len(a)} lessons of up to {a.shape[1]}' for a, _ in data)} tokens "
        f"in {time.monotonic() - start:.0f} s",
        flush=True,
    )
    reader = Reader(tokenizer).to(args.device)
    if args.world > 1:
        for p in reader.parameters():
            torch.distributed.broadcast(p.data, 0)
    train(reader, data, args)
    if args.rank == 0:
        measure(reader.finished(), tokenizer, args)


def measure(model: LlamaModel, tokenizer: PreTrainedTokenizerFast, args):
    """Give the states unit scale, save the model, and write down what it knows."""
    sample = [draw_lesson(random.Random(seed), "describe", unseen=True).caption for seed in range(500)]
    before = torch.cat(read(model, tokenizer, sample, args.device)).square().mean().sqrt().item()
    rescale(model, 1 / before)  # the transformer's text input then has unit scale
    common.save(model, args.out / "text_encoder")
    model = LlamaModel.from_pretrained(args.out / "text_encoder", dtype=torch.float32).to(args.device).eval()
    states = torch.cat(read(model, tokenizer, sample, args.device))
    numbers = dict(
        steps_seconds=args.seconds,
        parameters=model.num_parameters(),
        rms_trained=before,
        rms_saved=states.square().mean().sqrt().item(),
        largest=states.abs().max().item(),
        exact=exact_answers(model, tokenizer, args.device, args.questions, careless=False),
        exact_typed=exact_answers(model, tokenizer, args.device, args.questions, careless=True),
        probes=probes(model, tokenizer, args.device, args.probed),
    )
    (args.out / "llm.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(
        "hidden states: rms {rms_trained:.3f} as trained, {rms_saved:.3f} as saved, largest {largest:.1f}".format(
            **numbers
        )
    )
    for name, rate in numbers["exact"].items():
        print(f"answer {name:10s} {rate:6.1%} right, {numbers['exact_typed'][name]:6.1%} as people type")
    for name, accuracy in numbers["probes"].items():
        print(f"probe {name:17s} " + "  ".join(f"{where} {value:6.1%}" for where, value in accuracy.items()))


if __name__ == "__main__":
    main()
