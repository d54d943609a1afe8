"""What a panel has to know of a model to check settings, apart from the model, so that no thread shares anything."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

from ..model.models import Models

#: Of the transformer: what checks read
_CONFIG = ("patch_size", "patch_size_t", "guidance_embeds", "image_condition_type")


@dataclass(frozen=True)
class Rules:
    """A model's defaults and limits, and copies of its tokenizers. It refers to no network.

    The panel checks settings in one thread while a run uses the model in another. A tokenizer's padding is global to
    the tokenizer, and a memory plan exchanges networks during a run; with copies, neither matters. Rules also outlive
    their model, which the panel lets go of before it loads the next.

    Attributes:
        name, source, defaults, template, trained_sizes, world: As in `Models`.
        tokenizers: Copies of the two tokenizers.
        pipe: The parts of a pipeline that checks read: the VAE's compression, the transformer's dtype and a few
            entries of its config.
    """

    name: str
    source: str
    defaults: Mapping[str, Any]
    template: Mapping[str, Any]
    trained_sizes: tuple[tuple[int, int, int], ...]
    world: str | None
    tokenizers: Mapping[str, Any]
    pipe: Any

    def counter(self, name: str) -> Any:
        """A tokenizer for counting tokens, which nobody else uses; `name` is 'tokenizer' or 'tokenizer_2'."""
        return self.tokenizers[name]

    @classmethod
    def of(cls, models: Models) -> Rules:
        """The rules of a loaded model."""
        pipe = models.pipe
        transformer = pipe.transformer  # its config and dtype are there whether or not a plan holds its weights now
        config = SimpleNamespace(**{name: transformer.config[name] for name in _CONFIG})
        return cls(
            name=models.name,
            source=models.source,
            defaults=MappingProxyType(dict(models.defaults)),
            template=MappingProxyType(dict(models.template)),
            trained_sizes=models.trained_sizes,
            world=models.world,
            tokenizers={name: copy.deepcopy(models.counter(name)) for name in ("tokenizer", "tokenizer_2")},
            pipe=SimpleNamespace(
                transformer=SimpleNamespace(config=config, dtype=transformer.dtype),
                vae_scale_factor_spatial=pipe.vae_scale_factor_spatial,
                vae_scale_factor_temporal=pipe.vae_scale_factor_temporal,
            ),
        )
