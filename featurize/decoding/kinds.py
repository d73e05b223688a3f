"""What a file is that is no image, or an image that Firn does not decode: its first bytes say it, not its name."""

import re

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "a PDF document"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document, or a Thumbs.db"),
    (b"8BPS", "a Photoshop document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"SIMPLE  =", "a FITS image"),
    (b"FUJIFILMCCD-RAW", "a raw camera image (Fujifilm)"),
    (b"IIU\0", "a raw camera image (Panasonic)"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
)
_BRANDS = {
    b"heic": "a HEIC photo",
    b"heix": "a HEIC photo",
    b"hevc": "a HEIC sequence",
    b"mif1": "a HEIF image",
    b"msf1": "a HEIF sequence",
    b"crx ": "a raw camera image (Canon)",
    b"qt  ": "a QuickTime video",
}
_ZIP_PARTS = {b"word/": "a Word document", b"xl/": "an Excel workbook", b"ppt/": "a PowerPoint presentation"}
_MARKUP = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*|<!doctype\s+svg[^>]*>\s*)*<(svg)\b", re.IGNORECASE | re.DOTALL
)
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_LOOKED_AT = 4096


def name_kind(content: bytes) -> str | None:
    """What a file is, with its article, as "a PDF document"; None where its first bytes do not say."""
    head = content[:_LOOKED_AT].removeprefix(b"\xef\xbb\xbf")
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video or another file of the MP4 family")
    if head.startswith(b"PK\x03\x04"):
        return next((name for part, name in _ZIP_PARTS.items() if part in head), "a ZIP archive")
    if _MARKUP.match(head):
        return "an SVG drawing"
    if _HTML.match(head):
        return "an HTML page"
    if head[:1] in (b"{", b"[", b"<") and _is_text(head):
        return "a text file"
    return "a text file" if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    """Whether it is text in UTF-8, perhaps cut off in a character."""
    if b"\0" in head or not head.strip():
        return False
    try:
        head[: _LOOKED_AT - 4].decode()
    except UnicodeDecodeError:
        return False
    return not any(byte < 9 or 13 < byte < 32 for byte in head)
