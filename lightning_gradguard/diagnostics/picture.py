"""The heatmap as a picture: PNG without any imaging library, labels where Pillow is installed.

Pillow comes with torchvision; without it the picture has no labels and rows must be counted.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.heatmap import Pixels, colours
from lightning_gradguard.diagnostics.timeline import Timeline
from lightning_gradguard.records import FloatArray
from lightning_gradguard_tensorboard.colours import legend

try:
    from PIL import Image, ImageDraw, ImageFont
except ImportError:  # pragma: no cover
    Image = None  # type: ignore[assignment]

ROW = 14
TOP = 40
BOTTOM = 22
LABEL = 38
MAX_ROWS = 200
_INK = (40, 40, 40)


def encode_png(pixels: Pixels) -> bytes:
    """Return an image of shape ``(height, width, 3)`` as PNG."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def fold(names: tuple[str, ...], peaks: FloatArray, nonfinite: FloatArray) -> tuple[list[str], FloatArray, FloatArray]:
    """Fold neighbouring layers, keeping the largest, until at most :data:`MAX_ROWS` rows are left to label."""
    size = -(-len(names) // MAX_ROWS)
    if size <= 1:
        return list(names), peaks, nonfinite
    starts = np.arange(0, len(names), size)
    ends = [min(start + size, len(names)) for start in starts.tolist()]
    labels = [f"{names[start]} (+{end - start - 1})" for start, end in zip(starts.tolist(), ends, strict=True)]
    return labels, np.fmax.reduceat(peaks, starts), np.add.reduceat(np.nan_to_num(nonfinite), starts)


def draw(timeline: Timeline) -> Pixels:
    """Return the labelled heatmap on white, shape ``(height, width, 3)``.

    Layers in forward order, time to the right.
    """
    labels, peaks, nonfinite = fold(timeline.layers, *timeline.grid())
    cells = colours(peaks, nonfinite)
    width = max(2, min(24, 960 // max(cells.shape[1], 1)))
    left = 20 + 6 * min(LABEL, max(map(len, labels), default=0))
    body = cells.repeat(ROW, axis=0).repeat(width, axis=1)
    body[ROW - 1 :: ROW] = np.minimum(body[ROW - 1 :: ROW], 235)
    canvas = np.full((TOP + body.shape[0] + BOTTOM, left + max(body.shape[1], 540) + 16, 3), 255, dtype=np.uint8)
    canvas[TOP : TOP + body.shape[0], left : left + body.shape[1]] = body
    return canvas if Image is None else _label(canvas, labels, timeline, left, width)


def shorten(name: str, length: int) -> str:
    """Return a name of at most ``length`` characters; its middle goes first, since ends tell layers apart."""
    name = wording.clean(name)
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[head + 1 - length :]}"


def _label(canvas: Pixels, labels: list[str], timeline: Timeline, origin: int, width: int) -> Pixels:
    image = Image.fromarray(canvas)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=11)
    for row, label in enumerate(labels):
        pen.text((origin - 6, TOP + row * ROW + ROW // 2), shorten(label, LABEL), fill=_INK, font=font, anchor="rm")
    columns, bottom = timeline.columns, TOP + len(labels) * ROW
    last_end = 0.0
    for index in range(len(columns)):
        text, left = f"{columns[index].first_step:,}", origin + index * width
        if left >= last_end:
            pen.line([(left, bottom), (left, bottom + 3)], fill=_INK)
            pen.text((left, bottom + 4), text, fill=_INK, font=font)
            last_end = left + max(80.0, pen.textlength(text, font=font) + 24)
    _legend(pen, font, origin)
    return np.array(image)


def _legend(pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, origin: int) -> None:
    pen.text((origin, 4), "gradient norm of each layer, against its own running median", fill=_INK, font=font)
    left = float(origin)
    for text, colour in legend():
        pen.rectangle([left, 22, left + 10, 32], fill=colour, outline=(170, 170, 170))
        pen.text((left + 14, 21), text, fill=_INK, font=font)
        left += 26 + pen.textlength(text, font=font)
