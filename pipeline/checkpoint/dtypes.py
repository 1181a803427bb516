"""The number formats that weight files store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One storage format, under the name that safetensors gives it."""

    name: str
    bits: int
    """Size of one element, in bits."""
    is_weight: bool
    """True for the floating-point formats that are read as weights."""

    @property
    def itemsize(self) -> int:
        """Size of one element in bytes; only formats read as weights are asked for it."""
        return self.bits // 8


# Source: the safetensors format (`Dtype` in its Rust crate, 0.8). Integers, booleans, complex
# numbers and the packed 4- and 6-bit formats are known so that a header that holds them can be
# checked; they are never weights here.
_WEIGHTS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
_OTHERS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "C64": 64, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

DTYPES: dict[str, DType] = {
    name: DType(name, bits, is_weight=name in _WEIGHTS)
    for name, bits in {**_WEIGHTS, **_OTHERS}.items()
}
