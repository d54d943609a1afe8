"""The names of attention kernels: which diffusers dispatches to, and what somebody means who types another.

Nothing heavy is imported here, so that a mistaken name is told at once.
"""

from __future__ import annotations

from ..errors import UserError, near_match

NATIVE = "native"
#: FlashAttention-3 on 8-bit floats, which this package adds to those of diffusers.
FP8 = "_flash_3_fp8"
#: All names: the values of `AttentionBackendName` in diffusers.models.attention_dispatch, and `FP8`.
KERNELS = (
    *("flash", "flash_hub", "flash_varlen", "flash_varlen_hub", "flash_4_hub"),
    *("_flash_3", "_flash_varlen_3", "_flash_3_hub", "_flash_3_varlen_hub", "aiter_fa2_hub", "flex"),
    *(NATIVE, "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "_native_npu", "_native_xla"),
    *("sage", "sage_hub", "sage_blackwell_hub", "sage_varlen"),
    *("_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90"),
    *("_sage_qk_int8_pv_fp16_cuda", "_sage_qk_int8_pv_fp16_triton", "xformers", FP8),
)
#: Names of other tools, and the kernel that is meant.
ELSEWHERE = {
    "fa2": "flash",
    "fa3": "_flash_3",
    "flash2": "flash",
    "flash3": "_flash_3",
    "flash_3": "_flash_3",
    "cudnn": "_native_cudnn",
    "fa3_fp8": FP8,
    "fp8": FP8,
    "efficient": "_native_efficient",
    "math": "_native_math",
    "sdpa": NATIVE,
    "torch": NATIVE,
}


def check_kernel(name: str) -> str:
    """Return the name of a kernel if there is one of that name; whether it is installed is not looked at.

    Raises:
        UserError: There is none; the message has the nearest one.
    """
    if name in KERNELS:
        return name
    bare = str(name).lower()
    near = ELSEWHERE.get(bare) or near_match(bare, [*KERNELS, "auto"]) or near_match(f"_{bare}", KERNELS)
    hint = f"did you mean {near!r}?" if near else "'auto' or 'native' would work."
    raise UserError(f"attention={name!r}: must be auto or an attention backend of diffusers; {hint}")
