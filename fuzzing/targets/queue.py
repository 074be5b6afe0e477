"""Whatever a virtqueue's memory holds, the device takes bounded chains of descriptors that are really there, or raises
QueueError or MemoryAccessError, and writes nothing but its used ring.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import calltable as ct
from fuzzing.codec import Sink, Source
from fuzzing.memory import BASES, Memory
from fuzzing.oracle import check_sentence
from fuzzing.targets import Target
from vmm.devices.errors import MemoryAccessError, QueueError
from vmm.devices.queue import CHAIN_BYTES_MAX, DESC_F_WRITE, Queue

_SIZES = (ct.QUEUE_SIZE, 1, 2, 8, 256, 32768)
_WHOLE = len(BASES)
_memory = Memory()


def _address(source: Source) -> int:
    base = source.byte() % (_WHOLE + 1)
    return source.number() if base == _WHOLE else BASES[base] + source.u16()


def _descriptors(raw: bytes) -> set[tuple[int, int, bool]]:
    found = struct.iter_unpack("<QIHH", raw[: len(raw) // 16 * 16])
    return {(address, length, bool(flags & DESC_F_WRITE)) for address, length, flags, _ in found}


def _known(queue: Queue) -> set[tuple[int, int, bool]]:
    """Every descriptor of the table, and of every table that one of them could mean."""
    raw = _memory.peek(queue.descriptors, 16 * queue.size)
    found = _descriptors(raw)
    for address, length, _ in list(found):
        found |= _descriptors(_memory.peek(address, min(length, 16 * queue.size)))
    return found


def run(data: bytes) -> None:
    """See above."""
    source = Source(data)
    _memory.reset()
    queue = Queue(_SIZES[source.byte() % len(_SIZES)])
    queue.size = source.number()
    queue.descriptors, queue.driver, queue.device = _address(source), _address(source), _address(source)
    queue.last_available, queue.used_index = source.u16(), source.u16()
    flags = source.byte()
    while source:
        _memory.poke(_address(source), source.block())
    state = queue.state()
    try:
        _serve(queue, indirect=bool(flags & 1), ahead=flags >> 1 & 3)
    except QueueError as error:
        check_sentence(error.message)
    except MemoryAccessError as error:
        check_sentence(str(error))
    _memory.settle()
    _memory.check()
    queue.restore(state)
    assert queue.state() == state


def _serve(queue: Queue, *, indirect: bool, ahead: int) -> None:
    queue.check(_memory)
    size = queue.size
    assert 0 < size <= queue.size_max
    assert size.bit_count() == 1
    _memory.settle()
    before = queue.last_available
    heads, _ = queue.available(_memory)
    assert len(heads) <= size
    assert queue.last_available == (before + len(heads)) % 65536
    assert queue.available(_memory)[0] == []
    table = queue.table(_memory)
    known = _known(queue)
    used = []
    for head in heads[: 64 >> ahead]:
        readable, writable = queue.chain(_memory, table, head, indirect)
        assert (readable, writable) == queue.chain(_memory, table, head, indirect)
        assert 0 < len(readable) + len(writable) <= size
        assert sum(length for _, length in readable + writable) <= CHAIN_BYTES_MAX
        assert {(*segment, False) for segment in readable} | {(*segment, True) for segment in writable} <= known
        used.append((head, len(readable)))
    index = queue.used_index
    flags = _memory.peek(queue.device, 2)
    queue.publish(_memory, used)
    assert queue.used_index == (index + len(used)) % 65536
    assert _memory.peek(queue.device, 2) == flags
    assert _memory.peek(queue.device + 2, 2) == struct.pack("<H", queue.used_index)
    for place, element in enumerate(used):
        at = queue.device + 4 + 8 * ((index + place) % size)
        # The guest may have laid its rings over one another.
        assert len(used) > size or _memory.peek(at, 8) == struct.pack("<II", *element)


def seeds() -> Iterable[bytes]:
    """A queue of each size with chains in order, direct and indirect, and one with a loop."""
    for choice, size in enumerate(_SIZES[:5]):
        for indirect in (False, True):
            sink = Sink().byte(choice).number(size)
            sink.byte(1).u16(0).byte(1).u16(0x1000).byte(1).u16(0x2000).u16(0).u16(0xFFFF).byte(int(indirect))
            table = b""
            count = min(size, 4)
            for place in range(count):
                last = place == count - 1
                table += struct.pack(
                    "<QIHH", ct.ARENA_BASE + 64 * place, 16, (2 if place else 0) | (0 if last else 1), place + 1
                )
            if indirect:
                sink.byte(0).u16(0x800).block(table)
                table = struct.pack("<QIHH", ct.ARENA_BASE + 0x800, 16 * count, 4, 0)
            sink.byte(1).u16(0).block(table)
            sink.byte(1).u16(0x1000).block(struct.pack("<HHH", 0, 1, 0))
            yield bytes(sink.data)
    looped = Sink().byte(0).number(16).byte(1).u16(0).byte(1).u16(0x1000).byte(1).u16(0x2000).u16(5).u16(5).byte(0)
    looped.byte(1).u16(0).block(struct.pack("<QIHH", ct.ARENA_BASE, 1, 1, 0))
    looped.byte(1).u16(0x1000).block(struct.pack("<HH32x", 1, 21))
    yield bytes(looped.data)


TARGET = Target("queue", run, seeds, max_length=2048)
