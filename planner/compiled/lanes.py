"""Numbers side by side: what C does to one float, done to as many as there are `LANES`, bit for bit.

A value is a vector register (or several, where a processor's are narrower): floats, 32-bit integers, or truths that
comparisons give and `where` takes. Operators are Python's, between such values or with a scalar, which is rounded to
float32 first. They are IEEE 754's: nothing is reassociated, contracted or left to a library. A table of numbers for all
lanes is a flat array in which those of one lane are `LANES` apart.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from planner.compiled.compiler import part

__all__ = [
    "LANES",
    "absolute",
    "bits",
    "clamped",
    "first",
    "floats",
    "from_bits",
    "from_half",
    "fused",
    "half",
    "largest",
    "load",
    "nearest",
    "place",
    "some",
    "spread",
    "square_root",
    "store",
    "total",
    "truncated",
    "where",
]

LANES = 16  # one register of AVX-512, two of AVX2, four of SSE or NEON


class Lanes(types.Type):  # type: ignore[misc]
    """The type of `LANES` values of a scalar type."""

    def __init__(self, element: Any) -> None:
        self.element = element
        super().__init__(name=f"lanes({element})")


FLOATS, INTEGERS, TRUTHS = Lanes(types.float32), Lanes(types.int32), Lanes(types.boolean)
_LLVM = {FLOATS: ir.FloatType(), INTEGERS: ir.IntType(32), TRUTHS: ir.IntType(1)}


def _vector(kind: Lanes) -> Any:
    return ir.VectorType(_LLVM[kind], LANES)


@register_model(Lanes)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, _vector(kind))


def _splat(builder: Any, value: Any) -> Any:
    """Return a scalar in every lane."""
    one = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(one, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, ir.Constant(one, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
    )


def _operand(builder: Any, kind: Any, value: Any) -> Any:
    return value if isinstance(kind, Lanes) else _splat(builder, value)


def _define(operators: tuple[Any, ...], build: dict[Lanes, Callable[[Any, Any, Any], Any]], truths: bool) -> None:
    """Give binary operators a meaning for kinds of lanes: `build` makes the instruction, whose result is lanes of the
    same kind, or `truths`."""

    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, _: Any) -> Any:
            kinds = [arg for arg in args if isinstance(arg, Lanes)]
            if len(args) != 2 or not kinds or any(kind != kinds[0] for kind in kinds) or kinds[0] not in build:
                return None
            if not all(isinstance(arg, Lanes | types.Number | types.Boolean) for arg in args):
                return None
            taken = (arg if isinstance(arg, Lanes) else kinds[0].element for arg in args)
            return signature(TRUTHS if truths else kinds[0], *taken)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = next(arg for arg in sig.args if isinstance(arg, Lanes))
        first, second = (_operand(builder, arg, value) for arg, value in zip(sig.args, args, strict=True))
        return build[kind](builder, first, second)

    for function in operators:
        infer_global(function)(Template)
        for shape in ((Lanes, Lanes), (Lanes, types.Any), (types.Any, Lanes)):
            lower_builtin(function, *shape)(lower)


def _made_by(name: str) -> Callable[[Any, Any, Any], Any]:
    return lambda builder, a, b: getattr(builder, name)(a, b)


def _compared(sign: str) -> dict[Lanes, Callable[[Any, Any, Any], Any]]:
    ordered = "fcmp_unordered" if sign == "!=" else "fcmp_ordered"  # NaN is not equal to itself, in C and here
    return {
        FLOATS: lambda builder, a, b: getattr(builder, ordered)(sign, a, b),
        INTEGERS: lambda builder, a, b: builder.icmp_signed(sign, a, b),
    }


_define((operator.add, operator.iadd), {FLOATS: _made_by("fadd"), INTEGERS: _made_by("add")}, False)
_define((operator.sub, operator.isub), {FLOATS: _made_by("fsub"), INTEGERS: _made_by("sub")}, False)
_define((operator.mul, operator.imul), {FLOATS: _made_by("fmul"), INTEGERS: _made_by("mul")}, False)
_define((operator.truediv, operator.itruediv), {FLOATS: _made_by("fdiv")}, False)
_define((operator.and_, operator.iand), {INTEGERS: _made_by("and_"), TRUTHS: _made_by("and_")}, False)
_define((operator.or_, operator.ior), {INTEGERS: _made_by("or_"), TRUTHS: _made_by("or_")}, False)
_define((operator.xor, operator.ixor), {INTEGERS: _made_by("xor"), TRUTHS: _made_by("xor")}, False)
_define((operator.lshift, operator.ilshift), {INTEGERS: _made_by("shl")}, False)
_define((operator.rshift, operator.irshift), {INTEGERS: _made_by("lshr")}, False)  # of unsigned integers
for _function, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _define((_function,), _compared(_sign), True)


@infer_global(operator.neg)
class _Negative(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, _: Any) -> Any:
        return signature(FLOATS, FLOATS) if args == (FLOATS,) else None


@lower_builtin(operator.neg, Lanes)  # type: ignore[untyped-decorator]
def _negative(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


@infer_global(operator.invert)
class _Not(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, _: Any) -> Any:
        return signature(args[0], args[0]) if args in ((TRUTHS,), (INTEGERS,)) else None


@lower_builtin(operator.invert, Lanes)  # type: ignore[untyped-decorator]
def _not(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.not_(args[0])


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any, element: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), ir.VectorType(element, LANES).as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, at: Any) -> Any:
    """Return `LANES` numbers of a flat array from place `at` on: f32 as floats; i32, u16 and u8 as integers."""
    kind = FLOATS if array.dtype == types.float32 else INTEGERS

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        element = context.get_data_type(array.dtype)
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], element)
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return (
            builder.zext(value, _vector(INTEGERS))
            if isinstance(array.dtype, types.Integer) and array.dtype.bitwidth < 32
            else value
        )

    return signature(kind, array, types.intp), code


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """Put lanes into a flat array from place `at` on; of integers in u8 the lowest eight bits."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        element = context.get_data_type(array.dtype)
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], element)
        narrow = array.dtype == types.uint8
        stored = builder.trunc(args[2], ir.VectorType(element, LANES)) if narrow else args[2]
        builder.store(stored, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return signature(types.void, array, types.intp, value), code


@intrinsic  # type: ignore[untyped-decorator]
def spread(typing: Any, value: Any) -> Any:
    """Return lanes of one number: floats of a float, integers of an integer."""
    kind = FLOATS if isinstance(value, types.Float) else INTEGERS
    return signature(kind, kind.element), lambda context, builder, sig, args: _splat(builder, args[0])


@intrinsic  # type: ignore[untyped-decorator]
def where(typing: Any, truth: Any, yes: Any, no: Any) -> Any:
    """Return `yes` in lanes where it is true, else `no`: C's `truth ? yes : no`."""
    kind = yes if isinstance(yes, Lanes) else no
    taken = (arg if isinstance(arg, Lanes) else kind.element for arg in (yes, no))

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        chosen = (_operand(builder, sig.args[i], args[i]) for i in (1, 2))
        return builder.select(args[0], *chosen)

    return signature(kind, TRUTHS, *taken), code


@intrinsic  # type: ignore[untyped-decorator]
def some(typing: Any, truth: Any) -> Any:
    """Return whether it is true in any lane."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = ir.IntType(LANES)
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], whole), ir.Constant(whole, 0))

    return signature(types.boolean, TRUTHS), code


@intrinsic  # type: ignore[untyped-decorator]
def first(typing: Any, truth: Any, begin: Any) -> Any:
    """Return the first lane from `begin` on in which it is true, or `LANES`."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = ir.IntType(64)
        word = builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), wide)
        word = builder.and_(word, builder.shl(ir.Constant(wide, -1), args[1]))
        return builder.cttz(builder.or_(word, ir.Constant(wide, 1 << LANES)), ir.Constant(ir.IntType(1), 1))

    return signature(types.intp, TRUTHS, types.intp), code


def _folded(join: Callable[[Any, Any, Any], Any]) -> Any:
    """Join the first half of the lanes with the second, until one is left."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, count = args[0], LANES
        while count > 1:
            count //= 2
            places = (ir.Constant(ir.VectorType(ir.IntType(32), count), [*range(at, at + count)]) for at in (0, count))
            nothing = ir.Constant(value.type, ir.Undefined)
            value = join(builder, *(builder.shuffle_vector(value, nothing, half) for half in places))
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return lambda typing, value: (signature(types.float32, FLOATS), code)


def _of_floats(name: str) -> Any:
    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_vector(FLOATS), [_vector(FLOATS)])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{LANES}f32"), args)

    return lambda typing, value: (signature(FLOATS, FLOATS), code)


@intrinsic  # type: ignore[untyped-decorator]
def fused(typing: Any, first: Any, second: Any, more: Any) -> Any:
    """Return `first * second + more` of floats, rounded once (IEEE 754's fusedMultiplyAdd)."""
    taken = (arg if isinstance(arg, Lanes) else types.float32 for arg in (first, second, more))

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_vector(FLOATS), [_vector(FLOATS)] * 3)
        name = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        return builder.call(name, [_operand(builder, arg, value) for arg, value in zip(sig.args, args, strict=True)])

    return signature(FLOATS, *taken), code


def _turned(name: str, before: Lanes, after: Lanes) -> Any:
    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, name)(args[0], _vector(after))

    return lambda typing, value: (signature(after, before), code)


total = intrinsic(_folded(lambda builder, a, b: builder.fadd(a, b)))
largest = intrinsic(_folded(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b)))
square_root = intrinsic(_of_floats("llvm.sqrt"))
absolute = intrinsic(_of_floats("llvm.fabs"))
floats = intrinsic(_turned("sitofp", INTEGERS, FLOATS))
truncated = intrinsic(_turned("fptosi", FLOATS, INTEGERS))  # of what an i32 can hold
bits = intrinsic(_turned("bitcast", FLOATS, INTEGERS))
from_bits = intrinsic(_turned("bitcast", INTEGERS, FLOATS))


@part
def nearest(value: Any) -> Any:
    """Return the nearest integers, ties to even; for numbers beyond 22 bits what C's bits then are (nearest_int)."""
    return (bits(value + np.float32(12582912)) & 0x007FFFFF) - 0x00400000


@part
def clamped(value: Any, low: Any, high: Any) -> Any:
    """Return MAX(low, MIN(high, value)) of macros in C."""
    least = where(value > high, high, value)
    return where(least < low, low, least)


@part
def half(value: Any) -> Any:
    """Return the bits of the nearest half-precision floats, ties to even (ggml_compute_fp32_to_fp16)."""
    base = absolute(value) * np.float32(2.0**112) * np.float32(2.0**-110)
    word = bits(value)
    twice = word << 1
    bias = twice & -0x1000000
    small = (bias >> 1) < (0x71000000 >> 1)  # compared as unsigned numbers
    bias = where(small, 0x71000000, bias)
    parts = bits(from_bits((bias >> 1) + 0x07800000) + base)
    number = ((parts >> 13) & 0x7C00) + (parts & 0x0FFF)
    number = where(value != value, 0x7E00, number)
    return ((word >> 16) & 0x8000) | number


@part
def from_half(word: Any) -> Any:
    """Return floats from bits of half precision, exactly (ggml_compute_fp16_to_fp32)."""
    wide = word << 16
    twice = wide << 1
    normal = from_bits((twice >> 4) + (0xE0 << 23)) * np.float32(2.0**-112)
    small = from_bits((twice >> 17) | (126 << 23)) - np.float32(0.5)
    chosen = where((twice >> 1) < (1 << 26), bits(small), bits(normal))  # compared as unsigned numbers
    return from_bits((wide & -0x80000000) | chosen)


@part
def place(begin: int, count: int, size: int, total: int, starts: Any) -> None:
    """Put into `starts`, i64[LANES], where blocks of `size` numbers begin, of `count` the one numbered `begin` and
    those after it, or the last, in a flat array of `total` numbers that is read again from its beginning."""
    for lane in range(LANES):
        starts[lane] = min(begin + lane, count - 1) * size % total
