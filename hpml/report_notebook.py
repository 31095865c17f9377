"""One executed notebook as a safe piece of HTML: folded code, embedded pictures with alternative text, formulas as MathML.

What a notebook holds is not trusted (its outputs quote logs): the exporter's HTML is rebuilt from a list of allowed tags.
"""

import functools
import html
import re
from html.parser import HTMLParser
from pathlib import Path

from hpml.env import BudgetSpent, HpmlError, missing

ASSETS = Path(__file__).parent / "report_assets"
VOID = {"br", "hr", "img", "col", "wbr"}
DROPPED = {"script", "style", "iframe", "object", "template", "noscript", "textarea", "title", "svg", "math"}  # with what is inside
ALLOWED = VOID | set(
    [
        "a",
        "abbr",
        "b",
        "blockquote",
        "caption",
        "cite",
        "code",
        "colgroup",
        "dd",
        "del",
        "details",
        "div",
        "dl",
        "dt",
        "em",
        "figcaption",
        "figure",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "i",
        "kbd",
        "li",
        "mark",
        "ol",
        "p",
        "pre",
        "q",
        "s",
        "samp",
        "section",
        "small",
        "span",
        "strong",
        "sub",
        "summary",
        "sup",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "u",
        "ul",
        "var",
    ]
)
ATTRIBUTES = {"class", "id", "title", "colspan", "rowspan", "scope", "open", "start"}
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]+", re.ASCII)
SPOKEN = re.compile(r"<p><em>Alt text: ((?:(?!</p>).)*)</em></p>", re.S)  # a picture's words, which a reader opens
# As Pandoc reads dollars: no space inside them and no digit after, so that "5 $ and 6 $" stays what it is.
MATH = re.compile(
    r"\$\$(?P<block>.+?)\$\$|\\begin\{(?P<name>[a-z]+\*?)\}.+?\\end\{(?P=name)\}|(?<![\\$])\$(?P<inline>\S|\S[^$]*?[^\s\\])\$(?![\d$])",
    re.S,
)


def mathml(formula: str, *, block: bool = False) -> str:
    """A LaTeX formula as MathML; as code where it cannot be converted."""
    if not missing("latex2mathml"):
        from latex2mathml.converter import convert

        try:
            made = convert(formula.strip(), display="block" if block else "inline")
            return made.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")  # in HTML the namespace is implied
        except Exception:  # its errors have no common class, and a formula must not cost the page
            pass
    return f"<code>{html.escape(formula.strip())}</code>"


class Safe(HTMLParser):
    """Rebuilds HTML from allowed tags and attributes. Links lead to pages of the report; other addresses are shown, not linked."""

    def __init__(self, pages: set[str], fallback_alt: str) -> None:
        super().__init__(convert_charrefs=True)
        self.pages, self.fallback_alt = pages, fallback_alt
        self.out: list[str] = []
        self.open: list[tuple[str, str]] = []  # (tag, what closes it)
        self.dropped: str | None = None
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.dropped:
            self.depth += tag == self.dropped
            return
        if tag in DROPPED:
            self.dropped, self.depth = tag, 1
            return
        if tag not in ALLOWED:
            return
        given = {name: value or "" for name, value in attrs}
        kept = {name: value for name, value in given.items() if name in ATTRIBUTES}
        if tag == "img":
            self.out.append(self._picture(given))
            return
        closing = f"</{tag}>"
        if tag == "a":
            kept, closing = self._link(given, kept)
        if tag == "table":
            self.out.append('<div class="scroll">')
            closing += "</div>"
        self.out.append("<" + " ".join([tag, *(f'{name}="{html.escape(value)}"' for name, value in kept.items())]) + ">")
        if tag not in VOID:
            self.open.append((tag, closing))

    def _link(self, given: dict, kept: dict) -> tuple[dict, str]:
        target = given.get("href", "")
        page = re.sub(r"\.ipynb(?=#|$)", ".html", target.removeprefix("./"))
        if target.startswith("#") or page.partition("#")[0] in self.pages:
            return {**kept, "href": page}, "</a>"
        if target.startswith(("http://", "https://")):
            return kept, f'</a> <span class="address">{html.escape(target)}</span>'
        return kept, "</a>"

    def _picture(self, given: dict) -> str:
        alt = given.get("alt") or ""
        if not alt or alt.startswith("No description has been provided"):
            alt = self.fallback_alt
        if not PICTURE.fullmatch(given.get("src", "")):
            return f"<em>[picture not embedded: {html.escape(alt)}]</em>"
        return f'<img src="{given["src"]}" alt="{html.escape(alt)}">'

    def handle_endtag(self, tag: str) -> None:
        if self.dropped:
            self.depth -= tag == self.dropped
            if not self.depth:
                self.dropped = None
            return
        if any(name == tag for name, _ in self.open):
            while True:
                name, closing = self.open.pop()
                self.out.append(closing)
                if name == tag:
                    return

    def handle_data(self, data: str) -> None:
        if self.dropped:
            return
        if any(name in ("pre", "code") for name, _ in self.open):
            self.out.append(html.escape(data))
            return
        at = 0
        for found in MATH.finditer(data):
            self.out.append(html.escape(data[at : found.start()]))
            formula = found["block"] or found["inline"] or found[0]
            self.out.append(mathml(formula, block=found["inline"] is None))
            at = found.end()
        self.out.append(html.escape(data[at:]))

    def text(self) -> str:
        self.close()
        while self.open:
            self.out.append(self.open.pop()[1])
        return "".join(self.out)


def body(path: Path, pages: set[str]) -> str:
    """The notebook's cells and outputs. `pages` are the files of the report that may be linked. Raises HpmlError for a damaged notebook."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat's errors have no common class
        raise HpmlError(f"{path.name}: not a notebook ({type(error).__name__})") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_spoken(output) for output in cell.get("outputs", [])]
            _describe(cell.outputs)
    exporter = _exporter()
    resources = {"metadata": {"path": str(path.parent), "name": path.stem}}
    try:
        exporter.embed_images = True
        made, _ = exporter.from_notebook_node(notebook, resources=resources)
    except OSError:  # a picture beside the notebook is gone
        exporter.embed_images = False
        made, _ = exporter.from_notebook_node(notebook, resources=resources)
    safe = Safe(pages, f"Picture made by the code above it in {path.stem}")
    safe.feed(made)
    return SPOKEN.sub(r'<details class="alt"><summary>In words</summary>\1</details>', safe.text())


@functools.cache
def _exporter():
    """One for all notebooks: its templates are compiled once."""
    from nbconvert.exporters import HTMLExporter, TemplateExporter
    from nbconvert.filters import Highlight2HTML

    class Exporter(HTMLExporter):
        # HTMLExporter parses what it made again, for marks that Safe drops or sets itself: that takes longer than all the rest.
        from_notebook_node = TemplateExporter.from_notebook_node

    exporter = Exporter(template_name="notebook", extra_template_basedirs=[str(ASSETS)])
    exporter.exclude_anchor_links = True
    exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="ipython3", parent=exporter))
    # Without this each printed line has a box of its own.
    exporter.register_preprocessor("nbconvert.preprocessors.coalescestreams.CoalesceStreamsPreprocessor", enabled=True)
    return exporter


def _spoken(output):
    """The end of the run's time as a line, not as a traceback: nothing is wrong with the notebook."""
    from nbformat.v4 import new_output

    if output.output_type == "error" and output.ename == BudgetSpent.__name__:
        return new_output("stream", name="stdout", text=f"The notebook ends here: {output.evalue}.\n")
    return output


def _describe(outputs: list) -> None:
    """Give pictures the alternative text that stands beside them in the same cell."""
    texts = [output.get("text") or output.get("data", {}).get("text/markdown") or "" for output in outputs]
    alts = [
        html.unescape(re.sub(r"\\([^\w\s])", r"\1", found[1].strip()))
        for text in texts
        for found in re.finditer(r"Alt text: ([^\n]+?)\*?(?:\n|$)", str(text))
    ]
    pictures = [output for output in outputs if any(kind.startswith("image/") for kind in output.get("data", {}))]
    for output, alt in zip(pictures, alts, strict=False):
        for kind in output["data"]:
            if kind.startswith("image/"):
                output.setdefault("metadata", {}).setdefault(kind, {}).setdefault("alt", alt)
