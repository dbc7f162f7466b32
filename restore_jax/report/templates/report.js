"use strict";

// Tables: the button in a heading sorts by its column, a second click reverses the order.
// Rows without a value ("n/a") stay last.
function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.value;
  const lines = Array.from(body.rows);
  lines.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return direction * (column === 0 ? x.localeCompare(y) : Number(x) - Number(y));
  });
  body.append(...lines);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const buttons = table.querySelectorAll("th button");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of buttons) other.closest("th").removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, Number(button.dataset.column), ascending ? 1 : -1);
    });
  }
}

// Sliders: degraded on the left of the divider, restored on its right.
for (const compare of document.querySelectorAll(".compare")) {
  const range = compare.querySelector("input");
  const show = () => {
    compare.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `degraded up to ${range.value} % of the width`);
  };
  range.addEventListener("input", show);
  show();
}

const categories = Array.from(document.querySelectorAll("details.category"));
const controls = document.querySelector(".controls");
if (controls) {
  const all = controls.querySelector("button");
  const outlines = controls.querySelector("input");
  const label = () => {
    all.textContent = categories.some((one) => !one.open) ? "Open all" : "Close all";
  };
  all.addEventListener("click", () => {
    const open = categories.some((one) => !one.open);
    for (const one of categories) one.open = open;
  });
  for (const one of categories) one.addEventListener("toggle", label);
  const showOutlines = () => {
    document.body.classList.toggle("without-outlines", !outlines.checked);
  };
  outlines.addEventListener("change", showOutlines);
  showOutlines();
  // On a phone, the page would be very long with every category open.
  if (matchMedia("(max-width: 60rem)").matches) {
    for (const one of categories.slice(1)) one.open = false;
  }
  controls.hidden = false;
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const closed = target && target.closest("details:not([open])");
  if (closed) {
    closed.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", openTarget);
openTarget();

// In print, everything is open.
let closed = [];
addEventListener("beforeprint", () => {
  closed = Array.from(document.querySelectorAll("details:not([open])"));
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of closed) one.open = false;
});
