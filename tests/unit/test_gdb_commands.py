"""What each packet asks, against a machine that is not there."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_gdb_registers import register_file
from vmm.machine.gdb_commands import SIGSEGV, SIGTRAP, Commands, Detach, Kill, Resume, Stop
from vmm.machine.gdb_protocol import PACKET_SIZE
from vmm.machine.gdb_registers import NUMBERS, TARGET_XML

BASE = 0x40_0000


class FakeMemory:
    """A page of memory."""

    def __init__(self) -> None:
        self.data = bytearray(range(256)) * 16
        self.breakpoints: set[int] = set()

    def get(self, address: int, length: int) -> bytes:
        return bytes(self.data[address - BASE : address - BASE + length]) if address >= BASE else b""

    def put(self, address: int, data: bytes) -> bool:
        if not BASE <= address <= BASE + len(self.data) - len(data):
            return False
        self.data[address - BASE : address - BASE + len(data)] = data
        return True

    def insert(self, address: int) -> bool:
        if BASE <= address < BASE + 256:
            self.breakpoints.add(address)
            return True
        return False

    def remove(self, address: int) -> None:
        self.breakpoints.discard(address)

    def ranges(self) -> list[tuple[int, int]]:
        return [(BASE + 0x1000, BASE + 0x3000), (BASE, BASE + 0x1000)]


class Fake:
    """A machine that has only just stopped."""

    def __init__(self) -> None:
        self.registers = register_file()
        self.stop = Stop(SIGTRAP)
        self.alive = True
        self.memory = FakeMemory()


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def commands(fake: Fake) -> Commands:
    return Commands(fake)


LETTERS = b"?gGpPmMXZzHTqQcCsSDkv!R"
PACKETS = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda letter, rest: bytes((letter,)) + rest,
        st.sampled_from(LETTERS),
        st.text(alphabet="0123456789abcdef,:;=-p.gcsrtCS?", max_size=30).map(str.encode),
    ),
    st.builds(
        lambda start, rest: start + rest,
        st.sampled_from([b"vCont", b"vCont;", b"qXfer:features:read:", b"qXfer:memory-map:read:", b"qSupported:"]),
        st.text(alphabet="0123456789abcdef,:;target.xmlsrCS", max_size=30).map(str.encode),
    ),
)


@given(st.lists(PACKETS, max_size=8))
def test_every_packet_has_an_answer(packets: list[bytes]) -> None:
    commands = Commands(Fake())
    for packet in packets:
        answer = commands.handle(packet)
        assert isinstance(answer, (bytes, Resume, Detach, Kill))
        if isinstance(answer, bytes):
            assert len(answer) <= PACKET_SIZE


def test_stop_reply(fake: Fake, commands: Commands) -> None:
    fake.registers.general.update(rip=0x404FE0, rsp=0xA2FFD8, rbp=0)
    expected = b"T0510:e04f400000000000;07:d8ffa20000000000;06:0000000000000000;thread:1;"
    assert commands.handle(b"?") == expected
    # Only to a gdb that has said that it knows the word.
    fake.stop = Stop(SIGTRAP, breakpoint=True)
    assert commands.handle(b"?") == expected
    commands.handle(b"qSupported:multiprocess+;swbreak+;hwbreak+")
    assert commands.handle(b"?") == expected + b"swbreak:;"
    fake.stop = Stop(SIGSEGV)
    assert commands.stop_reply() == expected.replace(b"T05", b"T0b")


def test_registers(fake: Fake, commands: Commands) -> None:
    assert commands.handle(b"g") == fake.registers.all().hex().encode()
    assert commands.handle(b"p10") == fake.registers.read(16).hex().encode()
    assert commands.handle(b"P0=0807060504030201") == b"OK"
    assert fake.registers.general["rax"] == 0x0102030405060708
    data = bytes(8) + fake.registers.all()[8:]
    assert commands.handle(b"G" + data.hex().encode()) == b"OK"
    assert fake.registers.general["rax"] == 0
    for wrong in (b"p", b"pff", b"pffffffffffffffff", b"P0=00", b"P0", b"Pzz=00", b"G00", b"Gzz", b"P12=00000000"):
        assert commands.handle(wrong) == b"E16"


def test_registers_of_what_has_ended_cannot_be_changed(fake: Fake, commands: Commands) -> None:
    fake.alive = False
    assert commands.handle(b"P0=0807060504030201") == b"E16"
    assert commands.handle(b"G" + fake.registers.all().hex().encode()) == b"E16"
    assert commands.handle(b"c400000") == b"E16"


def test_memory(fake: Fake, commands: Commands) -> None:
    assert commands.handle(b"m400010,4") == b"10111213"
    assert commands.handle(b"m400ffe,100") == b"feff"
    assert commands.handle(b"m1000,4") == b"E0e"
    assert commands.handle(b"M400000,2:beef") == b"OK"
    assert commands.handle(b"X400002,3:\x00#}") == b"OK"
    assert bytes(fake.memory.data[:6]) == b"\xbe\xef\x00#}\x05"
    assert commands.handle(b"X400000,0:") == b"OK"
    assert commands.handle(b"M401000,1:00") == b"E0e"
    for wrong in (
        b"m",
        b"m400000",
        b"m,",
        b"M400000,2:be",
        b"M400000,1:zz",
        b"X400000,1:",
        b"M400000,ffffffffffffffff:",
    ):
        assert commands.handle(wrong) == b"E16"
    huge = commands.handle(b"m400000,ffffffff")
    assert isinstance(huge, bytes)
    assert len(huge) == 0x2000


def test_breakpoints(fake: Fake, commands: Commands) -> None:
    assert commands.handle(b"Z0,400010,1") == b"OK"
    assert commands.handle(b"Z0,400020,1;X1,00") == b"OK"
    assert fake.memory.breakpoints == {0x400010, 0x400020}
    assert commands.handle(b"z0,400010,1") == b"OK"
    assert commands.handle(b"Z0,1000,1") == b"E0e"
    assert commands.handle(b"Z0,400010,2") == b"E16"
    # Hardware breakpoints and watchpoints are gdb's to emulate.
    for kind in b"1234":
        assert commands.handle(b"Z%c,400010,1" % kind) == b""


@pytest.mark.parametrize(
    ("packet", "action"),
    [
        (b"c", Resume(False)),
        (b"s", Resume(True)),
        (b"C0b", Resume(False)),
        (b"S05", Resume(True)),
        (b"vCont;c", Resume(False)),
        (b"vCont;s:1;c", Resume(True)),
        (b"vCont;s:p1.1;c:p1.-1", Resume(True)),
        (b"vCont;s:2;c", Resume(False)),
        (b"vCont;C0b:1;c", Resume(False)),
        (b"vCont;r400000,400010:1;c", Resume(True, 0x400000, 0x400010)),
        (b"D", Detach()),
        (b"D;1", Detach()),
        (b"k", Kill()),
        (b"vKill;1", Kill()),
    ],
)
def test_going_on(commands: Commands, packet: bytes, action: object) -> None:
    assert commands.handle(packet) == action


def test_going_on_somewhere_else(fake: Fake, commands: Commands) -> None:
    assert commands.handle(b"c400020") == Resume(False)
    assert fake.registers.general["rip"] == 0x400020
    assert commands.handle(b"S05;400030") == Resume(True)
    assert fake.registers.general["rip"] == 0x400030


@pytest.mark.parametrize(
    "packet", [b"vCont;", b"vCont;t", b"vCont;cc", b"vCont;C", b"vCont;r1", b"vCont;s:2", b"cz", b"C"]
)
def test_going_on_in_ways_that_there_are_not(commands: Commands, packet: bytes) -> None:
    assert commands.handle(packet) == b"E16"


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (b"vCont?", b"vCont;c;C;s;S;r"),
        (b"vMustReplyEmpty", b""),
        (b"!", b""),
        (b"qAttached", b"1"),
        (b"qAttached:1", b"1"),
        (b"qC", b"QC1"),
        (b"qfThreadInfo", b"m1"),
        (b"qsThreadInfo", b"l"),
        (b"qSymbol::", b"OK"),
        (b"qTStatus", b""),
        (b"Hg0", b"OK"),
        (b"Hc-1", b"OK"),
        (b"Hg7", b"E16"),
        (b"T1", b"OK"),
        (b"T2", b"E16"),
        (b"qXfer:exec-file:read::0,10", b""),
        (b"qXfer:features:read:other.xml:0,10", b"E00"),
        (b"qXfer:features:write:target.xml:0:x", b""),
        (b"qXfer:features:read:target.xml:ffffff,10", b"E00"),
    ],
)
def test_questions(commands: Commands, packet: bytes, answer: bytes) -> None:
    assert commands.handle(packet) == answer


def transferred(commands: Commands, name: bytes, chunk: int) -> bytes:
    document = b""
    while True:
        answer = commands.handle(b"qXfer:%b:%x,%x" % (name, len(document), chunk))
        assert isinstance(answer, bytes)
        document += answer[1:]
        if answer[:1] == b"l":
            return document
        assert answer[:1] == b"m"
        assert len(answer) > 1


@pytest.mark.parametrize("chunk", [100, 0x3FFB, 1 << 20])
def test_documents_in_pieces(commands: Commands, chunk: int) -> None:
    assert transferred(commands, b"features:read:target.xml", chunk) == TARGET_XML
    regions = ET.fromstring(transferred(commands, b"memory-map:read:", chunk)).iter("memory")
    assert [(r.get("type"), r.get("start"), r.get("length")) for r in regions] == [
        ("ram", "0x400000", "0x1000"),
        ("ram", "0x401000", "0x2000"),
    ]


def test_acknowledgments_end_once(commands: Commands) -> None:
    assert commands.handle(b"QStartNoAckMode") == b"OK"
    assert commands.take_ack_change()
    assert not commands.take_ack_change()
    assert commands.handle(b"QNonStop:1") == b""
    assert NUMBERS["rip"] == 16
