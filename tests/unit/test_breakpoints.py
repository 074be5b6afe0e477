"""Memory with breakpoints against a model that has none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import calltable
from vmm.machine.breakpoints import BreakpointMemory
from vmm.machine.layout import Region
from vmm.machine.memory import GuestMemory

TEXT = calltable.OPERATION_BASE
DATA = TEXT + 0x1000
END = DATA + 0x1000
STACK = calltable.STACK_BASE
REGIONS = [
    Region("text", TEXT, DATA, execute=True),
    Region("data", DATA, END, write=True),
    Region("stack", STACK, STACK + 0x1000, write=True),
    Region("stubs", calltable.SYSTEM_BASE, calltable.SYSTEM_BASE + 0x1000, execute=True, user=False),
    Region("device", calltable.CONTROL_BASE, calltable.CONTROL_BASE + 0x1000, write=True, device=True),
]

#: Around the borders of text and data, where things can go wrong.
PLACES = st.sampled_from([TEXT, TEXT + 1, TEXT + 2, DATA - 2, DATA - 1, DATA, DATA + 1, END - 2, END - 1])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), PLACES, st.just(b"")),
        st.tuples(st.just("remove"), PLACES, st.just(b"")),
        st.tuples(st.just("put"), PLACES, st.binary(min_size=1, max_size=5)),
    ),
    max_size=20,
)


def made() -> tuple[GuestMemory, BreakpointMemory]:
    memory = GuestMemory(0)
    memory.allow(REGIONS)
    return memory, BreakpointMemory(memory, REGIONS)


@given(STEPS)
def test_breakpoints_are_in_memory_and_not_in_what_is_seen(steps: list[tuple[str, int, bytes]]) -> None:
    memory, seen = made()
    model = bytearray(END - TEXT)
    planted: set[int] = set()
    for step, place, data in steps:
        if step == "insert":
            assert seen.insert(place)
            planted.add(place)
        elif step == "remove":
            seen.remove(place)
            planted.discard(place)
        else:
            fits = place + len(data) <= END
            assert seen.put(place, data) == fits
            if fits:
                model[place - TEXT : place - TEXT + len(data)] = data
        assert seen.get(TEXT, END - TEXT) == model
        assert {place for place in range(TEXT, END) if place in seen} == planted
        real = bytearray(model)
        for at in planted:
            assert seen.executable(at) == (at < DATA)
            if at < DATA:
                real[at - TEXT] = 0xCC
        assert memory.get(TEXT, END - TEXT) == real
    seen.remove_all()
    assert memory.get(TEXT, END - TEXT) == model
    memory.close()


def test_what_is_not_there() -> None:
    memory, seen = made()
    for place in (0, calltable.SYSTEM_BASE, calltable.CONTROL_BASE, TEXT - 1, END, STACK + 0x1000, (1 << 64) - 1):
        assert seen.get(place, 1) == b""
        assert not seen.put(place, b"x")
        assert not seen.insert(place)
    assert len(seen.get(END - 3, 100)) == 3
    assert seen.get(TEXT, 0) == b""
    assert seen.ranges() == [(TEXT, DATA), (DATA, END), (STACK, STACK + 0x1000)]
    memory.close()
