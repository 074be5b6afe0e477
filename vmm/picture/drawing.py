"""From cells to shapes: rows of cells with the offsets beside them, a title, a legend.  Lengths are pixels."""

from __future__ import annotations

from vmm.operations.sizetext import human_size
from vmm.operations.text import printable
from vmm.picture.bins import ABSENT, KINDS, STORED, Bins
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.operations.map import MapReport

    Colour = tuple[int, int, int]

#: What the legend calls each kind, and its colour: stored data dark or bright, what holds nothing pale.
NAMES = (
    *("data", "compressed data", "data of the backing file", "data 2 files down", "data 3 or more files down"),
    *("preallocated, reads as zero", "zero", "unallocated"),
)
COLOURS: tuple[Colour, ...] = (
    *((31, 95, 165), (214, 110, 30), (46, 139, 87), (140, 86, 160), (120, 80, 60)),
    *((250, 215, 120), (190, 215, 235), (232, 232, 232)),
)
BACKGROUND: Colour = (255, 255, 255)
INK: Colour = (30, 30, 30)

COLUMNS, CELL = 128, 6
FEW_ROWS, LABEL_SPACE = 32, 12
LEFT, TOP, RIGHT, BOTTOM = 90, 56, 20, 14
LINE, TEXT = 18, 12
#: A cell with a single byte of data is tinted by this much, so that no data are overlooked.
LEAST_TINT = 0.35
#: Characters of a file's name that are shown: its end.
NAME_LENGTH = 80


@dataclass(frozen=True, slots=True)
class Rect:
    """A filled rectangle."""

    x: int
    y: int
    width: int
    height: int
    colour: Colour


@dataclass(frozen=True, slots=True)
class Label:
    """A line of text; ``y`` is its base line, ``x`` its left end, or its right end."""

    x: int
    y: int
    text: str
    size: int = TEXT
    right: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """Everything that a file of the picture shows, in the order of painting."""

    width: int
    height: int
    shapes: tuple[Rect | Label, ...]


def _mixed(under: Colour, over: Colour, weight: float) -> Colour:
    red, green, blue = (round(u + (o - u) * weight) for u, o in zip(under, over, strict=True))
    return red, green, blue


def colour_of(parts: tuple[int, ...]) -> Colour:
    """The colour of a cell from its bytes of each kind: the most frequent kind of data over what holds none."""
    rest = [kind for kind in range(KINDS) if kind not in STORED]
    under = COLOURS[max(rest, key=lambda kind: parts[kind])] if any(parts[kind] for kind in rest) else BACKGROUND
    stored = sum(parts[kind] for kind in STORED)
    if not stored:
        return under
    over = COLOURS[max(STORED, key=lambda kind: parts[kind])]
    return _mixed(under, over, LEAST_TINT + (1 - LEAST_TINT) * stored / sum(parts))


def _cells(bins: Bins, shapes: list[Rect | Label]) -> int:
    """Draw the rows; answers where they end."""
    count = bins.count
    rows = -(-count // COLUMNS)
    # Few rows are higher, so that a small disk is no thin line.
    height = CELL if rows > FEW_ROWS else 2 * CELL
    every = max(LABEL_SPACE // height, rows // 16)
    for row in range(rows):
        y = TOP + row * height
        run_start, run_colour = 0, BACKGROUND
        cells = range(row * COLUMNS, min((row + 1) * COLUMNS, count))
        colours = [colour_of(tuple(bins.bytes[kind][cell] for kind in range(KINDS))) for cell in cells]
        for column, colour in enumerate([*colours, None]):
            if column and colour == run_colour:
                continue
            if column:
                shapes.append(Rect(LEFT + run_start * CELL, y, (column - run_start) * CELL, height, run_colour))
            run_start, run_colour = column, colour or BACKGROUND
        if row % every == 0:
            offset = human_size(bins.start + row * COLUMNS * bins.size)
            shapes.append(Label(LEFT - 8, y + height // 2 + 4, offset, 10, True))
    return TOP + rows * height


def summary(bins: Bins) -> list[str]:
    """A line for each kind that there is: its bytes, and how much of what was mapped that is."""
    return [
        f"{NAMES[kind]}: {human_size(total)} ({total * 100 / bins.length:.2f}%)"
        for kind in range(KINDS)
        if (total := bins.total(kind))
    ]


def draw(bins: Bins, report: MapReport) -> Drawing:
    """The picture of a map."""
    name = printable(report.filename)
    name = name if len(name) <= NAME_LENGTH else "..." + name[-NAME_LENGTH:]
    sizes = f"virtual size {human_size(report.virtual_size)}, file {human_size(report.file_length)}"
    shapes: list[Rect | Label] = [
        Label(LEFT, 22, name, 15),
        Label(LEFT, 42, f"{printable(report.format)}, {sizes}, on disk {human_size(report.actual_size)}"),
    ]
    y = _cells(bins, shapes) + LINE
    shapes.append(Label(LEFT, y + 10, f"a cell is {human_size(bins.size)}, a row {human_size(COLUMNS * bins.size)}"))
    y += LINE
    kinds = [kind for kind in range(KINDS) if bins.total(kind)]
    for kind, line in zip(kinds, summary(bins), strict=True):
        shapes += [Rect(LEFT, y, 12, 12, COLOURS[kind]), Label(LEFT + 20, y + 10, line)]
        y += LINE
    if not bins.length:
        shapes.append(Label(LEFT, y + 10, "nothing to map"))
        y += LINE
    return Drawing(LEFT + COLUMNS * CELL + RIGHT, y + BOTTOM, tuple(shapes))


assert len(NAMES) == len(COLOURS) == KINDS
assert ABSENT == KINDS - 1
