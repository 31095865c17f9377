// Sortable tables, a search box over the notebooks, one switch for all code, addresses that can be followed. All optional.
"use strict";

function number(text) {
  const value = parseFloat(text.replace(/,/g, ""));
  return Number.isNaN(value) ? null : value;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
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

const search = document.querySelector("input[type=search]");
if (search) {
  search.hidden = false;
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/);
    for (const row of document.querySelectorAll("table.notebooks tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

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
window.addEventListener("beforeprint", () => code.forEach((one) => { one.open = true; }));

for (const span of document.querySelectorAll(".address")) {
  const link = document.createElement("a");
  link.href = span.textContent;
  link.rel = "noreferrer";
  link.textContent = span.textContent;
  span.replaceChildren(link);
}
