"""Web pages: the article, without menus, banners and scripts."""

import re
from collections.abc import Iterator

from knowledge.formats.plain import decode
from knowledge.formats.rows import table as table_block
from knowledge.formats.text import fold
from knowledge.pages import Block, DocumentError, Page, Report

_DROPPED = (
    "script style noscript template head iframe object svg canvas form button select input textarea nav aside footer "
    "audio video map dialog"
).split()
_BOILERPLATE_ROLES = {"navigation", "banner", "contentinfo", "search", "complementary", "dialog", "menu"}
# As whole words of an id or class, so that "header-anchor" or "sidebarless" are not meant.
_BOILERPLATE = re.compile(
    r"(?:^|\s)(?:nav|navbar|navigation|menu|sidebar|breadcrumbs?|footer|site-header|site-footer|cookie\S*|advert\S*|"
    r"share|social|toc|navheader|navfooter|navbox\S*|mw-editsection|mw-jump-link|mw-indicators|noprint|printfooter|"
    r"catlinks|vector-(?:menu|header|toc|page|dropdown|column|sticky)\S*|reflist|mw-references-wrap)"
    r"(?:\s|$)",
    re.IGNORECASE,
)
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([A-Za-z0-9_-]+)""", re.IGNORECASE)
_PARAGRAPHS = set(
    "address article blockquote body caption center dd div dl dt fieldset figcaption figure header hr html li main ol "
    "p pre section summary details tbody ul".split()
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


def read_html(data: bytes, name: str, password: str | None, report: Report) -> list[Page]:
    """One page without a number: headings, paragraphs and tables of the article."""
    import lxml.html

    try:
        root = lxml.html.document_fromstring(_markup(data, name), parser=lxml.html.HTMLParser(huge_tree=False))
    except (lxml.etree.ParserError, lxml.etree.XMLSyntaxError, ValueError) as error:
        raise DocumentError(name, "is not a readable web page; save it anew from a browser") from error
    title = fold(" ".join((root.findtext(".//title") or "").split()))
    _drop_boilerplate(root)
    blocks = list(_blocks(_article(root)))
    if title and not any(block.level == 1 for block in blocks):
        blocks.insert(0, Block(title, 1))
    if all(block.level for block in blocks):
        raise DocumentError(name, "is a web page without text; print it to a PDF in a browser and add that")
    return [Page(None, tuple(blocks))]


def _markup(data: bytes, name: str) -> str:
    """The page as text, in the encoding that it names if that works."""
    named = _CHARSET.search(data[:4096])
    if named:
        encoding = named[1].decode("ascii").lower()
        try:
            text = data.decode("gb18030" if encoding in ("gb2312", "gbk") else encoding)
        except (UnicodeDecodeError, LookupError):
            text = decode(data, name)
    else:
        text = decode(data, name)
    return re.sub(r"^\s*<\?xml[^>]*\?>", "", text.lstrip("\ufeff"))  # lxml refuses text that names an encoding


def _drop_boilerplate(root) -> None:
    for element in list(root.iter()):
        if not isinstance(element.tag, str):  # a comment
            element.drop_tree()
        elif element.getparent() is not None and element.tag not in ("body", "html") and _is_boilerplate(element):
            element.drop_tree()


def _is_boilerplate(element) -> bool:
    if element.tag in _DROPPED or element.get("role") in _BOILERPLATE_ROLES or element.get("aria-hidden") == "true":
        return True
    if "hidden" in element.attrib or "display:none" in element.get("style", "").replace(" ", ""):
        return True
    return bool(_BOILERPLATE.search(f"{element.get('class', '')} {element.get('id', '')}"))


def _article(root):
    """The element that holds the article: the one that says so, where it has most of the text."""
    whole = len(root.text_content())
    for path in (".//main", ".//*[@role='main']", ".//article"):
        found = root.find(path) if "@" not in path else next(iter(root.xpath(path)), None)
        if found is not None and len(found.text_content()) >= 0.5 * whole:
            return found
    return root


def _blocks(root) -> Iterator[Block]:
    lines = _Lines()
    yield from _walk(root, lines)
    yield from lines.flush()


class _Lines:
    """Running text that is being gathered: pieces of the current line, and the lines before it."""

    def __init__(self):
        self._pieces: list[str] = []
        self._lines: list[str] = []

    def add(self, text: str | None) -> None:
        if text:
            self._pieces.append(text)

    def end_line(self) -> None:
        line = " ".join(fold("".join(self._pieces)).split())
        self._pieces = []
        if line:
            self._lines.append(line)

    def add_lines(self, text: str) -> None:
        self.end_line()
        self._lines += [line.rstrip() for line in fold(text).split("\n")]

    def flush(self) -> Iterator[Block]:
        self.end_line()
        text = "\n".join(self._lines).strip()
        self._lines = []
        if text:
            yield Block(text)


def _walk(element, lines: _Lines) -> Iterator[Block]:
    """The blocks inside an element; running text is left in `lines` for the next block or the end."""
    if element.tag in _HEADINGS:
        text = " ".join(fold(element.text_content()).split())
        if text:
            yield from lines.flush()
            yield Block(text, _HEADINGS[element.tag])
        return
    if element.tag == "table" and _is_data(element):
        yield from lines.flush()
        block = table_block(_rows(element))
        if block is not None:
            yield block
        return
    if element.tag == "pre":
        lines.add_lines(element.text_content())
        return
    apart = element.tag in _PARAGRAPHS or element.tag in ("br", "tr", "td", "th", "table")
    if apart:
        lines.end_line()
    lines.add(element.text)
    for child in element:
        yield from _walk(child, lines)
        lines.add(child.tail)
    if apart:
        lines.end_line()


def _rows(table) -> list[list[str]]:
    return [
        [fold(cell.text_content()) for cell in row if cell.tag in ("td", "th")]
        for row in table.iter("tr")
        if next(row.iterancestors("table"), None) is table
    ]


def _is_data(table) -> bool:
    """Whether it is a table of data: of several columns, without other tables or headings inside, as layouts have."""
    if any(element.tag == "table" or element.tag in _HEADINGS for element in table.iterdescendants()):
        return False
    return sum(len(row) > 1 for row in _rows(table)) >= 2
