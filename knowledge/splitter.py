"""Pages to chunks: about 200 tokens each, cut at the ends of Chinese and English sentences."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from knowledge.documents import Page

CHUNK_TOKENS = 200
OVERLAP_TOKENS = 32  # about a sentence, so that one cut off from its neighbours is found with either

# Tried in this order, the next one only on what is still too long. Sentences and paragraphs come together: with
# paragraphs first, a heading before a long paragraph would become a chunk by itself.
_BOUNDARIES = [
    r"\n{2,}|[。！？；…]+[”’」』）》]*\s*|[.!?]+[\"'”’)\]]*\s+",
    r"\n",
    r"[，、：]|[,;:]\s+",
    r"\s+",
    "",
]
_WIDE = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")


@dataclass(frozen=True)
class Chunk:
    """A passage of one page; `position` counts the document's chunks from 0."""

    text: str
    page: int | None
    position: int


def estimate_tokens(text: str) -> int:
    """Tokens that a multilingual tokenizer makes of `text`, roughly: one a CJK character, one for four others."""
    wide = len(_WIDE.findall(text))
    return wide + (len(text) - wide + 3) // 4


def split(pages: Iterable[Page], length: Callable[[str], int] = estimate_tokens) -> list[Chunk]:
    """Chunks in reading order, none spanning two pages, none longer than CHUNK_TOKENS as `length` counts tokens."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(
        _BOUNDARIES,
        is_separator_regex=True,
        keep_separator="end",
        chunk_size=CHUNK_TOKENS,
        chunk_overlap=OVERLAP_TOKENS,
        length_function=length,
    )
    texts = [(text, page.number) for page in pages for text in splitter.split_text(page.text)]
    # A row of bullets or rules says nothing to a search.
    told = [(text, number) for text, number in texts if any(map(str.isalnum, text))]
    return [Chunk(text, number, position) for position, (text, number) in enumerate(told)]
