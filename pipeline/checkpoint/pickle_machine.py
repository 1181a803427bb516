"""A machine that runs a pickle as data: on a stack of plain values, with nothing of Python in reach.

A pickle is a program. The interpreter's own unpickler allocates what a number in the file says, hashes
and copies nested values for as long as that takes, with no signal heard, and makes 850 MB of 10 MiB
of `}`. Here each instruction is a few lines of ours, everything that it makes is paid for from an
account that the length of the pickle fills, and values that are costly to hash or copy are refused.
"""

# the table of steps below the machine is a part of it
# pyright: reportPrivateUsage=false

from __future__ import annotations

import pickletools
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from types import MappingProxyType
from typing import Any, NamedTuple

MULTIPLE = 24
"""Bytes that may be built for each byte of a pickle. Files of torch.save take 10 to 14, optimizers
among them, metadata of distributed checkpoints 14 to 17; lists of small dictionaries 18 to 26."""
ALLOWANCE = 4 << 20
"""Bytes besides: logs of small dictionaries beside the tensors are short."""
MOST_ITEMS = 64
"""Of what is handed to a function or is a key: more than the dimensions of any tensor."""
MOST_KEY_CHARACTERS = 1 << 16
"""Equal keys are compared to their end each time."""
_MOST_INT = 1 << 60
_MOST_UNKNOWN = 4  # names, for a message

# What CPython 3.11 takes, on 64 bits.
_SLOT_BYTES = 8
_TUPLE_BYTES = 56
_LIST_BYTES = 72
_EMPTY_DICT_BYTES = 80
_RECORD_BYTES = 80
_DICT_BYTES = 120  # more, for its first entries
_FIRST_ENTRIES = 5
_ENTRY_BYTES = 50  # of the others: key, value, hash, index, and room to grow

_ABSENT = object()
_NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Maker(NamedTuple):
    """A function of ours that a pickle may call."""

    function: Callable[..., Any]


class Named(str):
    """What a pickle names beyond the list: the name, which nobody looks up."""

    __slots__ = ()


class OrderedRecord(dict[Any, Any]):
    """An ordered dictionary; attributes that a pickle sets (`_metadata`) are dropped."""


class Record:
    """An object of some class, as what its pickle sets: attributes by name, or else one `state`.

    Nothing was called to make it. Hashed by identity: some are keys of a dictionary, each by itself.
    """

    __slots__ = ("_state", "arguments", "entries", "kind")

    def __init__(self, kind: Any = None, arguments: Any = ()) -> None:
        self.kind = kind
        """What it was to be made by: a name, or another record."""
        self.arguments = arguments
        """What that was to be called with."""
        self.entries: dict[Any, Any] | None = None
        """Where its class is one of dictionaries."""
        self._state: Mapping[Any, Any] = _NOTHING

    def build(self, state: Any) -> None:
        """Take over what a pickle sets."""
        self._state = state if isinstance(state, dict) else {"state": state}

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def __getitem__(self, name: str) -> Any:
        return self._state[name]

    def get(self, name: str) -> Any:
        """Return an attribute, or None."""
        return self._state.get(name)


class Refused(Exception):
    """A pickle names what runs programs, or holds a whole network."""


_PROGRAMS = frozenset({"os", "posix", "nt", "subprocess", "commands"})
_BUILT_IN = frozenset({"builtins", "__builtin__", "io", "_io"})
_RUNNERS = frozenset({"eval", "exec", "compile", "open", "__import__", "execfile"})
"""Of the modules of built-in functions and of files. Nothing is called, whatever it is: but nobody stores these beside
weights, and whoever meets them should know."""


class Machine:
    """Runs one pickle."""

    def __init__(
        self, names: Mapping[tuple[str, str], Any], stored: Callable[[Any], Any], length: int
    ) -> None:
        """Take note of what the pickle may reach.

        Args:
            names: what means something; another name becomes `Named`.
            stored: makes an object of a persistent id.
            length: bytes of the pickle, at most.
        """
        self._names, self._stored, self._length = names, stored, length
        self.unknown: dict[str, None] = {}
        """What it named that is not on the list: the first few."""
        self._left = ALLOWANCE + MULTIPLE * length
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []  # picklers number from 0 on

    def run(self, stream: BytesIO) -> Any:
        """Return what the pickle that begins here makes, and leave the stream behind it.

        Raises:
            Refused: it names what runs programs, or holds a whole network.
            Exception: of any kind: it is malformed.
        """
        for opcode, argument, _ in pickletools.genops(stream):
            step = _STEPS.get(opcode.name)
            if step is None:
                raise ValueError(f"opcode {opcode.name}")
            step(self, argument)
        return self._pop()

    # ---- what instructions are made of

    def _pay(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise ValueError(f"it makes more than {MULTIPLE} times its length")

    def _pay_entries(self, target: dict[Any, Any], count: int) -> None:
        beyond = len(target) + count - _FIRST_ENTRIES
        self._pay((0 if target else _DICT_BYTES) + _ENTRY_BYTES * max(0, min(count, beyond)))

    def _push(self, value: Any, num_bytes: int = 0) -> None:
        self._pay(_SLOT_BYTES + num_bytes)
        self._stack.append(value)

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("an empty stack")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("no mark")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _pop_last(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    # ---- instructions

    def _nothing(self, argument: Any) -> None:
        del argument

    def _value(self, argument: Any) -> None:
        self._push(argument, sys.getsizeof(argument))

    def _text(self, argument: str) -> None:
        """Push a text that a table can hold: half of a surrogate pair is no character."""
        self._value(argument.encode("utf-8", "replace").decode())

    def _old_text(self, argument: str) -> None:
        """Push a string of Python 2, which is bytes."""
        data = argument.encode("latin-1")
        try:
            self._value(data.decode())
        except UnicodeDecodeError:
            self._value(data)

    def _mark(self, argument: Any) -> None:
        del argument
        self._pay(_SLOT_BYTES + sys.getsizeof(1))
        self._marks.append(len(self._stack))

    def _drop(self, argument: Any) -> None:
        del argument
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _drop_to_mark(self) -> None:
        self._pop_to_mark()

    def _last(self, count: int) -> None:
        self._tuple(self._pop_last(count))

    def _tuple(self, items: list[Any]) -> None:
        self._push(tuple(items), _TUPLE_BYTES + _SLOT_BYTES * len(items))

    def _list(self, items: list[Any]) -> None:
        self._push(items, _LIST_BYTES + _SLOT_BYTES * len(items))

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Record):  # of a class of lists or sets: what is in it is not kept
            return
        if type(target) is not list:
            raise ValueError("items for what is no list")
        self._pay(2 * _SLOT_BYTES * len(items))
        target += items

    def _dict(self, items: list[Any]) -> None:
        self._push({}, _EMPTY_DICT_BYTES)
        if items:
            self._set(items)

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Record):
            self._pay(0 if target.entries else _EMPTY_DICT_BYTES)
            target.entries = target = target.entries or {}
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("entries for what is no dictionary")
        self._pay_entries(target, len(items) // 2)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not _is_cheap(key):
                self._pay(_RECORD_BYTES)
                key = Record()
            target[key] = value

    def _remember(self, number: int) -> None:
        if not 0 <= number <= self._length:
            raise ValueError(f"a memo of {number:,} entries")
        gap = number + 1 - len(self._memo)
        if gap > 0:
            self._pay(_SLOT_BYTES * gap)
            self._memo += [_ABSENT] * gap
        self._memo[number] = self._top()

    def _recall(self, number: int) -> None:
        value = self._memo[number] if 0 <= number < len(self._memo) else _ABSENT
        if value is _ABSENT:
            raise ValueError(f"nothing in the memo at {number:,}")
        self._push(value)

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        value = self._names.get((module, name))
        if value is None:
            value = Named(f"{module}.{name}")
            runs = module in _BUILT_IN and name in _RUNNERS
            if runs or module.partition(".")[0] in _PROGRAMS:
                raise Refused(value)
            self._pay(sys.getsizeof(value))
            if len(self.unknown) < _MOST_UNKNOWN:
                self.unknown[value] = None
        self._push(value)

    def _call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Named | Record):
            self._new(function, arguments)
            return
        if type(function) is not Maker or type(arguments) is not tuple:
            raise ValueError("a call of what is no function")
        if len(arguments) > MOST_ITEMS:
            raise ValueError(f"a call with {len(arguments):,} arguments")
        made = function.function(*arguments)
        self._push(made, _weight(made))

    def _new(self, kind: Any, arguments: Any, *_: Any) -> None:
        if not isinstance(kind, Named | Record):
            raise ValueError("an object of what is no class")
        self._push(Record(kind, arguments), _RECORD_BYTES)

    def _build(self, state: Any) -> None:
        target = self._top()
        if isinstance(target, Record):
            if isinstance(state, dict) and "_parameters" in state and "_modules" in state:
                raise Refused(target.kind if isinstance(target.kind, Named) else "a whole network")
            self._pay(0 if isinstance(state, dict) else _EMPTY_DICT_BYTES + _DICT_BYTES)
            target.build(state)

    def _frozen(self, items: list[Any]) -> None:
        del items  # what is in a set is not kept
        self._push(Record(), _RECORD_BYTES)

    def _persistent(self, pid: Any) -> None:
        storage = self._stored(pid)
        self._push(storage, _weight(storage))


def _weight(value: Any) -> int:
    """Return about how many bytes a value takes that a function has made."""
    if isinstance(value, dict):
        return _EMPTY_DICT_BYTES + _DICT_BYTES * bool(value) + _ENTRY_BYTES * len(value)
    return sys.getsizeof(value)


def _is_cheap(key: Any) -> bool:
    """Return whether a key takes little to hash and compare; nested tuples take 2ⁿ steps.

    What is not is replaced: no tensor is found by it.
    """
    parts = key if type(key) is tuple else (key,)
    return len(parts) <= MOST_ITEMS and all(map(_is_plain, parts))


def _is_plain(key: Any) -> bool:
    match key:
        case str() | bytes():
            return len(key) <= MOST_KEY_CHARACTERS
        case int():  # larger ones can be chosen to have one hash
            return -_MOST_INT <= key <= _MOST_INT
        case Record():
            return True
        case _:
            return isinstance(key, float | None)


_STEPS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), Machine._nothing),
    "NONE": lambda machine, _: machine._push(None),
    "NEWTRUE": lambda machine, _: machine._push(True),
    "NEWFALSE": lambda machine, _: machine._push(False),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT",
         "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        Machine._value,
    ),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"), Machine._text),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING", "STRING"), Machine._old_text),
    "MARK": Machine._mark,
    "POP": Machine._drop,
    "POP_MARK": lambda machine, _: machine._drop_to_mark(),
    "EMPTY_TUPLE": lambda machine, _: machine._push(()),
    "TUPLE": lambda machine, _: machine._tuple(machine._pop_to_mark()),
    "TUPLE1": lambda machine, _: machine._last(1),
    "TUPLE2": lambda machine, _: machine._last(2),
    "TUPLE3": lambda machine, _: machine._last(3),
    "EMPTY_LIST": lambda machine, _: machine._list([]),
    "LIST": lambda machine, _: machine._list(machine._pop_to_mark()),
    "APPEND": lambda machine, _: machine._append([machine._pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine._dict([]),
    "DICT": lambda machine, _: machine._dict(machine._pop_to_mark()),
    "SETITEM": lambda machine, _: machine._set(machine._pop_last(2)),
    "SETITEMS": lambda machine, _: machine._set(machine._pop_to_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine._remember),
    "MEMOIZE": lambda machine, _: machine._remember(len(machine._memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine._recall),
    "GLOBAL": lambda machine, name: machine._named(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine._named(*machine._pop_last(2)),
    "REDUCE": lambda machine, _: machine._call(*machine._pop_last(2)),
    "NEWOBJ": lambda machine, _: machine._new(*machine._pop_last(2)),
    "NEWOBJ_EX": lambda machine, _: machine._new(*machine._pop_last(3)),
    "EMPTY_SET": lambda machine, _: machine._push(Record(), _RECORD_BYTES),
    "ADDITEMS": lambda machine, _: machine._append(machine._pop_to_mark()),
    "FROZENSET": lambda machine, _: machine._frozen(machine._pop_to_mark()),
    "BUILD": lambda machine, _: machine._build(machine._pop()),
    "BINPERSID": lambda machine, _: machine._persistent(machine._pop()),
}  # fmt: skip
"""What it can do; any other instruction is refused."""
