"""The registers as gdb counts them, and the target description that tells it so.

Source: "Debugging with GDB", appendix G, "i386 Features"; the x87 and SSE state is an FXSAVE image (Intel SDM volume 1,
section 10.5.1).  The order here is gdb's order of the 64-bit architecture, so that ``g`` is one run of bytes.
"""

from __future__ import annotations

from vmm.record import dataclass

#: Bytes of an FXSAVE image that hold state: x87, then MXCSR and the XMM registers.
FXSAVE_SIZE = 416
_ST, _XMM = 32, 160
_TAGS = 4

#: Bits of RFLAGS that a debugger may change: what ring 3 may, with POPF (SDM volume 1, section 3.4.3).
FLAGS = 0x0025_0DD5 & ~(1 << 16)
_MXCSR_BITS = 0xFFFF


@dataclass(frozen=True, slots=True)
class Register:
    """One register.

    ``source`` says where it lives: "general" and "flags" (by the names of ``struct kvm_regs``), "segment" and "base"
    (by the names of ``struct kvm_sregs``, not to be changed), "fpu" (``size`` bytes at ``offset`` of the FXSAVE image)
    or "tags".
    """

    name: str
    bits: int
    kind: str
    source: str
    offset: int = 0
    size: int = 0


def _core() -> list[Register]:
    general = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16))]
    pointers = ("rbp", "rsp")
    found = [Register(name, 64, "data_ptr" if name in pointers else "int64", "general") for name in general]
    found.append(Register("rip", 64, "code_ptr", "general"))
    found.append(Register("eflags", 32, "i386_eflags", "flags"))
    found += [Register(name, 32, "int32", "segment") for name in ("cs", "ss", "ds", "es", "fs", "gs")]
    found += [Register(f"st{number}", 80, "i387_ext", "fpu", _ST + 16 * number, 10) for number in range(8)]
    control = (("fctrl", 0, 2), ("fstat", 2, 2), ("ftag", _TAGS, 1), ("fiseg", 12, 2), ("fioff", 8, 4))
    for name, offset, size in (*control, ("foseg", 20, 2), ("fooff", 16, 4), ("fop", 6, 2)):
        found.append(Register(name, 32, "int", "tags" if name == "ftag" else "fpu", offset, size))
    return found


def _sse() -> list[Register]:
    found = [Register(f"xmm{number}", 128, "vec128", "fpu", _XMM + 16 * number, 16) for number in range(16)]
    return [*found, Register("mxcsr", 32, "i386_mxcsr", "fpu", 24, 4)]


_FEATURES = (
    ("org.gnu.gdb.i386.core", _core()),
    ("org.gnu.gdb.i386.sse", _sse()),
    ("org.gnu.gdb.i386.segments", [Register(name, 64, "int", "base") for name in ("fs_base", "gs_base")]),
)

REGISTERS: tuple[Register, ...] = tuple(register for _, group in _FEATURES for register in group)
NUMBERS = {register.name: number for number, register in enumerate(REGISTERS)}

#: Of an XMM register: the fields of the union that gdb shows.
_VECTORS = (
    ("v4_float", "ieee_single", 4),
    ("v2_double", "ieee_double", 2),
    ("v16_int8", "int8", 16),
    ("v8_int16", "int16", 8),
    ("v4_int32", "int32", 4),
    ("v2_int64", "int64", 2),
)


#: Names of the bits of RFLAGS and MXCSR (SDM volume 1, sections 3.4.3 and 10.2.3); "." is a bit without.
_FLAGS = (
    ("i386_eflags", "CF . PF . AF . ZF SF TF IF DF OF . . NT . RF VM AC VIF VIP ID"),
    ("i386_mxcsr", "IE DE ZE OE UE PE DAZ IM DM ZM OM UM PM . . FZ"),
)


def _flags(name: str, bits: str) -> list[str]:
    named = [(bit, place) for place, bit in enumerate(bits.split()) if bit != "."]
    fields = [f'<field name="{bit}" start="{place}" end="{place}"/>' for bit, place in named]
    return [f'<flags id="{name}" size="4">', *fields, "</flags>"]


def _description() -> str:
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
    lines += ["<architecture>i386:x86-64</architecture>", "<osabi>none</osabi>"]
    for feature, registers in _FEATURES:
        lines.append(f'<feature name="{feature}">')
        for name, bits in _FLAGS:
            if any(register.kind == name for register in registers):
                lines += _flags(name, bits)
        if feature.endswith("sse"):
            lines += [f'<vector id="{name}" type="{kind}" count="{count}"/>' for name, kind, count in _VECTORS]
            fields = [f'<field name="{name}" type="{name}"/>' for name, _, _ in _VECTORS]
            lines += ['<union id="vec128">', *fields, '<field name="uint128" type="uint128"/>', "</union>"]
        lines += [f'<reg name="{r.name}" bitsize="{r.bits}" type="{r.kind}"/>' for r in registers]
        lines.append("</feature>")
    return "\n".join([*lines, "</target>\n"])


TARGET_XML = _description().encode()


class RegisterFile:
    """Every register at one stop; changes stay here until somebody takes them.

    :param general: by the names of ``struct kvm_regs``, ``rflags`` among them.
    :param selectors: by the names of segment registers.
    :param bases: of ``fs_base`` and ``gs_base``.
    :param fpu: an FXSAVE image, at least FXSAVE_SIZE bytes.
    """

    __slots__ = ("bases", "fpu", "fpu_changed", "general", "selectors")

    def __init__(self, general: dict[str, int], selectors: dict[str, int], bases: dict[str, int], fpu: bytes) -> None:
        self.general = general
        self.selectors = selectors
        self.bases = bases
        self.fpu = bytearray(fpu)
        self.fpu_changed = False

    def read(self, number: int) -> bytes:
        """The bytes of a register, little endian.

        :raises IndexError: there is none of that number.
        """
        register = REGISTERS[number]
        size = register.bits // 8
        source = register.source
        if source == "general":
            value = self.general[register.name]
        elif source == "flags":
            value = self.general["rflags"] & 0xFFFF_FFFF
        elif source == "segment":
            value = self.selectors[register.name]
        elif source == "base":
            value = self.bases[register.name]
        elif source == "tags":
            value = self._tags()
        else:
            return bytes(self.fpu[register.offset : register.offset + register.size]).ljust(size, b"\0")
        return value.to_bytes(size, "little")

    def write(self, number: int, data: bytes) -> bool:
        """Change a register; False when it cannot be changed to this.

        Bits of ``eflags`` that ring 3 may not change stay as they are.

        :raises IndexError: there is none of that number.
        """
        register = REGISTERS[number]
        if len(data) != register.bits // 8:
            return False
        if data == self.read(number):
            return True
        source = register.source
        value = int.from_bytes(data, "little")
        if source == "general":
            self.general[register.name] = value
        elif source == "flags":
            self.general["rflags"] = self.general["rflags"] & ~FLAGS | value & FLAGS
        elif source == "tags":
            # One bit a register: whether it holds something.
            self.fpu[_TAGS] = sum(1 << index for index in range(8) if value >> 2 * index & 3 != 3)
            self.fpu_changed = True
        elif source == "fpu":
            if value >> 8 * register.size or (register.name == "mxcsr" and value & ~_MXCSR_BITS):
                return False
            self.fpu[register.offset : register.offset + register.size] = data[: register.size]
            self.fpu_changed = True
        else:
            return False
        return True

    def all(self) -> bytes:
        """What ``g`` answers."""
        return b"".join(self.read(number) for number in range(len(REGISTERS)))

    def set_all(self, data: bytes) -> bool:
        """What ``G`` does; False when the length is wrong or a register cannot be changed, and then nothing is."""
        pieces = []
        at = 0
        for register in REGISTERS:
            pieces.append(data[at : at + register.bits // 8])
            at += register.bits // 8
        if at != len(data):
            return False
        before = dict(self.general), bytes(self.fpu), self.fpu_changed
        if all(self.write(number, piece) for number, piece in enumerate(pieces)):
            return True
        self.general, fpu, self.fpu_changed = before
        self.fpu[:] = fpu
        return False

    def _tags(self) -> int:
        """The x87 tag word: valid 0, zero 1, special 2, empty 3 for each physical register (SDM volume 1, 8.1.7)."""
        top = self.fpu[3] >> 3 & 7
        word = 0
        for physical in range(8):
            tag = 3
            if self.fpu[_TAGS] >> physical & 1:
                start = _ST + 16 * ((physical - top) & 7)
                mantissa = int.from_bytes(self.fpu[start : start + 8], "little")
                exponent = int.from_bytes(self.fpu[start + 8 : start + 10], "little") & 0x7FFF
                normal = 0 < exponent < 0x7FFF and mantissa >> 63
                tag = 0 if normal else 2 if exponent or mantissa else 1
            word |= tag << 2 * physical
        return word
