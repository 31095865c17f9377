// The report without a server: theme, search, sortable tables, one switch for all code. The pages can be read without any of it.
"use strict";

const root = document.documentElement;

function stored(theme) {
  try { // a browser may refuse storage to files
    if (theme) localStorage.setItem("hpml-theme", theme);
    return localStorage.getItem("hpml-theme");
  } catch { return null; }
}

const chosen = stored(); // before the page is painted
if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

function switchTheme() {
  const button = document.querySelector("#theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; stored(root.dataset.theme); name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();
}

function number(text) {
  const value = parseFloat(text.replace(/,/g, ""));
  return Number.isNaN(value) ? null : value;
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1); // empty cells stay below
        const [p, q] = [number(x), number(y)];
        const order = p !== null && q !== null ? p - q : x.localeCompare(y);
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

function regular(table) {
  const head = table.tHead?.rows;
  const rows = table.tBodies.length === 1 ? [...table.tBodies[0].rows] : [];
  const width = head?.length === 1 ? head[0].cells.length : 0;
  return rows.length > 1 && rows.every((row) => row.cells.length === width && [...row.cells].every((cell) => cell.rowSpan === 1));
}

// What can be scrolled sideways must be reached by the keyboard.
function reachable(boxes) {
  const look = (box) => { box.scrollWidth > box.clientWidth ? box.tabIndex = 0 : box.removeAttribute("tabindex"); };
  const watch = new ResizeObserver((seen) => seen.forEach((one) => look(one.target)));
  boxes.forEach((box) => { look(box); watch.observe(box); });
}

function searching() {
  const form = document.querySelector("form[role=search]");
  const input = form.querySelector("input");
  const found = document.querySelector("#found");
  const [said, list] = [found.querySelector("p"), found.querySelector("ol")];
  const MOST = 40;
  let asked = false;
  form.hidden = false;
  const load = () => {
    if (asked) return;
    asked = true;
    const script = document.createElement("script"); // a file may be loaded as a script, not be requested
    script.src = "search.js";
    script.onload = () => {
      for (const one of window.hpmlPages) one.push(`${one[1]} ${one[3]}`.toLowerCase(), one[4].toLowerCase());
      search();
    };
    document.head.append(script);
  };
  const marked = (text, words) => {
    const made = document.createDocumentFragment();
    const low = text.toLowerCase();
    let at = 0;
    while (at < text.length) {
      const next = words.map((word) => [low.indexOf(word, at), word.length]).filter(([i]) => i >= 0).sort((a, b) => a[0] - b[0])[0];
      if (!next) break;
      const mark = document.createElement("mark");
      mark.textContent = text.slice(next[0], next[0] + next[1]);
      made.append(text.slice(at, next[0]), mark);
      at = next[0] + next[1];
    }
    made.append(text.slice(at));
    return made;
  };
  const search = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    found.hidden = !words.length;
    if (!words.length || !window.hpmlPages) return;
    const times = (text, word) => text.split(word).length - 1;
    const hits = window.hpmlPages
      .filter(([, , , , , title, text]) => words.every((word) => title.includes(word) || text.includes(word)))
      .map((one) => [one, words.reduce((sum, word) => sum + 20 * times(one[5], word) + Math.min(times(one[6], word), 10), 0)])
      .sort((a, b) => b[1] - a[1]);
    said.textContent = hits.length ? `${hits.length} section${hits.length > 1 ? "s" : ""} with “${input.value.trim()}”`
      + (hits.length > MOST ? `, the first ${MOST}` : "") : `Nothing has “${input.value.trim()}”`;
    list.replaceChildren(...hits.slice(0, MOST).map(([[file, title, id, heading, text, , low]]) => {
      const item = document.createElement("li");
      const link = document.createElement("a");
      link.href = id ? `${file}#${id}` : file;
      link.append(marked(heading && heading !== title ? `${title}: ${heading}` : title, words));
      const longest = words.filter((word) => low.includes(word)).sort((a, b) => b.length - a.length)[0];
      const at = Math.max(0, low.indexOf(longest) - 60);
      const excerpt = document.createElement("p");
      excerpt.append(marked((at ? "…" : "") + text.slice(at, at + 200) + (at + 200 < text.length ? "…" : ""), words));
      item.append(link, excerpt);
      return item;
    }));
  };
  input.addEventListener("focus", load);
  input.addEventListener("input", () => { load(); search(); });
  form.addEventListener("submit", (event) => { event.preventDefault(); list.querySelector("a")?.focus(); });
  form.addEventListener("keydown", (event) => { if (event.key === "Escape") { input.value = ""; search(); } });
  list.addEventListener("click", () => { found.hidden = true; }); // a section of this very page
}

function folding() {
  const code = [...document.querySelectorAll("details.code")];
  const toggle = document.querySelector("#toggle-code");
  if (toggle && code.length) {
    toggle.hidden = false;
    toggle.addEventListener("click", () => {
      const open = code.some((one) => !one.open);
      code.forEach((one) => { one.open = open; });
      toggle.textContent = open ? "Hide all code" : "Show all code";
    });
  }
  let folded = [];
  addEventListener("beforeprint", () => { folded = code.filter((one) => !one.open); folded.forEach((one) => { one.open = true; }); });
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
}

// Addresses outside are text in the pages, so that they ask for nothing; here they become links.
function addresses() {
  for (const span of document.querySelectorAll(".address")) {
    const link = document.createElement("a");
    link.href = span.textContent;
    link.rel = "noreferrer";
    link.textContent = span.textContent;
    span.replaceChildren(link);
  }
}

document.addEventListener("DOMContentLoaded", () => {
  switchTheme();
  [...document.querySelectorAll("main table")].filter(regular).forEach(sortable);
  searching();
  folding();
  addresses();
  reachable(document.querySelectorAll(".scroll, pre, math[display=block]"));
});
