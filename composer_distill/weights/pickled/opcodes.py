"""What each opcode of a pickle does to the machine that it works on."""

import io
import struct
from collections.abc import Callable
from typing import IO, Any

from torch import Tensor

from composer_distill.weights.pickled.machine import REMEDY, Machine, Named, Refused
from composer_distill.weights.pickled.reach import MAX_DEPTH, Broken, Record, check_reach
from composer_distill.weights.pickled.uncollected import uncollected
from composer_distill.weights.wording import plain

# Real ones: 5.4 million in a run with a tokenizer of 256,000 words and 580,000 merges; 9.5 million
# in the .metadata of 64 ranks that machine.py tells of; of 512 ranks that would be 76 million. A
# file has a byte for each.
MAX_OPCODES = 200_000_000
MAX_MARKS = 2 * MAX_DEPTH
_MAX_DIGITS = 1000  # bytes of an integer
_PROTOCOLS = range(6)

_INT1, _INT2, _INT4, _INT8 = map(struct.Struct, ("<B", "<H", "<I", "<Q"))
_SIGNED, _FLOAT = struct.Struct("<i"), struct.Struct(">d")

Handler = Callable[[Machine], None]


def read(
    stream: IO[bytes],
    size: int,
    find: Callable[[str], Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle as data, and leave the stream behind it.

    Python's own unpickler imports what a file names, and calls it. This one asks ``find`` about
    each name, which answers with a maker of ours or refuses. What may be spent is bounded: a few
    bytes must not become gigabytes, nor a walk without end.

    Args:
        stream: Where the pickle begins.
        size: How many bytes there are at most.
        find: Answers a dotted name with a ``Named`` or a constant, or raises ``Refused``.
        persistent: Answers a persistent id.

    Raises:
        Refused: If it asks for something that is not data.
        Broken: If it is damaged or out of proportion. Other errors mean damage too.

    Example:
        >>> import pickle
        >>> data = pickle.dumps({"weight": [1, 2.5, "x"]})
        >>> read(io.BytesIO(data), len(data), find=print)
        {'weight': [1, 2.5, 'x']}
    """
    machine = Machine(stream, size, find, persistent)
    with uncollected():
        value = _run(machine)
        check_reach(value, machine.allowance())
    return value


def _run(machine: Machine) -> Any:
    take = machine.stream.read
    for _ in range(MAX_OPCODES):
        code = take(1)
        if code == b".":
            return machine.stack.pop()
        handler = _HANDLERS.get(code)
        if handler is None:
            raise Broken(f"opcode {code!r}" if code else "it ends too early")
        handler(machine)
    raise Broken(f"more than {MAX_OPCODES:,} opcodes")


def read_bytes(data: bytes, find: Callable[[str], Any], persistent: Any = None) -> Any:
    """Read one pickle from memory; see ``read``."""
    return read(io.BytesIO(data), len(data), find, persistent)


def _get(machine: Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _put(machine: Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]
    machine.spend(100)


def _text(machine: Machine, count: int) -> None:
    machine.push(machine.take(count).decode("utf-8", "surrogatepass"), 60 + count)


def _bytes(machine: Machine, count: int) -> None:
    machine.push(machine.take(count), 40 + count)


def _long(machine: Machine, count: int) -> None:
    if count > _MAX_DIGITS:
        raise Broken("an integer of more than 8000 bits")
    machine.push(int.from_bytes(machine.take(count), "little", signed=True), 40 + count)


def _tuple(machine: Machine, items: list[Any]) -> None:
    machine.push(tuple(items), 56 + 8 * len(items))


def _last(count: int) -> Handler:
    def handler(machine: Machine) -> None:
        items = machine.stack[-count:]
        if len(items) < count:
            raise Broken("it takes more than there is")
        del machine.stack[-count:]
        _tuple(machine, items)

    return handler


def _constant(value: Any) -> Handler:
    return lambda machine: machine.stack.append(value)


def _frame(machine: Machine) -> None:
    machine.take(8)  # a length, which tells nothing new


def _pop(machine: Machine) -> None:
    machine.stack.pop()


def _pop_all(machine: Machine) -> None:
    machine.pop_mark()


def _mark(machine: Machine) -> None:
    machine.spend(64)
    if len(machine.outer) > MAX_MARKS:
        raise Broken(f"values nested more than {MAX_DEPTH} deep")
    machine.outer.append(machine.stack)
    machine.stack = []


def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.push(machine.find(f"{module}.{name}"), 100)


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise Broken("a name that is no text")
    machine.push(machine.find(f"{module}.{name}"), 100)


def _make(machine: Machine) -> None:
    args, named = machine.stack.pop(), machine.stack.pop()
    if type(named) is not Named or type(args) is not tuple:
        raise Refused(f"it calls what is no name; {REMEDY}")
    machine.spend(_copied(args))  # before it is made
    value = named.make(*args)
    machine.push(value, 500 if isinstance(value, Tensor) else 200)


def _copied(value: Any, depth: int = 3) -> int:
    """How many bytes a maker may take to copy what it is given, however often that is given."""
    if type(value) in (str, bytes, bytearray):
        return len(value)
    if type(value) in (list, set, frozenset, dict):
        return 100 * len(value)
    if isinstance(value, Tensor):
        return 8 * value.numel()
    if type(value) is Record:
        return 16 * _copied(value.state, depth)  # an array may become one of larger numbers
    if type(value) is tuple and depth:
        return sum(_copied(item, depth - 1) for item in value)
    return 0


def _build(machine: Machine) -> None:
    """Keep the state of a stand-in, which nothing reads by itself; nothing else has any."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if type(target) is Record and target.state is None:
        target.check(state)
        target.state = state
    elif type(target) is not dict or type(state) is not dict:  # torch marks its state_dicts so
        what = target.path if isinstance(target, Record | Named) else type(target).__name__
        raise Refused(f"it changes {plain(what)}, which is no data; {REMEDY}")


def _extend(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not list:
        raise Broken("items for what is no list")
    target.extend(items)


def _set(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not dict or len(items) % 2:
        raise Broken("entries for what is no dict")
    machine.spend(50 * len(items))
    for key, value in zip(items[::2], items[1::2], strict=True):
        machine.check_key(key)
        target[key] = value


def _add(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not set:
        raise Broken("items for what is no set")
    machine.spend(100 * len(items))
    for item in items:
        machine.check_key(item)
        target.add(item)


def _frozen(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.stack.append(set())
    _add(machine, items)
    machine.stack[-1] = frozenset(machine.stack[-1])


def _pair(machine: Machine) -> list[Any]:
    value, key = machine.stack.pop(), machine.stack.pop()
    return [key, value]


def _persistent(machine: Machine) -> None:
    if machine.persistent is None:
        raise Refused(f"it names something outside of itself; {REMEDY}")
    machine.push(machine.persistent(machine.stack.pop()), 200)


def _protocol(machine: Machine) -> None:
    if machine.take(1)[0] not in _PROTOCOLS:
        raise Broken("a pickle protocol that is not known")


# The binary opcodes of protocols 1 to 5; PyTorch writes no other.
_HANDLERS: dict[bytes, Handler] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b"(": _mark,
    b"0": _pop,
    b"1": _pop_all,
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"J": lambda m: m.push(m.number(_SIGNED), 32),
    b"K": lambda m: m.push(m.number(_INT1), 8),
    b"M": lambda m: m.push(m.number(_INT2), 32),
    b"\x8a": lambda m: _long(m, m.number(_INT1)),
    b"\x8b": lambda m: _long(m, m.number(_INT4)),
    b"G": lambda m: m.push(m.number(_FLOAT), 32),
    b"X": lambda m: _text(m, m.number(_INT4)),
    b"\x8c": lambda m: _text(m, m.number(_INT1)),
    b"\x8d": lambda m: _text(m, m.number(_INT8)),
    b"T": lambda m: _text(m, m.number(_INT4)),  # Python 2's strings: torch takes them for UTF-8
    b"U": lambda m: _text(m, m.number(_INT1)),
    b"B": lambda m: _bytes(m, m.number(_INT4)),
    b"C": lambda m: _bytes(m, m.number(_INT1)),
    b"\x8e": lambda m: _bytes(m, m.number(_INT8)),
    b")": _constant(()),
    b"t": lambda m: _tuple(m, m.pop_mark()),
    b"\x85": _last(1),
    b"\x86": _last(2),
    b"\x87": _last(3),
    b"]": lambda m: m.push([], 64),
    b"a": lambda m: _extend(m, [m.stack.pop()]),
    b"e": lambda m: _extend(m, m.pop_mark()),
    b"}": lambda m: m.push({}, 64),
    b"s": lambda m: _set(m, _pair(m)),
    b"u": lambda m: _set(m, m.pop_mark()),
    b"\x8f": lambda m: m.push(set(), 216),
    b"\x90": lambda m: _add(m, m.pop_mark()),
    b"\x91": _frozen,
    b"h": lambda m: _get(m, m.number(_INT1)),
    b"j": lambda m: _get(m, m.number(_INT4)),
    b"q": lambda m: _put(m, m.number(_INT1)),
    b"r": lambda m: _put(m, m.number(_INT4)),
    b"\x94": lambda m: _put(m, len(m.memo)),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _make,
    b"\x81": _make,
    b"b": _build,
    b"Q": _persistent,
}
