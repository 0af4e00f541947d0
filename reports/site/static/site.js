// Pages of elw export: the list of features, tokens of examples and documents, and the way from feature to feature.
// Everything is shown as text (textContent); without this script the pages are plain tables and texts.
"use strict";

document.documentElement.classList.add("scripted");  // before anything is laid out: long lists are cut then

const find = (query) => document.querySelector(query);
const all = (query, within = document) => [...within.querySelectorAll(query)];

function element(name, text, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Three significant digits, as the pages write them.
function number(value, digits = 3) {
  if (value === null || value === undefined || value === "" || Number.isNaN(Number(value))) return "–";
  const x = Number(value);
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size >= 1e-4 && size < 1e9
    ? Number(x.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 12 }) : x.toExponential(digits - 1);
  return text.replaceAll("-", "−");
}

// ------------------------------------------------------------------------------------------------ the list

const SHOWN_AT_FIRST = 500;

function list() {
  const table = find("#list");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({
    row,
    text: [...[...row.cells].map((cell) => cell.textContent), row.dataset.more].join(" ").toLowerCase(),
    layer: row.dataset.layer,
    class: row.dataset.class,
    told: "told" in row.dataset,
  }));
  const search = find("#search"), layer = find("#layer"), ofClass = find("#class"), told = find("#told");
  let most = SHOWN_AT_FIRST;

  function show() {
    const wanted = search.value.trim().toLowerCase();
    let n = 0;
    for (const one of rows) {
      const fits = (!wanted || one.text.includes(wanted)) && (!layer.value || one.layer === layer.value) &&
        (!ofClass.value || one.class === ofClass.value) && (!told.checked || one.told);
      one.row.hidden = !fits || n >= most;
      n += fits;
    }
    find("#found").textContent = `${n.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    find(".more").hidden = n <= most;
  }

  function sort(heading, column) {
    const descending = heading.getAttribute("aria-sort") !== "descending";
    all("[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const isNumber = heading.dataset.kind === "n";
    const key = ({ row }) => {
      const cell = row.cells[column];
      if (!isNumber) return cell.textContent;
      return cell.dataset.v === "" ? null : Math.abs(Number(cell.dataset.v));
    };
    const keys = new Map(rows.map((one) => [one, key(one)]));
    rows.sort((one, other) => {
      const a = keys.get(one), b = keys.get(other);
      if (a === null || b === null) return (a === null) - (b === null);  // what is not there comes last
      const order = isNumber ? a - b : a.localeCompare(b);
      return descending ? -order : order;
    });
    body.append(...rows.map((one) => one.row));
    show();
  }

  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (!heading.dataset.kind) return;
    const button = element("button", heading.textContent, { type: "button" });
    button.addEventListener("click", () => sort(heading, column));
    heading.replaceChildren(button);
  });
  for (const input of [search, layer, ofClass, told]) input.addEventListener("input", () => { most = SHOWN_AT_FIRST; show(); });
  find("#more").addEventListener("click", () => { most += SHOWN_AT_FIRST; show(); });
  find(".filter").addEventListener("submit", (event) => event.preventDefault());
  find(".filter").hidden = false;
  show();
  table.classList.add("ready");
}

// ------------------------------------------------------------------------------------------------ tokens

// Hovering, tapping, or focusing a text and ← → points at one of its tokens.
function pointing(tell) {
  let at = null;
  function point(token) {
    if (token === at) return;
    at?.classList.remove("at");
    at = token;
    at?.classList.add("at");
    tell(at);
  }
  const tokenOf = (event) => event.target.parentElement?.matches("p.text") ? event.target : null;
  let spot = "";  // where the pointer is: a text that moves below one that rests is not pointed at
  document.addEventListener("mouseover", (event) => {
    const now = `${event.screenX} ${event.screenY}`, token = tokenOf(event);
    if (token && now !== spot) point(token);
    spot = now;
  });
  document.addEventListener("click", (event) => { const token = tokenOf(event); if (token) point(token); });
  document.addEventListener("focusin", (event) => {
    if (event.target.matches?.("p.text") && at?.parentElement !== event.target)
      point(event.target.querySelector(".here") ?? event.target.firstElementChild);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return point(null);
    const text = document.activeElement;
    if (!text?.matches?.("p.text") || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const from = at?.parentElement === text ? at : text.firstElementChild;
    point((event.key === "ArrowRight" ? from.nextElementSibling : from.previousElementSibling) ?? from);
    at.scrollIntoView({ block: "nearest" });
    event.preventDefault();
  });
  return point;
}

// What is in the way can be put away.
function closing(point) {
  const button = element("button", "Close", { type: "button", className: "close" });
  button.addEventListener("click", () => point(null));
  return button;
}

function examples() {
  const readout = find("#readout");
  if (!readout) return;
  const point = pointing((token) => {
    readout.hidden = !token;
    if (!token) return;
    const text = token.parentElement;
    const loss = text.dataset.loss.split(" ")[[...text.children].indexOf(token)];
    const { a, g } = token.dataset;
    readout.replaceChildren(element("code", token.textContent), element("span", `a ${number(a ?? 0)}`));
    if (g) readout.append(element("span", `g ${number(g)}`), element("span", `a·g ${number(a * g, 2)}`));
    readout.append(element("span", `loss ${number(loss)}${loss ? " nats" : ""}`), closing(point));
  });
}

function reader() {
  const holder = find("#data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const { texts, pages } = window.elwFeatures;
  const tokens = all(".reading p.text > *");
  const places = new Map(tokens.map((token, place) => [token, place]));
  const pageOf = Object.fromEntries(Object.entries(pages).map(([layer, features]) => [layer, new Set(features)]));
  const select = find("#energy"), panel = find("#panel");

  select.addEventListener("input", () => {
    const chosen = Number(select.value), [low, high] = data.scales[chosen];
    tokens.forEach((token, place) => {
      const value = data.energies[chosen][place];
      const step = high > low ? 1 + Math.min(8, Math.max(0, Math.floor((value - low) / (high - low) * 9))) : 9;
      token.className = value === null ? "" : `a${step}`;
    });
    find("#low").textContent = number(low);
    find("#high").textContent = number(high);
    find("#units").textContent = select.selectedOptions[0].textContent;
  });
  find(".filter").addEventListener("submit", (event) => event.preventDefault());
  find(".filter").hidden = false;

  function row(layer, feature, a, g) {
    const made = element("tr");
    const name = `${layer}:${feature}`, cell = element("td");
    cell.append(pageOf[layer]?.has(feature)
      ? element("a", name, { href: `../feature/${layer}-${feature}.html` }) : name);
    const on = element("td", undefined, { className: "text" });
    on.append(element("code", texts[layer]?.[feature] ?? "–"));
    made.append(cell, on, element("td", number(a)), element("td", number(g)),
      element("td", g === null ? "–" : number(a * g, 2)));
    return made;
  }

  const point = pointing((token) => {
    panel.hidden = !token;
    if (!token) return;
    const place = places.get(token), numbers = data.features[place];
    const heading = element("h2"), chosen = Number(select.value);
    heading.append(element("code", token.textContent.trim() || "␣"));
    const energies = [...select.options].map((option, i) => `${option.textContent} ${number(data.energies[i][place])}`);
    panel.replaceChildren(closing(point), heading, element("p", energies[chosen], { className: "note" }));
    if (numbers.length) {
      const table = element("table"), body = element("tbody"), thead = element("thead"), head = element("tr");
      for (const name of ["Feature", "Fires most on", "a", "g", "a·g"])
        head.append(element("th", name, { scope: "col", className: name.startsWith("Fires") ? "text" : "" }));
      thead.append(head);
      for (let i = 0; i < numbers.length; i += 4) body.append(row(...numbers.slice(i, i + 4)));
      table.append(thead, body);
      panel.append(table, element("p", `${numbers.length / 4} of ${data.active[place]} active here.`, { className: "note" }));
    } else {
      panel.append(element("p", "No feature is active here, or the token is not counted.", { className: "note" }));
    }
    const others = energies.filter((_, i) => i !== chosen && data.energies[i][place] !== null);
    if (others.length) panel.append(element("p", others.join("; "), { className: "note" }));
  });
  const named = location.hash.startsWith("#t") && document.getElementById(location.hash.slice(1));
  if (named) point(named);
}

// ------------------------------------------------------------------------------------------------ from page to page

function beside() {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const target = document.activeElement;
    if (target?.matches?.("input, select, textarea, .text, .scroll")) return;
    const way = { ArrowLeft: "prev", k: "prev", ArrowRight: "next", j: "next" }[event.key];
    const link = way && find(`a[rel=${way}]`);
    if (link) link.click();
  });
}

document.addEventListener("DOMContentLoaded", () => {
  list();
  examples();
  reader();
  beside();
});
