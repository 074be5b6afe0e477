"""A drawing as PNG, by Pillow (the extra ``picture``)."""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from vmm.picture.drawing import BACKGROUND, INK, Rect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.picture.drawing import Drawing


def encode(drawing: Drawing) -> bytes:
    """The file's bytes."""
    image = Image.new("RGB", (drawing.width, drawing.height), BACKGROUND)
    pen = ImageDraw.Draw(image)
    for shape in drawing.shapes:
        if isinstance(shape, Rect):
            # Pillow's second corner is inside.
            corner = (shape.x + shape.width - 1, shape.y + shape.height - 1)
            pen.rectangle(((shape.x, shape.y), corner), fill=shape.colour)
            continue
        # Its own font has no more characters for certain.
        text = shape.text.encode("ascii", "backslashreplace").decode("ascii")
        font = ImageFont.load_default(shape.size)
        left, _, right, bottom = pen.textbbox((0, 0), text, font=font)
        x = shape.x - (right - left if shape.right else 0)
        pen.text((x, shape.y - bottom), text, fill=INK, font=font)
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
