"""diffusers' `ModelHook`s put on single modules, and taken off without a trace.

`HookRegistry.remove_hook` leaves its registry and an instance attribute `forward` behind; `detach` removes those too.
Known limit of the registry: `copy.deepcopy` of a module with a hook gives a copy that still computes with the weights
of the original, since the chain of functions is kept in a closure. Detach before you copy.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook


def attach(module: torch.nn.Module, hook: ModelHook, name: str) -> None:
    """Put `hook` on the module's forward, around whatever hooks it has already.

    Args:
        module: The module to change.
        hook: A hook of its own for this module.
        name: What `detach` takes; unique on the module.
    """
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether any hook is on the module itself."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    return registry is not None and bool(registry.hooks)


def detach(module: torch.nn.Module, name: str) -> None:
    """Take the hook called `name` off the module, if it is there; other hooks stay in their order."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    if registry is None or registry.get_hook(name) is None:
        return
    registry.remove_hook(name, recurse=False)
    if registry.hooks:
        return
    del module._diffusers_hook
    forward: Any = vars(module).get("forward")
    if getattr(forward, "__func__", None) is type(module).forward and forward.__self__ is module:
        del module.forward  # the class's own, which registering had bound to the instance
