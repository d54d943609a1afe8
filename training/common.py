"""What every training script shares: its options, its clock, its averages and its files.

The scripts are time-boxed: `--seconds` is the whole budget, and the learning rate follows the clock instead of
a step count, so that the same script makes a two-minute trial and the final run. Run them from the repository's
root as `python -m training.NAME`, on several GPUs as `torchrun --nproc-per-node 2 -m training.NAME`.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist


def options(description: str, **extra) -> argparse.Namespace:
    """--seconds --out --resume --seed --batch --log-every, and one option for each `name=default` in `extra`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    defaults = dict(seconds=60.0, out=Path("training/out"), resume="", seed=0, batch=16, log_every=10.0) | extra
    for name, default in defaults.items():
        kind = dict(action=argparse.BooleanOptionalAction) if isinstance(default, bool) else dict(type=type(default))
        parser.add_argument("--" + name.replace("_", "-"), default=default, **kind)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.rank, args.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    args.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if args.device != "cpu":
        torch.cuda.set_device(args.device)
    if args.world > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if args.device != "cpu" else "gloo")
    torch.manual_seed(args.seed * 1000 + args.rank)
    torch.set_float32_matmul_precision("high")
    return args


class Clock:
    """Walks from 0 to 1 in `seconds`; `for step in clock:` runs until time is up.

    On several GPUs all ranks share rank 0's time, or one would wait for a step that never comes. It is told from
    processor to processor: read off a GPU, it would keep the next step from being queued.
    """

    def __init__(self, seconds: float, log_every: float = 10.0, rank: int = 0):
        if seconds <= 0:  # progress would run backwards and never end
            raise ValueError(f"no time to train: {seconds:.1f} seconds, give more than 0")
        self.seconds, self.log_every, self.rank = seconds, log_every, rank
        self.start, self.step, self.logged, self.saved, self.progress = time.monotonic(), 0, 0.0, 0.0, 0.0

    def __iter__(self):
        while True:
            now = torch.tensor([min(1.0, (time.monotonic() - self.start) / self.seconds)])
            if dist.is_initialized():
                dist.broadcast(now, 0)
            self.progress = float(now)
            if self.progress >= 1:
                return
            yield self.step
            self.step += 1

    def log(self, **numbers):
        """Print a line every `log_every` seconds; numbers may be tensors (read only when printed)."""
        now = time.monotonic() - self.start
        if self.rank == 0 and now - self.logged >= self.log_every:
            self.logged = now
            shown = "  ".join(f"{k} {torch.as_tensor(v).detach().item():.5g}" for k, v in numbers.items())
            each = 1000 * now / (self.step + 1)
            print(f"{now:6.0f} s  step {self.step:6d}  {each:6.1f} ms/step  {shown}", flush=True)

    def due(self, every: float) -> bool:
        """True once in `every` seconds: time to save."""
        now = self.progress * self.seconds
        if now - self.saved < every:
            return False
        self.saved = now
        return True


def learning_rate(optimizer, peak: float, progress: float, warmup: float = 0.02, decay: float = 0.3):
    """Linear warm-up over the first `warmup` of the time, constant, then a cosine to 0 over the last `decay`."""
    rise = min(1.0, progress / warmup) if warmup else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * max(0.0, progress - (1 - decay)) / decay)) if decay else 1.0
    for group in optimizer.param_groups:
        group["lr"] = peak * rise * fall


class Muon(torch.optim.Optimizer):
    """Muon for what multiplies, AdamW for norms and biases; one learning rate fits both (https://arxiv.org/abs/2502.16982).

    It takes the steps of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, a parameter of any shape being a
    matrix of (first axis, all others). PyTorch's goes from matrix to matrix, in some 25 launches each, and pocket's
    models are launch-bound: here all matrices of one size are made orthogonal together."""

    NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  #: https://kellerjordan.github.io/posts/muon, as in PyTorch

    def __init__(self, parameters, lr: float, momentum: float = 0.95):
        parameters = list(parameters)
        super().__init__([p for p in parameters if p.ndim > 1], dict(lr=lr, momentum=momentum))
        self.others = torch.optim.AdamW(
            [p for p in parameters if p.ndim < 2], lr, (0.9, 0.99), weight_decay=0.0, fused=parameters[0].is_cuda
        )
        self.param_groups += self.others.param_groups

    def state_dict(self):
        return {"matrices": super().state_dict(), "others": self.others.state_dict()}

    def load_state_dict(self, state):
        super().load_state_dict(state["matrices"])
        self.others.load_state_dict(state["others"])
        self.param_groups[1:] = self.others.param_groups

    @torch.no_grad()
    def step(self):
        self.others.step()
        group = self.param_groups[0]
        used = [p for p in group["params"] if p.grad is not None]
        for p in used:
            if p not in self.state:
                self.state[p]["mean"] = torch.zeros_like(p)
        grads, means = [p.grad for p in used], [self.state[p]["mean"] for p in used]
        torch._foreach_lerp_(means, grads, 1 - group["momentum"])
        by_size = {}
        for p, ahead in zip(used, torch._foreach_lerp(grads, means, group["momentum"]), strict=True):
            by_size.setdefault((len(p), p[0].numel()), []).append((p, ahead.flatten(1)))
        for size, several in by_size.items():
            same, updates = zip(*several, strict=True)
            updates = self.orthogonal(torch.stack(updates)).to(same[0].dtype)
            updates = [update.view_as(p) for p, update in zip(same, updates, strict=True)]
            torch._foreach_add_(same, updates, alpha=-0.2 * max(size) ** 0.5 * group["lr"])

    def orthogonal(self, x: torch.Tensor) -> torch.Tensor:
        """(N, A, B) -> the same with singular values near 1; in bfloat16 on a GPU, which most CPUs only imitate."""
        wide = x.shape[1] <= x.shape[2]
        x = (x if wide else x.mT).to(torch.bfloat16 if x.is_cuda else torch.float32)
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        a, b, c = self.NEWTON_SCHULZ
        for _ in range(5):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x if wide else x.mT.contiguous()


class Average:
    """Exponential moving average of a model's parameters, in float32; `.model` is what gets saved."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.model, self.decay, self.steps = copy.deepcopy(model).requires_grad_(False), decay, 0

    def state_dict(self):
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]

    @torch.no_grad()
    def update(self, model: torch.nn.Module):
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))  # early averages forget quickly
        torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in model.parameters()], 1 - decay)


class Recorder:
    """Runs `step(**tensors) -> loss (and more)` with its backward; on a GPU as a recorded CUDA graph.

    One recording is kept for each step function and shape. Models as small as pocket's keep the processor busy
    longer than the GPU (the transformer's forward and backward: 63 ms by the clock, 33 on an H200), and a replay
    needs no processor."""

    def __init__(self, model: torch.nn.Module, graphs: bool):
        self.parameters, self.graphs, self.kept = list(model.parameters()), graphs, {}
        self.memory = torch.cuda.graph_pool_handle() if graphs else None  # one for all recordings: they never overlap

    def run(self, step, tensors):
        for p in self.parameters:
            p.grad = None
        loss, *more = step(**tensors)
        loss.backward()
        return [loss.detach(), *more]

    def record(self, step, tensors):
        still = {k: v.clone() for k, v in tensors.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.run(step, still)
        torch.cuda.current_stream().wait_stream(stream)
        for p in self.parameters:
            p.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.memory):
            loss, *more = step(**still)
            loss.backward()
        return graph, still, [loss.detach(), *more], [p.grad for p in self.parameters]

    def __call__(self, step, compiled: bool = True, **tensors) -> list[torch.Tensor]:
        """`compiled=False` runs as written, for shapes that come too rarely to be worth compiling."""
        with torch.compiler.set_stance("default" if compiled else "force_eager"):
            if not self.graphs:
                return self.run(step, tensors)
            key = step, *(t.shape for t in tensors.values())
            if key not in self.kept:
                try:
                    self.kept[key] = self.record(step, tensors)
                except RuntimeError as error:  # something in the step wants the processor: slower, but it trains
                    print(f"not recorded, for {' '.join(str(error).split())[:300]}", flush=True)
                    self.kept[key] = None
            if not self.kept[key]:
                return self.run(step, tensors)
        graph, still, results, grads = self.kept[key]
        for name, value in tensors.items():
            still[name].copy_(value)
        graph.replay()
        for p, g in zip(self.parameters, grads, strict=True):
            p.grad = g
        return results


def average_gradients(model: torch.nn.Module):
    """Mean of the gradients over all GPUs, in one message."""
    if dist.is_initialized():
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat, op=dist.ReduceOp.SUM)
        flat /= dist.get_world_size()
        for g, f in zip(grads, flat.split([g.numel() for g in grads])):
            g.copy_(f.view_as(g))


def keep(file: Path, **parts):
    """Write the state of each part (model, average, optimizer: whatever has a `state_dict`) in full precision, from
    rank 0 only, so that `recall` goes on as if nothing had happened."""
    if int(os.environ.get("RANK", 0)):
        return
    torch.save({name: part.state_dict() for name, part in parts.items()}, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def recall(file: Path, **parts):
    """Load what `keep` wrote into the same parts."""
    states = torch.load(file, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(states[name])


def save(model, folder: Path, dtype: torch.dtype = torch.float16):
    """`save_pretrained` in half precision, written beside and renamed, from rank 0 only."""
    if int(os.environ.get("RANK", 0)):
        return
    beside = folder.with_name(folder.name + ".part")
    copy.deepcopy(model).to(dtype).save_pretrained(beside, max_shard_size="12MB")
    folder.mkdir(parents=True, exist_ok=True)
    for file in beside.iterdir():
        file.replace(folder / file.name)
    beside.rmdir()
