"""The number formats of weight files: everything that is known of each, in one table."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One number format, under the name that safetensors gives it."""

    name: str
    bits: int
    """Size of one element, in bits."""
    torch: str = ""
    """Name of the dtype in torch; empty if it has none."""
    storage: str = ""
    """Name of torch's class of storages of this format; empty if it has none."""

    @property
    def itemsize(self) -> int:
        """Size of one element in bytes; the packed formats have none and are never asked."""
        return self.bits // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDType(DType):
    """A format that is read as weights, with what rounding to it does."""

    fraction_bits: int
    least_exponent: int
    """Of normal numbers; below it the spacing of values no longer shrinks."""

    def reach(self, first: int, stop: int) -> tuple[int, int]:
        """Return [first, stop) of the bytes that hold the elements [first, stop), from a tensor's begin."""
        return first * self.bits // 8, -(-stop * self.bits // 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedDType(WeightDType):
    """Codes of four bits, two to a byte."""

    unpacked: bytes
    """The 16 codes as elements of the format that `torch` names, in which they are decoded."""
    upper_first: bool = False
    """The first of two codes is in the upper half of their byte."""

    @property
    def itemsize(self) -> int:
        """Size of one element in bytes, once unpacked."""
        return len(self.unpacked) // 16


# Sources: the safetensors format (`Dtype` in its Rust crate, 0.8), the dtypes and storages of torch
# 2.13, IEEE 754 and the OCP 8-bit formats. Those that are no weights are known so that a header that
# holds them can be checked.
_WEIGHTS = (
    WeightDType("F64", 64, torch="float64", storage="DoubleStorage",
                fraction_bits=52, least_exponent=-1022),
    WeightDType("F32", 32, torch="float32", storage="FloatStorage",
                fraction_bits=23, least_exponent=-126),
    WeightDType("F16", 16, torch="float16", storage="HalfStorage",
                fraction_bits=10, least_exponent=-14),
    WeightDType("BF16", 16, torch="bfloat16", storage="BFloat16Storage",
                fraction_bits=7, least_exponent=-126),
    WeightDType("F8_E4M3", 8, torch="float8_e4m3fn", fraction_bits=3, least_exponent=-6),
    WeightDType("F8_E5M2", 8, torch="float8_e5m2", fraction_bits=2, least_exponent=-14),
)  # fmt: skip
_OTHERS = (
    DType("BOOL", 8, "bool", "BoolStorage"),
    DType("U8", 8, "uint8", "ByteStorage"),
    DType("I8", 8, "int8", "CharStorage"),
    DType("I16", 16, "int16", "ShortStorage"),
    DType("U16", 16, "uint16", ""),
    DType("I32", 32, "int32", "IntStorage"),
    DType("U32", 32, "uint32", ""),
    DType("I64", 64, "int64", "LongStorage"),
    DType("U64", 64, "uint64", ""),
    DType("C64", 64, "complex64", "ComplexFloatStorage"),
    DType("F8_E8M0", 8, "float8_e8m0fnu"),
    DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
    DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
    DType("F6_E2M3", 6),
    DType("F6_E3M2", 6),
    DType("F4", 4),
)
# Codes that are weights only once they are multiplied with scales (scales.py); no header states these
# names. What is evenly spaced is as if all had the exponent of the largest; so is NF4, whose codes are
# 0.08 to 0.30 apart, 0.15 in the root mean square. Sources: E2M1: OCP Microscaling Formats 1.0, 5.3.3;
# NF4 and FP4: bitsandbytes 0.50, `get_4bit_type`.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = [sign * size / 12 for sign in (1, -1) for size in (0, 1 / 16, 8, 12, 4, 6, 2, 3)]
_CODES = (
    WeightDType("INT8", 8, torch="int8", fraction_bits=7, least_exponent=7),
    PackedDType("E2M1", 4, torch="float8_e4m3fn", fraction_bits=1, least_exponent=0,
                unpacked=bytes.fromhex("00 30 38 3C 40 44 48 4C 80 B0 B8 BC C0 C4 C8 CC")),
    PackedDType("NF4", 4, torch="float32", fraction_bits=3, least_exponent=0,
                unpacked=struct.pack("<16f", *_NF4), upper_first=True),
    PackedDType("FP4", 4, torch="float32", fraction_bits=1, least_exponent=-3,
                unpacked=struct.pack("<16f", *_FP4), upper_first=True),
)  # fmt: skip

WEIGHT_DTYPES: dict[str, WeightDType] = {dtype.name: dtype for dtype in (*_WEIGHTS, *_CODES)}
"""What weights are stored in."""
DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in (*_WEIGHTS, *_OTHERS)}
"""What headers state."""

COARSEST_FIRST = ("BF16", "F16", "F32", "F64")
"""The formats that weights are rounded to and then saved in a finer one, which comes later here."""
