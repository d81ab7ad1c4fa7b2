"""Letters of many scripts, rendered from fonts and split into train and test **by font family**.

Two faces of one family (bold, italic, condensed) draw nearly the same letter, so a split by image would leak. The split is
a hash of the family name, the same for every script: a held-out family is held out from pretraining too.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

SIZE, BOX = 28, 22  # canvas, and the longest side of the ink inside it
TEST_SHARE = 0.3
PER_FAMILY = 4  # pictures of one letter kept per family: a family with 40 weights should not outvote ten designs


def _span(first: int, last: int, *categories: str) -> list[str]:
    """Assigned letters between two code points (both included), of the given general categories."""
    letters = map(chr, range(first, last + 1))
    return [c for c in letters if unicodedata.category(c) in (categories or ("Lo", "Ll", "Lu"))]


def _arabic_forms() -> list[str]:
    """Each letter with its isolated, final, initial and medial shapes: one class, up to five code points."""
    forms: dict[str, str] = {letter: letter for letter in "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"}
    for code in range(0xFE80, 0xFEFD):
        shape = unicodedata.decomposition(chr(code)).split()[1:]
        if len(shape) == 1 and (letter := chr(int(shape[0], 16))) in forms:
            forms[letter] += chr(code)
    return list(forms.values())


# A class is a string: its first character names it, all its characters are drawn.
# Lower case only where upper case would repeat Latin shapes; syllabaries thinned to their base column.
SCRIPTS: dict[str, list[str]] = {
    "digits": list("0123456789"),
    "greek": [c for c in _span(0x3B1, 0x3C9) if c != "ς"],
    "cyrillic": _span(0x430, 0x44F),
    "arabic": _arabic_forms(),
    "georgian": _span(0x10D0, 0x10F0),
    "hebrew": [c for c in _span(0x5D0, 0x5EA) if c not in "ךםןףץ"],
    "thai": _span(0xE01, 0xE2E),
    "latin-upper": [chr(65 + i) for i in range(26)],
    "latin-lower": [chr(97 + i) for i in range(26)],
    "armenian-upper": _span(0x531, 0x556),
    "armenian-lower": _span(0x561, 0x586),
    "runic": _span(0x16A0, 0x16EA),
    "hiragana": [c for c in _span(0x3042, 0x3093) if "SMALL" not in unicodedata.name(c)],
    "katakana": [c for c in _span(0x30A2, 0x30F3) if "SMALL" not in unicodedata.name(c)],
    "devanagari": _span(0x904, 0x939),
    "bengali": _span(0x985, 0x9B9),
    "gurmukhi": _span(0xA05, 0xA39),
    "gujarati": _span(0xA85, 0xAB9),
    "oriya": _span(0xB05, 0xB39),
    "tamil": _span(0xB83, 0xBB9),
    "telugu": _span(0xC05, 0xC39),
    "kannada": _span(0xC85, 0xCB9),
    "malayalam": _span(0xD05, 0xD39),
    "sinhala": _span(0xD85, 0xDC6),
    "lao": _span(0xE81, 0xEAE),
    "tibetan": _span(0xF40, 0xF6A),
    "myanmar": _span(0x1000, 0x1021),
    "khmer": _span(0x1780, 0x17B3),
    "ethiopic": [c for c in _span(0x1200, 0x1350) if (ord(c) - 0x1200) % 8 in (0, 3)],
    "cherokee": _span(0x13A0, 0x13F4),
    "canadian": [c for c in _span(0x1403, 0x15C0) if unicodedata.name(c).split()[-1][-1] in "EA"],
    "coptic": [c for c in _span(0x2C80, 0x2CB1) if c.islower()],
    "glagolitic": _span(0x2C00, 0x2C2E),
    "tifinagh": _span(0x2D30, 0x2D65),
    "gothic": _span(0x10330, 0x10340),
    "deseret": _span(0x10400, 0x10427),
    "syriac": _span(0x710, 0x72C),
    "thaana": _span(0x780, 0x7A5),
}

_STYLE = re.compile(
    r"\b(thin|hairline|extra|ultra|semi|demi|light|regular|book|medium|bold|black|heavy|italic|oblique|roman|upright|"
    r"condensed|extracondensed|semicondensed|narrow|wide|expanded|display|caption|text|compact|ui|otf|ttf|\d+)\b"
)


def family_of(name: str) -> str:
    """A coarse family: style words dropped, then the first two words ('Noto Sans Tamil Light' is 'noto sans')."""
    words = _STYLE.sub(" ", re.sub(r"[-_]", " ", name.lower())).split()
    return " ".join(words[:2]) or name.lower()


def is_test(family: str) -> bool:
    return int(hashlib.sha256(family.encode()).hexdigest()[:8], 16) / 2**32 < TEST_SHARE


def draw(font: ImageFont.FreeTypeFont, letter: str) -> np.ndarray | None:
    """(28, 28) uint8, white on black, the ink scaled to a box of 22 and centred; None when there is no ink."""
    left, top, right, bottom = font.getbbox(letter)
    wide, high = right - left, bottom - top
    if not (2 < max(wide, high) < 400) or min(wide, high) < 1:
        return None
    ink = Image.new("L", (wide, high))
    ImageDraw.Draw(ink).text((-left, -top), letter, fill=255, font=font)
    if (box := ink.getbbox()) is None:
        return None
    ink = ink.crop(box)
    scale = BOX / max(ink.size)
    ink = ink.resize([max(1, round(side * scale)) for side in ink.size], Image.Resampling.BOX)
    canvas = Image.new("L", (SIZE, SIZE))
    canvas.paste(ink, ((SIZE - ink.width) // 2, (SIZE - ink.height) // 2))
    return np.asarray(canvas)


def faces(folder: Path, packages: Collection[str]):
    """Yield (path, family, code points) for every outline font of the packages that opens, in a fixed order."""
    fonts = (p for package in packages for p in (folder / package).rglob("*") if p.suffix.lower() in {".ttf", ".otf"})
    for path in sorted(p for p in fonts if p.is_file()):
        try:
            with TTFont(path, lazy=True) as font:
                codes = set(font.getBestCmap() or ())
            yield path, family_of(ImageFont.truetype(path, 16).getname()[0] or path.stem), codes
        except Exception:  # broken or exotic fonts exist in every distribution; they are not worth a word each
            continue


def name_of(letter: str) -> str:
    """A label: 'ARABIC LETTER BEH' is 'beh', 'CYRILLIC SMALL LETTER SHORT I' is 'short-i'."""
    return letter[0] if letter[0].isdecimal() else unicodedata.name(letter[0]).split("LETTER ")[-1].replace(" ", "-").lower()


def render(folder: Path, packages: Collection[str], scripts: Iterable[str] = SCRIPTS) -> dict[str, dict[str, np.ndarray]]:
    """Render every letter of every face of the unpacked packages once.

    Returns per script: images (n, 28, 28) uint8, labels (n,) int64, test (n,) bool, family (n,) str, package (n,) str.
    Equal pictures with one label are kept once; a picture that also occurs in a training family is no test picture.
    """
    found: dict[str, list[tuple]] = {script: [] for script in scripts}
    for path, family, codes in faces(folder, packages):
        package, font, missing = path.relative_to(folder).parts[0], None, None
        for script in found:
            letters = SCRIPTS[script]
            if sum(ord(letter[0]) in codes for letter in letters) < 0.8 * len(letters):
                continue  # a face with a few stray letters is more often symbols than script
            if font is None:
                font = ImageFont.truetype(path, 56, layout_engine=ImageFont.Layout.BASIC)
                missing = draw(font, "\uffff")
            for label, shape in ((label, shape) for label, letter in enumerate(letters) for shape in letter):
                image = draw(font, shape) if ord(shape) in codes else None
                if image is not None and (missing is None or (image != missing).any()):
                    found[script].append((image, label, shape, family, package))
    return {script: _pack(rows) for script, rows in found.items() if rows}


def _pack(rows: list[tuple]) -> dict[str, np.ndarray]:
    rows.sort(key=lambda row: is_test(row[3]))  # training families first: they win where a picture occurs in both
    seen, kept = set(), Counter()
    unique = []
    for image, label, shape, family, package in rows:
        if (key := (image.tobytes(), label)) not in seen and kept[family, shape] < PER_FAMILY:
            seen.add(key)
            kept[family, shape] += 1
            unique.append((image, label, family, package))
    image, label, family, package = zip(*unique, strict=True)
    test = np.array([is_test(f) for f in family])
    columns = {"labels": label, "family": family, "package": package}
    return {"images": np.stack(image), "test": test, **{key: np.array(column) for key, column in columns.items()}}
