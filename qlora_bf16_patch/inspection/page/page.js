"use strict";
const members = JSON.parse(document.getElementById("members").textContent);
const body = document.querySelector("tbody");
const filter = document.getElementById("filter"), mismatches = document.getElementById("heavy");
const tip = document.getElementById("tip");
const depth = row => Number(row.dataset.depth);
const isMember = row => row.classList.contains("member");

// The rows that a row is inside of: the last ones above it that are less deep.
function* around(row) {
  let level = depth(row);
  for (let above = row.previousElementSibling; above && level; above = above.previousElementSibling)
    if (!isMember(above) && depth(above) < level) { level = depth(above); yield above; }
}

// One row for each module of a folded row.
function unfold(row, paths) {
  const all = members[row.id.slice(1)];
  const wanted = new Set(paths);
  const singles = all.flatMap((path, index) => {
    if (!wanted.has(path)) return [];
    const single = row.cloneNode(true);
    single.id = `${row.id}-${index}`;
    single.classList.add("member");
    single.dataset.path = path;
    const head = single.querySelector("th");
    head.title = path;
    head.querySelector(".name").textContent = path.replace(/^.*?(?=[^.]+\.\d)/, "");
    head.querySelectorAll(".count, .within").forEach(part => part.remove());
    head.querySelector(".fold").hidden = true;
    single.querySelectorAll("td[tabindex]").forEach(cell => cell.tabIndex = -1);
    for (const times of single.querySelectorAll(".times")) {
      const count = Number(times.dataset.each.split(" ")[index]);
      times.textContent = `${count} ${times.dataset.unit}${count === 1 ? "" : "s"}`;
    }
    return [single];
  });
  row.after(...singles);
}

function fold(row) {
  while (row.nextElementSibling && isMember(row.nextElementSibling)) row.nextElementSibling.remove();
}

// Shows what the filter, the switch and the folds leave.
function show() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (path, name) => words.every(word => `${path} ${name}`.toLowerCase().includes(word));
  const rows = [...body.rows].filter(row => !isMember(row));
  const found = new Set(), context = new Set();
  let modules = 0;
  for (const row of rows) {
    fold(row);
    const all = members[row.id.slice(1)] || [row.dataset.path];
    const whole = fits(row.dataset.path, row.dataset.class);
    const some = whole ? all : all.filter(path => fits(path, row.dataset.class));
    if (!some.length || (mismatches.checked && !row.classList.contains("heavy"))) continue;
    found.add(row);
    modules += some.length;
    for (const above of around(row)) context.add(above);
    const count = row.querySelector(".count");
    if (count && (count.ariaExpanded === "true" || !whole)) unfold(row, some);
  }
  const narrowed = words.length > 0 || mismatches.checked;
  let closed = Infinity;
  for (const row of body.rows) {
    if (!isMember(row)) {
      if (depth(row) <= closed) closed = Infinity;
      row.hidden = closed !== Infinity || (!found.has(row) && !context.has(row));
      row.classList.toggle("context", narrowed && !found.has(row));
      if (!narrowed && row.querySelector(".fold").ariaExpanded === "false") closed = Math.min(closed, depth(row));
    } else row.hidden = row.previousElementSibling.hidden;
  }
  const stop = body.querySelector("td[tabindex='0']");
  if (!stop || stop.parentElement.hidden) stopAt(body.querySelector("tr:not([hidden]) td[tabindex]"));
  document.querySelector("tfoot").hidden = found.size > 0;
  document.getElementById("shown").value = narrowed ? `${modules} module${modules === 1 ? "" : "s"} in ${found.size} row${found.size === 1 ? "" : "s"}` : "";
}

function tell(cell) {
  const numbers = cell && cell.querySelector(".numbers");
  tip.hidden = !numbers;
  if (!numbers) return;
  tip.replaceChildren(...[...numbers.children].map(line => line.cloneNode(true)));
  cell.setAttribute("aria-describedby", "tip");
  const at = cell.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const below = at.bottom + 6 + size.height < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
  tip.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - size.height - 6)}px`;
}

body.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  button.ariaExpanded = String(button.ariaExpanded !== "true");
  show();
});
body.addEventListener("pointerover", event => tell(event.target.closest("td")));
body.addEventListener("pointerleave", () => tell(null));
body.addEventListener("focusin", event => tell(event.target.closest("td")));
body.addEventListener("focusout", () => tell(null));

// The table is one stop of the tab key; arrows go from cell to cell.
function stopAt(cell) {
  body.querySelectorAll("td[tabindex='0']").forEach(other => other.tabIndex = -1);
  if (cell) cell.tabIndex = 0;
}
const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
body.addEventListener("keydown", event => {
  const cell = event.target.closest("td"), step = steps[event.key];
  if (event.key === "Escape") tell(null);
  if (!cell || !step) return;
  event.preventDefault();
  const rows = [...body.rows].filter(row => !row.hidden);
  let row = rows.indexOf(cell.parentElement), column = cell.cellIndex, next;
  do {
    row += step[0];
    column += step[1];
    next = rows[row] && rows[row].cells[column];
  } while (next && next.tagName === "TD" && !next.hasAttribute("tabindex"));
  if (!next || next.tagName !== "TD") return;
  stopAt(next);
  next.focus();
});
document.addEventListener("keydown", event => {
  if (event.key === "/" && document.activeElement !== filter) { event.preventDefault(); filter.focus(); }
});
filter.addEventListener("input", show);
mismatches.addEventListener("change", show);
filter.form.addEventListener("submit", event => event.preventDefault());

for (const row of body.rows) {
  const next = row.nextElementSibling;
  row.querySelector(".fold").hidden = !(next && depth(next) > depth(row));
}
show();
