"""What a pickle works on: a stack, a memo, and what it may spend."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from composer_distill.weights.pickled.reach import Broken, Record

MAX_TUPLE_KEYS = 10_000
# What a pickle may make: so much, and so many bytes for each of its own. Real ones were counted as
# Machine.spend does, which is some half more than Python takes:
#   33 bytes a byte: the .metadata of a Llama of 70 billion weights, with Adam's two moments, which
#      64 ranks wrote (20 MB, 138,816 pieces); 31 of 8 ranks.
#   25: a run with Adam whose model has 20,000 small weights (7.4 MB).
#   13: a run with a tokenizer of 256,000 words and 580,000 merges (31 MB).
# tests/weights/test_bounds.py counts again on smaller ones of each kind.
FREE_BYTES = 1 << 24
BYTES_A_BYTE = 80
_MAX_NAME = 1000
REMEDY = "have whoever trusts it save its state_dict() alone"


class Refused(ValueError):
    """A pickle asks for something that is not data."""


@dataclass(frozen=True)
class Named:
    """A name that a pickle gave, with what makes a value for it from arguments."""

    path: str
    make: Callable[..., Any]


@dataclass
class Machine:
    """The state of a pickle that is being read; ``opcodes.read`` runs it.

    Args:
        stream: Where the pickle is.
        size: How many bytes there are at most.
        find: Answers a dotted name with a ``Named`` or a constant, or raises ``Refused``.
        persistent: Answers a persistent id.
    """

    stream: IO[bytes]
    size: int
    find: Callable[[str], Any]
    persistent: Callable[[Any], Any] | None = None
    stack: list[Any] = field(default_factory=list)
    outer: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    spent: int = 0
    tuple_keys: int = 0

    def take(self, count: int) -> bytes:
        """Read exactly so many bytes."""
        data = self.stream.read(count) if count <= self.size else b""
        if len(data) != count:
            raise Broken("it ends too early")
        return data

    def number(self, form: struct.Struct) -> Any:
        """Read a number that is written in a fixed form."""
        return form.unpack(self.take(form.size))[0]

    def line(self) -> str:
        """Read one line."""
        text = self.stream.readline(_MAX_NAME)
        if not text.endswith(b"\n"):
            raise Broken("a name without an end")
        return text[:-1].decode()

    def push(self, value: Any, cost: int) -> None:
        """Put a value on the stack, whose making takes so many bytes."""
        self.spend(cost)
        self.stack.append(value)

    def spend(self, cost: int) -> None:
        """Count memory, and stop where it is out of all proportion to the bytes read."""
        self.spent += cost
        if self.spent > FREE_BYTES and self.spent > self.allowance():
            raise Broken("it would take far more memory than its size tells")

    def allowance(self) -> int:
        """How many bytes of values the bytes that were read so far may make."""
        return FREE_BYTES + BYTES_A_BYTE * self.stream.tell()

    def pop_mark(self) -> list[Any]:
        """Take everything since the last mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def check_key(self, key: Any) -> None:
        """Refuse keys whose hash or comparison could run for ever, or be chosen to collide."""
        if is_plain(key) or type(key) is Record:
            return
        if type(key) is tuple and len(key) <= 8 and all(map(is_plain, key)):
            self.tuple_keys += 1
            if self.tuple_keys <= MAX_TUPLE_KEYS:
                return
        raise Broken(f"a {type(key).__name__} as a key")


def is_plain(key: Any) -> bool:
    """Whether a key is text or bytes, hashed by a secret of the process, or a short number."""
    return type(key) in (str, bytes, float, bool, type(None)) or (
        type(key) is int and key.bit_length() < 64
    )
