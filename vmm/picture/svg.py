"""A drawing as SVG 1.1: text, so that no library is needed."""

from __future__ import annotations

from vmm.picture.drawing import BACKGROUND, INK, Rect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.picture.drawing import Colour, Drawing, Label

_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def _hexadecimal(colour: Colour) -> str:
    return "#" + bytes(colour).hex()


def _rect(rect: Rect) -> str:
    place = f'x="{rect.x}" y="{rect.y}" width="{rect.width}" height="{rect.height}"'
    return f'<rect {place} fill="{_hexadecimal(rect.colour)}"/>'


def _label(label: Label) -> str:
    # What XML cannot hold is escaped already: names were made printable.
    text = "".join(_ESCAPES.get(character, character) for character in label.text)
    anchor = ' text-anchor="end"' if label.right else ""
    return f'<text x="{label.x}" y="{label.y}" font-size="{label.size}"{anchor}>{text}</text>'


def encode(drawing: Drawing) -> bytes:
    """The file's bytes."""
    width, height = drawing.width, drawing.height
    frame = f'width="{width}" height="{height}"'
    style = f'font-family="sans-serif" fill="{_hexadecimal(INK)}" shape-rendering="crispEdges"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" {frame} viewBox="0 0 {width} {height}" {style}>',
        _rect(Rect(0, 0, width, height, BACKGROUND)),
        *(_rect(shape) if isinstance(shape, Rect) else _label(shape) for shape in drawing.shapes),
        "</svg>",
    ]
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
