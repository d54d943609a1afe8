"""Which attention kernel computes: the fastest exact one that is installed and, on this card, was measured and works.

The kernels are those that diffusers dispatches to. A prompt with padding needs a mask; where the chosen kernel takes
none, PyTorch's own attention computes that call.

Two things diffusers 0.42 lacks are added here. Its `_flash_3` looks for a module that is on no package index, while
FlashAttention-3 is there as `fa3-fwd`, with the same function: `plug_in_flash_3` becomes unnecessary once diffusers
looks for `fa3_fwd_interface` too. And it has no name for the same kernel on 8-bit floats: `_flash_3_fp8` is put among
its names, which becomes unnecessary once there is one.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models import attention_dispatch as dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from ..errors import UserError, give_note
from .fp8_attention import attend_in_fp8
from .kernel_names import FP8, NATIVE, check_kernel

# The backends of diffusers.models.attention_dispatch that raise, or silently do something else, when given a mask.
NO_MASKS = (
    FP8,
    "flash",
    "flash_hub",
    "flash_4_hub",
    "_flash_3",
    "_flash_3_hub",
    "aiter_fa2_hub",
    "_native_flash",
    "sage",
)
#: Relative difference to attention in float32 up to which a kernel counts as exact: twice that of bfloat16's rounding.
EXACT = 5e-3
_FA3 = "fa3_fwd_interface"


def attend(query, key, value, mask: torch.Tensor | None, backend: Any) -> torch.Tensor:
    """Attention by a backend, or by PyTorch's own where that backend cannot leave the padding out.

    Args:
        query: (1, N, heads, width of a head), as key and value.
        key: The same shape.
        value: The same shape.
        mask: What diffusers' transformer makes of a padded prompt; None without padding.
        backend: A name of diffusers.models.attention_dispatch, its enum, or None for the default.

    Returns:
        The same shape.
    """
    if mask is not None and getattr(backend, "value", backend) in NO_MASKS:
        backend = AttentionBackendName.NATIVE
    return dispatch_attention_fn(query, key, value, attn_mask=mask, backend=backend)


def use_backend(transformer: HunyuanVideoTransformer3DModel, name: str) -> None:
    """Let the transformer's blocks attend by a backend.

    diffusers' own `set_attention_backend` would do it for every other model of the process as well.

    Args:
        transformer: After `skip_full_masks`, before `use_chunks` and compilation.
        name: As `choose_backend` gives it.
    """
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        processor: Any = block.attn.processor  # type: ignore[union-attr]
        processor._attention_backend = None if name == NATIVE else AttentionBackendName(name)


def choose_backend(name: str, device: torch.device, dtype: torch.dtype, width: int) -> str:
    """The backend for a device: `name` itself once it is known to work, or for 'auto' the best one.

    'auto' takes the exact kernel that was fastest where a card of this compute capability was measured, among those
    that are installed, if it passes `probe`; on a CPU, and on cards that were not measured, PyTorch's own. A note says
    which, when it is another than PyTorch's own. Kernels that are faster but not exact are chosen by name alone.

    Args:
        name: 'auto', or a backend of diffusers.
        device: Where the transformer computes.
        dtype: What it computes in.
        width: Of an attention head.

    Returns:
        A name of diffusers.models.attention_dispatch.

    Raises:
        UserError: There is no such backend, or it cannot compute here.
    """
    plug_in_flash_3()
    if name != "auto":
        if check_kernel(name) != NATIVE and (reason := unusable(name, device, dtype, width)):
            raise UserError(f"attention={name!r}: {reason}; attention='auto' would work.")
        return name
    if device.type != "cuda":
        return NATIVE
    for row in ranking(torch.cuda.get_device_capability(device)):
        if row["backend"] == NATIVE:
            break
        if not unusable(row["backend"], device, dtype, width):
            give_note(
                f"attention: {row['backend']}, measured at {row['tflops']:g} TFLOP/s on {row['card']}, where PyTorch's "
                f"own has {row['native_tflops']:g}; attention='native' keeps PyTorch's own."
            )
            return row["backend"]
    return NATIVE


def unusable(name: str, device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Why a backend cannot compute on a device, in a few words; None when it can and gives the right result."""
    plugged = plug_in_flash_3() if name in ("_flash_3", FP8) else False
    if name == FP8 and not plugged:
        return "its package is missing; pip install 't2v-kit[fast]' brings it"
    try:
        dispatch._check_attention_backend_requirements(AttentionBackendName(name))
        dispatch._maybe_download_kernel_for_backend(AttentionBackendName(name))
    except Exception as error:
        if name == "_flash_3":
            return "its package is missing; pip install 't2v-kit[fast]' brings it"
        return f"is not installed ({_first_line(error)})"
    try:
        error = probe(name, device, dtype, width)
    except Exception as failure:
        return f"does not compute on {device} in {dtype} ({_first_line(failure)})"
    allowed = EXACT if name in _exact() else 0.2
    return None if error <= allowed else f"is wrong on this card: {error:.1e} beside attention in float32"


@torch.no_grad()
def probe(name: str, device: torch.device | str, dtype: torch.dtype, width: int, tokens: int = 320) -> float:
    """How far a backend is from attention computed in float32, on random tensors.

    Args:
        name: A backend of diffusers.
        device: Where to compute.
        dtype: What the kernel computes in.
        width: Of an attention head.
        tokens: How many; 2 heads each.

    Returns:
        |difference| / |attention in float32|, Euclidean norms.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randn(3, 1, tokens, 2, width, generator=generator).to(device, dtype)
    query, key, value = drawn.float().transpose(2, 3)
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    found = dispatch_attention_fn(drawn[0], drawn[1], drawn[2], backend=AttentionBackendName(name)).float()
    return float((found - exact).norm() / exact.norm())


def ranking(capability: tuple[int, int]) -> list[dict]:
    """Exact backends from the fastest on, as measured on a card of a compute capability; empty where none was."""
    measured = [row for row in speeds()["rows"] if tuple(row["capability"]) == tuple(capability)]
    native = {row["card"]: row["tflops"] for row in measured if row["backend"] == NATIVE}
    exact = [{**row, "native_tflops": native[row["card"]]} for row in measured if row["relative_error"] <= EXACT]
    return sorted(exact, key=lambda row: -row["tflops"])


@functools.cache
def speeds() -> dict:
    """What was measured: attention_speed.json, whose 'source' says how."""
    return json.loads(Path(__file__).with_name("attention_speed.json").read_text("utf-8"))


def _exact() -> set[str]:
    """Backends that compute attention as PyTorch does, up to rounding: all but those that quantise."""
    names = {backend.value for backend in AttentionBackendName}
    return {name for name in names if "sage" not in name and name != FP8}


@functools.cache
def plug_in_flash_3() -> bool:
    """Let diffusers' `_flash_3` compute with the package `fa3-fwd`, where its own module is missing; whether it can."""
    if dispatch._CAN_USE_FLASH_ATTN_3:
        return True
    if importlib.util.find_spec(_FA3) is None:
        return False
    try:
        importlib.import_module(_FA3)
    except (ImportError, OSError, RuntimeError) as error:  # built for another PyTorch or CUDA
        give_note(f"fa3-fwd is installed and cannot be used: {_first_line(error)}")
        return False
    dispatch._AttentionBackendRegistry._backends[AttentionBackendName._FLASH_3] = _flash_3
    dispatch._CAN_USE_FLASH_ATTN_3 = True
    return True


def _flash_3(query, key, value, attn_mask=None, scale=None, is_causal=False, return_lse=False, _parallel_config=None):
    """diffusers' backend `_flash_3`, of which this package uses the plain case."""
    if attn_mask is not None or is_causal or return_lse or _parallel_config is not None:
        raise ValueError("fa3-fwd: takes no mask, and neither causal attention nor diffusers' context parallelism here")
    return flash_attention_3(query, key, value, scale)


@torch.library.custom_op("t2v_kit::flash_attention_3", mutates_args=())
def flash_attention_3(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """FlashAttention-3 by `fa3-fwd`, as an operator that compiled blocks call without breaking apart.

    Args:
        query: (1, N, heads, width of a head), bfloat16, as key and value.
        key: The same shape.
        value: The same shape.
        scale: What the products are multiplied by; None is 1 / sqrt(width).

    Returns:
        The same shape, contiguous.
    """
    return importlib.import_module(_FA3).flash_attn_func(query, key, value, softmax_scale=scale).contiguous()


@flash_attention_3.register_fake
def _(query, key, value, scale=None):
    return query.new_empty(query.shape)


def _flash_3_fp8(
    query, key, value, attn_mask=None, scale=None, is_causal=False, return_lse=False, _parallel_config=None
):
    """The backend `_flash_3_fp8`, with the arguments of diffusers' other ones."""
    if attn_mask is not None or is_causal or return_lse or _parallel_config is not None:
        raise ValueError("fa3-fwd: takes no mask, and neither causal attention nor diffusers' context parallelism here")
    return attend_in_fp8(query, key, value, scale)


def _name_backend(name: str, function: Any) -> None:
    """Put a backend among those of diffusers, under a name that it does not have."""
    if name in AttentionBackendName._value2member_map_:
        return
    member = str.__new__(AttentionBackendName, name)
    member._name_, member._value_ = name.upper(), name
    AttentionBackendName._member_map_[member._name_] = member
    AttentionBackendName._member_names_.append(member._name_)
    AttentionBackendName._value2member_map_[name] = member
    dispatch._AttentionBackendRegistry.register(member)(function)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]


_name_backend(FP8, _flash_3_fp8)
