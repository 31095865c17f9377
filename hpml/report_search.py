"""The index of the report's search: every section of every page as text, in a script that works from a file."""

import json
import re
from collections.abc import Iterable

from hpml.report_page import HEADING, PERMALINK, plain

PICTURE = re.compile(r'\ssrc="data:[^"]*"')
CONTENT = re.compile(r'<main id="content".*?</section>\n(.*)</main>', re.S)


def index(pages: Iterable[tuple[str, str, str]]) -> str:
    """The script `search.js` for (file, title, HTML) of each page: its sections as [file, page's title, id, heading, text]."""
    entries = [[file, title, *section] for file, title, text in pages for section in sections(text)]
    # As JSON in a string: JavaScript reads that faster than a literal, and a script, unlike a request, may be loaded from a file.
    content = json.dumps(json.dumps(entries, ensure_ascii=False, separators=(",", ":")), ensure_ascii=False)
    return f"window.hpmlPages = JSON.parse({content});\n"


def sections(text: str) -> list[tuple[str, str, str]]:
    """(id, heading, text) of each part of a page's content between two headings."""
    inner = CONTENT.search(text)
    inner = PERMALINK.sub("", PICTURE.sub("", inner[1] if inner else ""))
    found, at, name, heading = [], 0, "", ""
    for match in HEADING.finditer(inner):
        found.append((name, heading, plain(inner[at : match.start()])))
        own = re.search(r'\sid="([^"]+)"', match[2])
        at, name, heading = match.end(), own[1] if own else "", plain(match[3])
    found.append((name, heading, plain(inner[at:])))
    return [one for one in found if one[1] or one[2]]
