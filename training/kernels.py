"""The VAE's step between two convolutions as one Triton kernel each way: group norm, SiLU, causal padding.

Trained as diffusers writes it, three quarters of the time goes into what is not convolution: norms in float32,
copies between memory layouts, padding (H200, 8 clips of 17 x 112 x 192: 114 ms forward and backward, about 30 ms of
it convolutions). `speed_up(vae)` replaces forward methods only: parameters, names and results stay, the results
within rounding (float32: gradients 6.5e-6 apart). Needs a GPU; everything is kept in channels-last order.
"""

from __future__ import annotations

from types import MethodType

import torch
import triton
import triton.language as tl
from diffusers.models.autoencoders import autoencoder_kl_hunyuan_video as hunyuan

NONE = (0, 0, 0, 0, 0, 0)
CHUNKS = 256  # partial sums a clip


@triton.jit(do_not_specialize=["S", "per_chunk"])
def sums_kernel(x, out, S, per_chunk, C: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr):
    """Sum and sum of squares by channel of one chunk of positions: out (N, CHUNKS, 2, C)."""
    chunk, n = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, BC)
    first, second = tl.zeros([BP, BC], tl.float32), tl.zeros([BP, BC], tl.float32)
    for start in range(chunk * per_chunk, tl.minimum((chunk + 1) * per_chunk, S), BP):
        p = start + tl.arange(0, BP)
        keep = (p < tl.minimum((chunk + 1) * per_chunk, S))[:, None] & (c < C)[None]
        v = tl.load(x + (n.to(tl.int64) * S + p)[:, None] * C + c[None], mask=keep, other=0.0).to(tl.float32)
        first += v
        second += v * v
    at = out + (n * tl.num_programs(0) + chunk) * 2 * C + c
    tl.store(at, tl.sum(first, 0), mask=c < C)
    tl.store(at + C, tl.sum(second, 0), mask=c < C)


@triton.jit(do_not_specialize=["T", "H", "W", "pt", "ph", "pw", "S", "So"])
def forward_kernel(
    x,
    y,
    scale,
    shift,
    T,
    H,
    W,
    pt,
    ph,
    pw,
    S,
    So,
    C: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    ACT: tl.constexpr,
):
    """y = pad(silu(x * scale + shift)); pt frames in front, ph and pw on both sides, all by repeating the edge."""
    n = tl.program_id(1)
    p, c = tl.program_id(0) * BP + tl.arange(0, BP), tl.arange(0, BC)
    w, rest = p % (W + 2 * pw), p // (W + 2 * pw)
    h, t = rest % (H + 2 * ph), rest // (H + 2 * ph)
    t = tl.maximum(t - pt, 0)
    h = tl.minimum(tl.maximum(h - ph, 0), H - 1)
    w = tl.minimum(tl.maximum(w - pw, 0), W - 1)
    keep = (p < So)[:, None] & (c < C)[None]
    v = tl.load(x + (n.to(tl.int64) * S + (t * H + h) * W + w)[:, None] * C + c[None], mask=keep, other=0.0)
    if ACT:
        u = (
            v.to(tl.float32) * tl.load(scale + n * C + c, mask=c < C)[None]
            + tl.load(shift + n * C + c, mask=c < C)[None]
        )
        v = u * tl.sigmoid(u)
    tl.store(y + (n.to(tl.int64) * So + p)[:, None] * C + c[None], v.to(y.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["T", "H", "W", "pt", "ph", "pw", "S", "So", "per_chunk"])
def backward_kernel(
    g,
    x,
    du,
    out,
    scale,
    shift,
    T,
    H,
    W,
    pt,
    ph,
    pw,
    S,
    So,
    per_chunk,
    C: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    ACT: tl.constexpr,
):
    """du, the gradient before SiLU and padding, and its sums by channel, alone and times x: out (N, CHUNKS, 2, C)."""
    chunk, n = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, BC)
    Hp, Wp = H + 2 * ph, W + 2 * pw
    first, second = tl.zeros([BP, BC], tl.float32), tl.zeros([BP, BC], tl.float32)
    for start in range(chunk * per_chunk, tl.minimum((chunk + 1) * per_chunk, S), BP):
        p = start + tl.arange(0, BP)
        inside = p < tl.minimum((chunk + 1) * per_chunk, S)
        keep = inside[:, None] & (c < C)[None]
        w, rest = p % W, p // W
        h, t = rest % H, rest // H
        total = tl.zeros([BP, BC], tl.float32)
        for i in tl.static_range(3):  # where this pixel went: its own place and, from an edge, the padding's
            for j in tl.static_range(3):
                for k in tl.static_range(3):
                    to_t, to_h, to_w = t + i, h + j, w + k  # 3 places an axis hold every copy, as pads are 0, 1 or 2
                    from_t = tl.maximum(to_t - pt, 0)
                    from_h = tl.minimum(tl.maximum(to_h - ph, 0), H - 1)
                    from_w = tl.minimum(tl.maximum(to_w - pw, 0), W - 1)
                    mine = inside & (from_t == t) & (from_h == h) & (from_w == w)
                    mine = mine & (to_t < T + pt) & (to_h < Hp) & (to_w < Wp)
                    at = n.to(tl.int64) * So + (to_t * Hp + to_h) * Wp + to_w
                    kept = mine[:, None] & (c < C)[None]
                    total += tl.load(g + at[:, None] * C + c[None], mask=kept, other=0.0).to(tl.float32)
        here = (n.to(tl.int64) * S + p)[:, None] * C + c[None]
        if ACT:
            v = tl.load(x + here, mask=keep, other=0.0).to(tl.float32)
            u = v * tl.load(scale + n * C + c, mask=c < C)[None] + tl.load(shift + n * C + c, mask=c < C)[None]
            s = tl.sigmoid(u)
            total = tl.where(keep, total * s * (1 + u * (1 - s)), 0.0)
            first += total
            second += total * v
        tl.store(du + here, total.to(du.dtype.element_ty), mask=keep)
    if ACT:
        at = out + (n * tl.num_programs(0) + chunk) * 2 * C + c
        tl.store(at, tl.sum(first, 0), mask=c < C)
        tl.store(at + C, tl.sum(second, 0), mask=c < C)


@triton.jit(do_not_specialize=["S"])
def combine_kernel(du, x, dx, a, b, d, S, C: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr):
    """dx = a * du + b * x + d, with a, b and d (N, C)."""
    n = tl.program_id(1)
    p, c = tl.program_id(0) * BP + tl.arange(0, BP), tl.arange(0, BC)
    keep = (p < S)[:, None] & (c < C)[None]
    here = (n.to(tl.int64) * S + p)[:, None] * C + c[None]
    u = tl.load(du + here, mask=keep, other=0.0).to(tl.float32)
    v = tl.load(x + here, mask=keep, other=0.0).to(tl.float32)
    r = (
        u * tl.load(a + n * C + c, mask=c < C)[None]
        + v * tl.load(b + n * C + c, mask=c < C)[None]
        + tl.load(d + n * C + c, mask=c < C)[None]
    )
    tl.store(dx + here, r.to(dx.dtype.element_ty), mask=keep)


def empty_like(x, *size):
    return torch.empty(
        (x.shape[0], x.shape[1], *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d
    )


class Step(torch.autograd.Function):
    """x (N, C, T, H, W) -> pad(silu(group_norm(x))), or pad(x) when weight is None; pads as `F.pad` takes them."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, pads):
        x = x.contiguous(memory_format=torch.channels_last_3d)
        n, channels, *size = x.shape
        pw, ph, pt = pads[0], pads[2], pads[4]
        t, h, w = size
        positions, padded = t * h * w, (t + pt) * (h + 2 * ph) * (w + 2 * pw)
        bc = triton.next_power_of_2(channels)
        shape = dict(C=channels, BC=bc, BP=max(16, 2048 // bc))
        scale = shift = mean = rstd = x  # not read without a norm
        if weight is not None:
            sums = torch.empty(n, CHUNKS, 2, channels, device=x.device)
            sums_kernel[CHUNKS, n](x, sums, positions, -(-positions // CHUNKS), **shape)
            sums = sums.sum(1).view(n, 2, groups, -1).sum(-1) / (positions * channels // groups)
            mean = sums[:, 0]
            rstd = ((sums[:, 1] - mean * mean).clamp(min=0) + eps).rsqrt()
            scale = (rstd[..., None] * weight.float().view(groups, -1)).reshape(n, channels)
            shift = (bias.float().view(groups, -1) - mean[..., None] * scale.view(n, groups, -1)).reshape(n, channels)
        y = empty_like(x, t + pt, h + 2 * ph, w + 2 * pw)
        forward_kernel[triton.cdiv(padded, shape["BP"]), n](
            x, y, scale, shift, t, h, w, pt, ph, pw, positions, padded, ACT=weight is not None, **shape
        )
        ctx.groups, ctx.pads, ctx.shape, ctx.size = groups, (pt, ph, pw), shape, x.shape
        ctx.save_for_backward(*((x, weight, scale, shift, mean, rstd) if weight is not None else ()))
        return y

    @staticmethod
    def backward(ctx, g):
        g = g.contiguous(memory_format=torch.channels_last_3d)
        n, channels, t, h, w = ctx.size
        act, (pt, ph, pw) = bool(ctx.saved_tensors), ctx.pads
        positions, padded = t * h * w, (t + pt) * (h + 2 * ph) * (w + 2 * pw)
        du = empty_like(g, t, h, w)
        x, weight, scale, shift, mean, rstd = ctx.saved_tensors if act else (du,) * 6
        sums = torch.empty(n, CHUNKS, 2, channels, device=g.device)
        backward_kernel[CHUNKS, n](
            g,
            x,
            du,
            sums,
            scale,
            shift,
            t,
            h,
            w,
            pt,
            ph,
            pw,
            positions,
            padded,
            -(-positions // CHUNKS),
            ACT=act,
            **ctx.shape,
        )
        if not act:
            return du, None, None, None, None, None
        k, many = ctx.groups, positions * channels // ctx.groups
        sums = sums.sum(1).view(n, 2, k, -1)
        one, other = sums[:, 0], rstd[..., None] * (sums[:, 1] - mean[..., None] * sums[:, 0])
        by_group = weight.float().view(k, -1)
        b = -rstd.square() * (by_group * other).sum(-1) / many
        d = -rstd * (by_group * one).sum(-1) / many - b * mean
        b, d = (v[..., None].expand_as(one).reshape(n, channels) for v in (b, d))
        dx = empty_like(g, t, h, w)
        combine_kernel[triton.cdiv(positions, ctx.shape["BP"]), n](du, x, dx, scale, b, d, positions, **ctx.shape)
        return dx, other.sum(0).flatten(), one.sum(0).flatten(), None, None, None


def between(x, norm, pads):
    return Step.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, pads)


def resnet(self, x):
    h = self.conv1.conv(between(x, self.norm1, self.conv1.time_causal_padding))
    h = self.conv2.conv(between(h, self.norm2, self.conv2.time_causal_padding))
    return h + (x if self.conv_shortcut is None else self.conv_shortcut.conv(x))


def convolution(self, x):
    return self.conv(
        Step.apply(x, None, None, 1, 0.0, self.time_causal_padding) if any(self.time_causal_padding) else x
    )


def upsample(self, x):
    ft, fh, fw = (int(f) for f in self.upsample_factor)

    def larger(part, times):
        n, c, t, h, w = part.shape
        wide = part.permute(0, 2, 3, 4, 1)[:, :, None, :, None, :, None].expand(n, t, times, h, fh, w, fw, c)
        return wide.reshape(n, t * times, h * fh, w * fw, c).permute(0, 4, 1, 2, 3)

    x = x.contiguous(memory_format=torch.channels_last_3d)
    first = larger(x[:, :, :1], 1)
    return self.conv(torch.cat([first, larger(x[:, :, 1:], ft)], 2) if x.shape[2] > 1 else first)


def last(self, x):  # a decoder's or encoder's last norm: its activation is in here, see speed_up
    return between(x, self, NONE)


def speed_up(vae):
    """Same parameters, same results to rounding. In place; returns the VAE."""
    vae.to(memory_format=torch.channels_last_3d)
    for module in vae.modules():
        for kind, forward in (
            (hunyuan.HunyuanVideoResnetBlockCausal3D, resnet),
            (hunyuan.HunyuanVideoCausalConv3d, convolution),
            (hunyuan.HunyuanVideoUpsampleCausal3D, upsample),
        ):
            if isinstance(module, kind):
                module.forward = MethodType(forward, module)
    for part in (vae.encoder, vae.decoder):
        part.conv_norm_out.forward = MethodType(last, part.conv_norm_out)
        part.conv_act.forward = lambda x: x
    return vae
