
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const field = (id) => document.getElementById(id);
const collator = new Intl.Collator("en", { numeric: true });
const speeds = JSON.parse(field("speeds").textContent);
const tables = all("table.board");
const columns = new Map(tables.map((table) => [table, names(table)]));
const STEP = 100;  // rows shown at a time: a long table is sorted as fast as a short one
const limits = new Map(tables.map((table) => [table, STEP]));
const points = all("figure[data-rows]").flatMap(linkPoints);
let fitting = null;  // the ids of the rows that meet the filters, null for all

function names(table) {
  const heads = [...table.tHead.rows[0].cells];
  return new Map(heads.map((head, place) => [head.dataset.name, place]));
}

function sort(head) {
  const table = head.closest("table");
  const first = "desc" in head.dataset ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  for (const one of head.parentElement.cells) one.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const numbers = head.classList.contains("n");
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => {
    const text = row.cells[head.cellIndex].textContent;
    return [numbers ? parseFloat(text) : text, row];
  });
  keyed.sort(([a], [b]) => (numbers ? byNumber(a, b, sign) : sign * collator.compare(a, b)));
  body.append(...keyed.map(([, row]) => row));
  show(table);
}

function show(table) {
  const limit = limits.get(table);
  let count = 0;
  for (const row of table.tBodies[0].rows) {
    const fits = fitting === null || fitting.has(row.dataset.id);
    row.hidden = !fits || count >= limit;
    count += fits;
  }
  const more = moreOf(table);
  more.hidden = count <= limit;
  more.textContent = `show all ${count} rows`;
}

function moreOf(table) {
  return table.parentElement.nextElementSibling;
}

function byNumber(a, b, sign) {  // what has no number stands last, whichever the order
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return sign * (a - b);
}

function showSetup() {
  const chosen = field("setup")?.value;
  if (chosen === undefined) return;
  for (const figure of all("figure[data-setup]")) figure.hidden = figure.dataset.setup !== chosen;
  for (const [table, places] of columns) {
    if (!places.has("latency")) continue;
    for (const row of table.tBodies[0].rows) {
      const [latency, memory] = speeds[row.dataset.id]?.[chosen] ?? [null, null];
      row.cells[places.get("latency")].textContent = latency?.toFixed(1) ?? "\u2013";
      row.cells[places.get("memory")].textContent = memory?.toFixed(0) ?? "\u2013";
    }
  }
}

function filter() {
  const text = field("search").value.trim().toLowerCase();
  const same = ["decoder", "family", "license"].map((name) => [name, field(name).value]);
  const most = ["params", "latency"].map((name) => [name, parseFloat(field(name)?.value)]);
  let total = 0;
  fitting = new Set();
  const inAll = (row, places) => {
    const cell = (name) => row.cells[places.get(name)].textContent;
    return row.cells[1].textContent.toLowerCase().includes(text)
      && same.every(([name, wanted]) => wanted === "" || cell(name) === wanted)
      && most.every(([name, limit]) => Number.isNaN(limit) || parseFloat(cell(name)) <= limit);
  };
  for (const [table, places] of columns) {
    if (!places.has("miou")) continue;
    for (const row of table.tBodies[0].rows) {
      if (inAll(row, places)) fitting.add(row.dataset.id);
      total += 1;
    }
  }
  tables.forEach(show);
  for (const point of points) point.classList.toggle("out", !fitting.has(point.dataset.id));
  field("count").textContent = `${fitting.size} of ${total} rows`;
}

function linkPoints(figure) {  // each point leads to its row and shows its numbers as a tooltip
  const ids = figure.dataset.rows.split(" ");
  return all(".mark-symbol path", figure).map((mark, place) => {
    const create = (name) => document.createElementNS(mark.namespaceURI, name);
    const link = create("a"), title = create("title");
    title.textContent = mark.getAttribute("aria-label");
    link.setAttribute("href", `#r-${ids[place]}`);
    link.dataset.id = ids[place];
    if (!mark.closest(".ahead_marks")) link.setAttribute("tabindex", "-1");
    mark.replaceWith(link);
    mark.append(title);
    link.append(mark);
    return link;
  });
}

function openTarget() {
  const target = location.hash && field(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  (target.querySelector("summary") ?? target).focus();
  target.scrollIntoView();
}

for (const head of all("table.board thead th")) {
  head.firstChild.addEventListener("click", () => sort(head));
}
for (const table of tables) {
  moreOf(table).addEventListener("click", () => { limits.set(table, Infinity); show(table); });
}
const form = document.querySelector("form");
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => {
  if (event.target.id === "setup") showSetup();
  filter();
});
form.addEventListener("reset", () => setTimeout(() => { showSetup(); filter(); }));
window.addEventListener("hashchange", openTarget);
showSetup();
filter();
openTarget();
