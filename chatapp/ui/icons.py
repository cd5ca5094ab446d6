"""The app's icon: the four lines of a quatrain, whose rhymes have two colours. Drawn here, at any size."""

from __future__ import annotations

import functools
import io

from PIL import Image, ImageDraw

UNITS = 64  #: the side of the drawing
GROUND, RADIUS = "#0f766e", 14
#: left, top, right, bottom and colour of each line, all within the circle that no system cuts away.
LINES = (
    (14, 16, 50, 21, "#ffffff"),
    (14, 25, 40, 30, "#5eead4"),
    (14, 34, 50, 39, "#ffffff"),
    (14, 43, 40, 48, "#5eead4"),
)
FINER = 4  #: times as large is it drawn as it is to be


def svg() -> str:
    bars = "".join(
        f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" rx="2.5" fill="{colour}"/>'
        for left, top, right, bottom, colour in LINES
    )
    ground = f'<rect width="{UNITS}" height="{UNITS}" rx="{RADIUS}" fill="{GROUND}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {UNITS} {UNITS}">{ground}{bars}</svg>'


@functools.cache
def png(size: int, rounded: bool = True) -> bytes:
    """A square of so many pixels; one that systems cut into their own shape has no round corners."""
    scale = FINER * size / UNITS
    image = Image.new("RGBA", (FINER * size, FINER * size))
    draw = ImageDraw.Draw(image)
    side = FINER * size - 1
    draw.rounded_rectangle((0, 0, side, side), RADIUS * scale if rounded else 0, fill=GROUND)
    for left, top, right, bottom, colour in LINES:
        box = (left * scale, top * scale, right * scale, bottom * scale)
        draw.rounded_rectangle(box, 2.5 * scale, fill=colour)
    written = io.BytesIO()
    image.resize((size, size), Image.Resampling.LANCZOS).save(written, "PNG")
    return written.getvalue()
