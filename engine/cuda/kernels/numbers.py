"""Numbers that host and device compute to the last bit alike. Launch what uses them with `enable_fp_fusion=False`."""

import triton
import triton.language as tl

from thoughtbubbles.engine.sampling import EXP2, LEAST_EXPONENT, LOG2_E, WEIGHT_BITS

_LEAST: tl.constexpr = tl.constexpr(LEAST_EXPONENT)
_LOG2_E: tl.constexpr = tl.constexpr(LOG2_E)
_UNIT: tl.constexpr = tl.constexpr(2.0**WEIGHT_BITS)
_C0: tl.constexpr = tl.constexpr(EXP2[0])
_C1: tl.constexpr = tl.constexpr(EXP2[1])
_C2: tl.constexpr = tl.constexpr(EXP2[2])
_C3: tl.constexpr = tl.constexpr(EXP2[3])
_C4: tl.constexpr = tl.constexpr(EXP2[4])
_C5: tl.constexpr = tl.constexpr(EXP2[5])
_C6: tl.constexpr = tl.constexpr(EXP2[6])


@triton.jit
def weigh(scaled, likeliest):
    """`engine.sampling.weigh`: e^(scaled - likeliest) · 2^40 as whole numbers."""
    x = tl.maximum(scaled - likeliest, _LEAST) * _LOG2_E
    below = tl.floor(x)
    x = x - below
    power = x * _C6 + _C5
    power = power * x + _C4
    power = power * x + _C3
    power = power * x + _C2
    power = power * x + _C1
    power = power * x + _C0
    return (power * _UNIT).to(tl.int64) >> (-below).to(tl.int64)


@triton.jit
def limit(top_p, total):
    """Return the weight that top-p must reach, of `total` in all."""
    return tl.maximum(tl.ceil(top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def key(x):
    """Return a whole number (int64) for each float32, in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def value(key):
    """Return the float32 that has this key."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
