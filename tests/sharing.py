"""What each process of tests/test_parallel.py computes: pocket's small videos, by the processes of torchrun."""

import sys

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import torch

from t2v_kit import Settings, decode, denoise, encode_prompt, initial_latents, load
from t2v_kit.hunyuan.parallel import join, leave
from t2v_kit.model.models import Models

#: Odd numbers of tokens and heads, one clip of several tiles in time; with and without the prompt's padding.
CASES = (
    Settings("A red car drives on the beach.", height=48, width=80, num_frames=21, num_inference_steps=2),
    Settings("A man.", height=80, width=48, num_frames=5, num_inference_steps=2, padded_prompt=True),
)


def computed(models: Models) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Latents and frames of each case."""
    found = []
    for settings in CASES:
        prompt = encode_prompt(models, settings.prompt, settings.padded_prompt)
        *_, last = denoise(models, prompt, initial_latents(models, settings), settings)
        found.append((last.latents, torch.from_numpy(decode(models, last.latents))))
    return found


if __name__ == "__main__":
    team = join()
    torch.save(computed(load("pocket", team=team)), f"{sys.argv[1]}/{team.rank}.pt")
    leave()
