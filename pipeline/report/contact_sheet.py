"""The contact sheet: all examples as one PNG, with titles and ids."""

import io
import math
import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from igpt_core.images.raster_formats import open_raster
from pipeline.report.pictures import Example, Picture
from pipeline.report.text import printable, shortened

_CELL = 128  # about; pictures grow by a whole factor
_GAP, _COLUMN_GAP, _MARGIN = 8, 28, 28
_HEADER, _TITLES, _LABEL, _CAPTION = 60, 24, 24, 18
_MIN_WIDTH = 480
_MARK = 3
_ASPECT = 1.4

_PAPER, _INK, _QUIET, _ACCENT = "#ffffff", "#16181d", "#667085", "#3b6cf6"
_MISSING, _HATCH = "#eceef2", "#d3d7de"


def scale_of(side: int) -> int:
    """Finds the whole factor by which pictures of `side` pixels are enlarged."""
    return max(1, round(_CELL / side))


def draw_contact_sheet(examples: Sequence[Example], *, title: str, note: str) -> bytes:
    """Draws all examples as one PNG: pictures enlarged by a whole factor, nearest neighbor.

    `title` and `note` are the two lines above them. Examples run from left to right, in as many
    columns as make the sheet somewhat wider than high. Missing rows and transparent pixels of a
    picture are hatched, a bar at its left marks rows with generated pixels.
    """
    cells = [picture.title for picture in examples[0].pictures] if examples else []
    cell = examples[0].pictures[0].side * scale_of(examples[0].pictures[0].side) if examples else 0
    example_width = len(cells) * (cell + _GAP) - _GAP
    label = _LABEL + (_CAPTION if any(example.caption for example in examples) else 0)
    example_height = label + cell + _GAP
    across = _across(len(examples), example_width + _COLUMN_GAP, example_height)
    down = math.ceil(len(examples) / across)
    top = _MARGIN + _HEADER + (_TITLES if len(cells) > 1 else 0)
    width = max(across * (example_width + _COLUMN_GAP) - _COLUMN_GAP + 2 * _MARGIN, _MIN_WIDTH)
    sheet = Image.new("RGB", (width, top + down * example_height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_MARGIN, _MARGIN - 4), title, 20, _INK, width - 2 * _MARGIN)
    _text(draw, (_MARGIN, _MARGIN + 24), note, 13, _QUIET, width - 2 * _MARGIN)
    for i, example in enumerate(examples):
        x = _MARGIN + i % across * (example_width + _COLUMN_GAP)
        y = top + i // across * example_height
        _text(draw, (x, y), printable(example.id), 13, _INK, example_width)
        _text(draw, (x, y + _CAPTION), printable(example.caption), 13, _ACCENT, example_width)
        for j, picture in enumerate(example.pictures):
            left = x + j * (cell + _GAP)
            if i < across and len(cells) > 1:
                _text(draw, (left, top - _TITLES), picture.title, 12, _QUIET, cell)
            _place(sheet, picture, left, y + label - 4)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _across(n: int, width: int, height: int) -> int:
    """Finds the number of columns with which the shape of the whole is nearest to _ASPECT."""

    def misfit(across: int) -> float:
        shape = across * width / (math.ceil(n / across) * height)
        return abs(math.log(shape / _ASPECT))

    return min(range(1, n + 1), key=misfit, default=1)


def _place(sheet: Image.Image, picture: Picture, x: int, y: int) -> None:
    scale = scale_of(picture.side)
    size = picture.side * scale
    sheet.paste(_hatched(size), (x, y))
    if picture.png is not None:
        with open_raster(picture.png) as image:
            pixels = image.convert("RGBA")
        large = (pixels.width * scale, pixels.height * scale)
        pixels = pixels.resize(large, Image.Resampling.NEAREST)
        sheet.paste(pixels, (x, y), pixels)
    if picture.generated_from is not None:
        bar = (x - _MARK - 1, y + picture.generated_from * scale, x - 2, y + size - 1)
        ImageDraw.Draw(sheet).rectangle(bar, fill=_ACCENT)


def _hatched(size: int) -> Image.Image:
    area = Image.new("RGB", (size, size), _MISSING)
    draw = ImageDraw.Draw(area)
    for x in range(0, 2 * size, 8):
        draw.line((x, 0, x - size, size), fill=_HATCH, width=2)
    return area


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, ink: str, width: int
) -> None:
    """Writes one line of text, shortened to the width.

    The built-in font lacks accents: they are left out; letters that it does not know at all become
    boxes.
    """
    font = ImageFont.load_default(size=size)
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    length = min(len(plain), width)  # no letter is narrower than a pixel
    while length > 1 and font.getlength(shortened(plain, length)) > width:
        length -= 1
    draw.text(at, shortened(plain, length), font=font, fill=ink)
