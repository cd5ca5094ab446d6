"""Text out of pictures of pages, through RapidOCR where it is installed (requirements-ocr.txt)."""

import importlib.util
from collections.abc import Callable

from knowledge.formats.layout import Line

Recognise = Callable[..., list[Line]]
"""(picture as uint8 [height, width, 3] in the order blue, green, red; its dots a point) -> lines in reading order."""


def installed() -> bool:
    return all(importlib.util.find_spec(module) for module in ("rapidocr", "onnxruntime"))


def missing() -> str | None:
    """What to say of a file that has only pictures, if nothing here can read them."""
    if installed():
        return None
    return (
        "has no text that can be read, only images such as scanned pages; run `pip install -r requirements-ocr.txt` "
        "for text recognition (OCR) and add it again"
    )


def recogniser() -> Recognise | None:
    """What reads pictures, loaded, or None where it is not installed."""
    if not installed():
        return None
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "error"})

    def recognise(image, scale: float) -> list[Line]:
        result = engine(image)
        if result.boxes is None:
            return []
        height = image.shape[0]
        found = []
        for box, text in zip(result.boxes, result.txts, strict=True):
            left, right = float(box[:, 0].min()) / scale, float(box[:, 0].max()) / scale
            top, bottom = float(box[:, 1].min()), float(box[:, 1].max())
            # The size of a font can't be told from a box: 0 is none.
            found.append(Line(text, left, (height - bottom) / scale, right, (height - top) / scale, 0.0, top / height))
        return _joined(sorted(found, key=lambda line: -line.top))

    return recognise


def _joined(found: list[Line]) -> list[Line]:
    """Boxes on one row as one line, from left to right."""
    rows: list[list[Line]] = []
    for line in found:
        middle = (line.top + line.bottom) / 2
        if rows and rows[-1][0].bottom < middle < rows[-1][0].top:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [_row(sorted(row, key=lambda line: line.left)) for row in rows]


def _row(parts: list[Line]) -> Line:
    first = parts[0]
    return Line(
        " ".join(part.text for part in parts),
        first.left,
        min(part.bottom for part in parts),
        max(part.right for part in parts),
        max(part.top for part in parts),
        first.size,
        first.place,
        parts=tuple(parts),
    )
