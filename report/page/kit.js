"use strict";
/* What every page of ours stands on: elements, numbers, colours, tables, the state in the address.
   Names of files and classes come from users: they are only ever set as text, never as markup. */

const Report = {};

/** An element with properties, or attributes where the name has a dash, and children, which may be texts. */
Report.make = function (tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
};

/** A Dice or share with three digits more than matter; "–" where there is none. */
Report.number = function (value, digits = 4) {
  return value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits);
};

/** A number of any size in as few characters as say it. */
Report.short = function (value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
};

/** Okabe and Ito (2008), told apart with any colour vision, without black and with a blue that shows on black.
    Neighbouring bones (k + 1 along a finger, k + 4 to the next finger) never share one of seven. */
Report.COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#3f74e0"];
Report.MISSED = "#56b4e9";
Report.EXTRA = "#e69f00";
Report.colour = (k) => Report.COLOURS[k % Report.COLOURS.length];

Report.mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

Report.deviation = function (values) {
  const mean = Report.mean(values);
  return Math.sqrt(Report.mean(values.map((value) => (value - mean) ** 2)));
};

/* ---- the state in the address: #case=…&class=… ---- */

Report.readState = function () {
  return Object.fromEntries(new URLSearchParams(window.location.hash.slice(1)));
};

/** Without what is empty; blanks as %20, so that a link can be copied into a text. */
Report.hashOf = function (state) {
  const pairs = Object.entries(state).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  return "#" + pairs.map((pair) => pair.map(encodeURIComponent).join("=")).join("&");
};

/* ---- tables ---- */

/** A table that sorts by a click on a column's head, or Enter on it.
    columns: [{title, value: row -> number or text, show: row -> text or node, words: true for text, falling: true for
    one that begins with its highest}]; by: the column that it is sorted by at first. `fill(rows)` of the element that it
    returns shows other rows in the same order. */
Report.table = function (caption, columns, rows, by = null) {
  const body = Report.make("tbody");
  const begins = (index) => Boolean(columns[index] && columns[index].falling); // whether from the highest
  const state = { column: by, down: begins(by) };
  const heads = columns.map((column, index) => {
    const button = Report.make("button", { type: "button", textContent: column.title });
    button.addEventListener("click", () => {
      state.down = state.column === index ? !state.down : begins(index);
      state.column = index;
      fill();
    });
    return Report.make("th", { scope: "col", className: column.words ? "words" : "number" }, button);
  });

  function compare(a, b) {
    const [x, y] = [a, b].map(columns[state.column].value);
    if (x === y) return 0;
    if (x === null || y === null) return x === null ? 1 : -1; // what has no number is last in any order
    const numbers = typeof x === "number" && typeof y === "number";
    const order = numbers ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
    return state.down ? -order : order;
  }

  function fill() {
    const sorted = state.column === null ? rows : [...rows].sort(compare);
    heads.forEach((head, index) => {
      const own = index === state.column;
      head.setAttribute("aria-sort", own ? (state.down ? "descending" : "ascending") : "none");
    });
    body.replaceChildren(...sorted.map((row) => Report.make("tr", {}, ...columns.map((column) => {
      return Report.make("td", { className: column.words ? "words" : "number" }, column.show(row));
    }))));
  }

  fill();
  const table = Report.make("table", {},
    Report.make("caption", { textContent: caption }),
    Report.make("thead", {}, Report.make("tr", {}, ...heads)), body);
  const region = Report.make("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": caption }, table);
  region.fill = (others) => {
    rows = others;
    fill();
  };
  return region;
};

/** A section with a heading; null where it has nothing to show. */
Report.section = function (title, note, ...children) {
  const shown = children.filter((child) => child !== null);
  if (!shown.length) return null;
  return Report.make("section", {},
    Report.make("h2", { textContent: title }),
    note ? Report.make("p", { className: "note", textContent: note }) : null, ...shown);
};

/* ---- the page: a first part of sections, a viewer of cases, and the way between them ---- */

/** Show what summary.js holds: `parts` turn the summary into sections (null: nothing to show), cases go to the viewer. */
Report.present = function (summary, parts) {
  const [overview, viewerRoot] = ["summary", "viewer"].map((id) => document.getElementById(id));
  const toViewer = document.getElementById("to-viewer"), toSummary = document.getElementById("to-summary");
  document.title = summary.title;
  document.getElementById("title").textContent = summary.title;
  const made = Report.make("p", { className: "note", textContent: `Written ${summary.made}.` });
  overview.replaceChildren(...parts.flatMap((part) => part(summary)).filter((part) => part), made);
  const viewer = summary.cases.length ? new Report.Viewer(viewerRoot, summary) : null;
  toViewer.hidden = !viewer;

  function route() {
    const fields = Report.readState(), looking = Boolean(viewer && fields.case);
    [overview.hidden, viewerRoot.hidden] = [looking, !looking];
    toSummary.toggleAttribute("aria-current", !looking);
    toViewer.toggleAttribute("aria-current", looking);
    if (!viewer) return;
    toViewer.href = viewer.hash({ case: fields.case || viewer.state.case || summary.cases[0].name });
    if (looking) viewer.open(fields);
  }

  window.addEventListener("hashchange", route);
  route();
};

/** A text that leads to a case (and a class in it), where the viewer holds it; else the text alone. */
Report.caseLink = function (summary, name, text, focus = "") {
  const known = summary.cases.some((one) => one.name === name);
  return known ? Report.make("a", { href: Report.hashOf({ case: name, class: focus }), textContent: text }) : text;
};
