"""The frame of a page of the report: its head, the navigation by part, headings that can be linked."""

import html
import re
from collections.abc import Sequence

from hpml.report_results import e

PARTS = {"0": "Before you measure", "1": "Workloads", "2": "Training ladder", "3": "Deployment", "4": "Reading the results"}
PERMALINK = re.compile(r' <a class="permalink".*?</a>', re.S)
INLINE = re.compile(r"</?(?:span|a|b|i|em|strong|code|sub|sup)\b[^>]*>")
HEADING = re.compile(r"<h([1-4])((?:\s[^>]*)?)>(.*?)</h\1>", re.S)


def part(name: str) -> str:
    """The part of the course that a notebook belongs to."""
    return PARTS.get(name[:1], "Other") if re.match(r"\d\d", name) else "Other"


def plain(markup: str) -> str:
    """The text of a piece of HTML on one line; tags inside a line (the colours of code) part no words."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", INLINE.sub("", markup))).split())


def anchored(inner: str) -> tuple[str, list[tuple[int, str, str]]]:
    """The page's content with an id and a permalink for each heading under the title; and the headings as (level, id, text)."""
    inner = PERMALINK.sub("", inner)  # content that was kept from the page before has its own
    taken = set(re.findall(r'\sid="([^"]+)"', inner))
    found: list[tuple[int, str, str]] = []

    def linked(match: re.Match) -> str:
        level, attributes, words = int(match[1]), match[2], match[3]
        text = plain(words)
        own = re.search(r'\sid="([^"]+)"', attributes)
        name = own[1] if own else _free(text, taken)
        found.append((level, name, text))
        attributes = attributes if own else f'{attributes} id="{e(name)}"'
        mark = f' <a class="permalink" href="#{e(name)}" aria-label="Link to: {e(text)}">#</a>' if level > 1 else ""
        return f"<h{level}{attributes}>{words}{mark}</h{level}>"

    return HEADING.sub(linked, inner), found


def _free(text: str, taken: set[str]) -> str:
    """An id made of the heading's words that no other element of the page has."""
    base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "section"
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    taken.add(name)
    return name


def page(title: str, inner: str, notebooks: Sequence[dict], current: str, run: str) -> str:
    """A whole page: `inner` in the report's frame. `notebooks` have name, title and page; `current` is this page's file."""
    inner, headings = anchored(inner)
    here = [(name, text) for level, name, text in headings if level == 2]
    tab = f"{title} · {run}" if title != run else title
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f'<title>{e(tab)}</title>\n<link rel="stylesheet" href="style.css">\n<link rel="icon" href="data:,">\n'
        '<script src="script.js"></script>\n</head>\n<body>\n'
        '<a class="skip" href="#content">Skip to the content</a>\n'
        f'<header class="top"><a class="home" href="index.html">{e(run)}</a><a class="to-contents" href="#contents">Contents</a>'
        '<form role="search" hidden><input type="search" id="search" placeholder="Search all pages" aria-label="Search all pages" '
        'autocomplete="off"></form><button class="plain" id="theme" type="button" hidden>Dark</button></header>\n'
        '<div class="frame">\n<main id="content" tabindex="-1">\n'
        '<section id="found" aria-label="Search results" hidden><p role="status"></p><ol></ol></section>\n'
        f"{inner}\n</main>\n{_contents(notebooks, current, here)}\n</div>\n</body>\n</html>\n"
    )


def _contents(notebooks: Sequence[dict], current: str, here: Sequence[tuple[str, str]]) -> str:
    """The navigation: the parts with their notebooks, the same on every page; under the page that is shown, its sections."""
    items = [f"<ul>{_entry('index.html', 'Summary', current, here)}{_entry('records.html', 'Records', current, here)}</ul>"]
    for name in [*PARTS.values(), "Other"]:
        own = [one for one in notebooks if part(one["name"]) == name]
        if own:
            items.append(f"<h2>{e(name)}</h2><ul>{''.join(_entry(one['page'], one['title'], current, here) for one in own)}</ul>")
    return f'<nav class="contents" id="contents" aria-label="Contents">{"".join(items)}</nav>'


def _entry(target: str | None, title: str, current: str, here: Sequence[tuple[str, str]]) -> str:
    if not target:
        return f'<li class="soft">{e(title)}</li>'
    if target != current:
        return f'<li><a href="{e(target)}">{e(title)}</a></li>'
    sections = "".join(f'<li><a href="#{e(name)}">{e(text)}</a></li>' for name, text in here)
    return f'<li><a href="{e(target)}" aria-current="page">{e(title)}</a>{f"<ul>{sections}</ul>" if sections else ""}</li>'
