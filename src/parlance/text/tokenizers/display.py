"""Tokens for the eye: every space, control character and stray byte visible; as a piece of HTML, or a whole page.

Nothing of a token reaches the page unescaped, and what could steer a terminal or turn the direction of writing is
written out. The page needs no other file and no network.

    tokens_page([(i, tokenizer.token_bytes(i)) for i in tokenizer.encode(text)], "Tokens")
"""

import html
import unicodedata
from collections.abc import Sequence

_MARKS = {" ": "·", "\n": "↵", "\t": "→", "\r": "␍"}
_WRITTEN_OUT = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"})
"""Unicode categories of characters that are invisible, or that change how others are shown."""

COLOURS = 6
"""Backgrounds that take turns."""

_STYLE = """
.parlance-tokens { font: 15px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.parlance-tokens span { border-radius: 3px; padding: 1px 0; color: #1b1b1f; unicode-bidi: isolate; cursor: default; }
.parlance-tokens span:hover { outline: 2px solid #555; }
.parlance-tokens .t0 { background: #cfe2ff; } .parlance-tokens .t1 { background: #ffe3b3; }
.parlance-tokens .t2 { background: #c9f0d2; } .parlance-tokens .t3 { background: #ffd0d6; }
.parlance-tokens .t4 { background: #e2d6ff; } .parlance-tokens .t5 { background: #d3f2f2; }
"""


def visible(data: bytes) -> str:
    """The characters of `data` with marks for white space; bytes that are no UTF-8 and characters that cannot be seen
    are written as in Python."""
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(
        _MARKS.get(c) or (c.encode("unicode_escape").decode() if unicodedata.category(c) in _WRITTEN_OUT else c)
        for c in text
    )


def visible_lines(data: bytes) -> str:
    """`visible`, and a new line behind every newline's mark."""
    return visible(data).replace("↵", "↵\n") if b"\n" in data else visible(data)


def tokens_html(tokens: Sequence[tuple[int, bytes]]) -> str:
    """A `<div>` with its style in which every (id, bytes) has a background; id and bytes appear under the pointer."""
    spans = []
    for place, (token, data) in enumerate(tokens):
        hint, shown = html.escape(_hint(token, data)), html.escape(visible_lines(data))
        spans.append(f'<span class="t{place % COLOURS}" title="{hint}">{shown}</span>')
    return f'<style>{_STYLE}</style><div class="parlance-tokens" dir="ltr">{"".join(spans)}</div>'


def tokens_page(tokens: Sequence[tuple[int, bytes]], title: str) -> str:
    """A page of its own, with the numbers of tokens and bytes above them."""
    size = sum(len(data) for _, data in tokens)
    facts = f"{len(tokens)} tokens, {size} bytes" + (f", {size / len(tokens):.2f} bytes a token" if tokens else "")
    heading = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title></head>\n"
        '<body style="margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font-family: system-ui, sans-serif">\n'
        f"<h1>{heading}</h1><p>{facts}</p>\n{tokens_html(tokens)}\n</body></html>\n"
    )


def _hint(token: int, data: bytes) -> str:
    return f"id {token}\n{len(data)} {'byte' if len(data) == 1 else 'bytes'}: {data.hex(' ')}"
