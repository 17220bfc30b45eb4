"use strict";
/* The record of all experiments beside those of this page: sorted by any column, filtered by words and conditions. */

(function () {
  const make = Report.make;
  const DICE = ["dice", "sd", "test"];
  const SIGNS = {
    "=": (a, b) => a === b, "!=": (a, b) => a !== b, "<": (a, b) => a < b, "<=": (a, b) => a <= b,
    ">": (a, b) => a > b, ">=": (a, b) => a >= b,
  };
  const isNumber = (text) => text.trim() !== "" && Number.isFinite(Number(text));
  const textOf = (value) => (value === null ? "" : String(value));

  /** Whether a value fulfils a condition; as engine/leaderboard.py has it. */
  function fulfils(value, sign, wanted) {
    const [own, other] = [textOf(value), wanted].map((text) => text.toLowerCase());
    if (sign === "~") return own.includes(other);
    if (typeof value === "number" && isNumber(wanted)) return SIGNS[sign](value, Number(wanted));
    return sign === "=" || sign === "!=" ? SIGNS[sign](own, other) : false;
  }

  /** Words that a row must all have or conditions that it must all fulfil -> row -> boolean; {problem} for a column
      that is not there. `field` finds the value of a column in a row. */
  function parse(text, names, field) {
    const tests = [];
    for (const word of text.split(/\s+/).filter((part) => part)) {
      const [, name, sign, wanted] = word.match(/^(\w+)(<=|>=|!=|=|<|>|~)(.*)$/) || [];
      if (!sign) {
        tests.push((row) => row.values.some((value) => textOf(value).toLowerCase().includes(word.toLowerCase())));
      } else if (!names.includes(name)) {
        return { problem: `${name} is no column here.` };
      } else if (/[<>]/.test(sign) && !isNumber(wanted)) {
        return { problem: `${word}: ${wanted || "nothing"} is no number, which ${sign} needs.` };
      } else {
        tests.push((row) => fulfils(field(row, name), sign, wanted));
      }
    }
    return { keep: (row) => tests.every((test) => test(row)) };
  }

  function show(name, row, field, one) {
    const value = field(row, name);
    if (name === "experiment") {
      const text = one.own.includes(row.at) ? make("strong", { textContent: value }) : value;
      // A server serves this report alone.
      const link = window.location.protocol === "file:" && one.links[row.at];
      return link ? make("a", { href: link }, text) : text;
    }
    if (DICE.includes(name)) return value === null ? "" : Report.number(value);
    if (name === "hours") return value ? Report.number(value, 2) : "";
    if (name === "ended") return value === null ? "" : new Date(1000 * value).toLocaleString("sv").slice(0, 16);
    if (name === "epoch") return value ? `${value}/${field(row, "epochs")}` : "";
    if (name === "epochs") return ""; // stands behind the epochs done
    if (name === "images") return value ? String(value) : "";
    return textOf(value);
  }

  /** The section, or null where there are no others. */
  Report.experiments = function (summary) {
    const one = summary.experiments;
    if (!one) return null;
    const rows = one.rows.map((values, at) => ({ values, at }));
    const place = Object.fromEntries(one.columns.map((name, index) => [name, index]));
    const field = (row, name) => (name in place ? row.values[place[name]] : one.same[name]);
    const shown = one.columns.filter((name) => rows.some((row) => show(name, row, field, one) !== ""));
    const columns = shown.map((name) => ({
      title: name, words: rows.some((row) => typeof field(row, name) === "string"), falling: one.falling.includes(name),
      value: (row) => field(row, name), show: (row) => show(name, row, field, one),
    }));
    const table = Report.table("All experiments", columns, rows, Math.max(0, shown.indexOf("dice")));
    table.classList.add("listing");
    const input = make("input", { type: "search", id: "experiments-filter", spellcheck: false, autocomplete: "off" });
    const said = make("p", { role: "status", className: "note" });

    function filter() {
      const { keep, problem } = parse(input.value, [...one.columns, ...Object.keys(one.same)], field);
      const kept = keep ? rows.filter(keep) : rows;
      table.fill(kept);
      const few = one.total > rows.length ? ` (${one.total} in all: those with the highest Dice are here)` : "";
      said.textContent = problem || `${kept.length} of ${rows.length} experiments${few}.`;
    }

    input.addEventListener("input", filter);
    filter();
    const same = Object.entries(one.same).map(([name, value]) => `${name} ${value}`).join(", ");
    const more = one.left_out ? `${one.left_out} more settings differ: python scripts/leaderboard.py --csv TABLE.csv. ` : "";
    const below = more + (same && `Alike in all: ${same}.`);
    return Report.section("All experiments",
      "As they were when this page was written; sd is over images. Columns of settings: where they differ.",
      make("p", { className: "filter" },
        make("label", { htmlFor: input.id, textContent: "Filter " }), input,
        make("span", { className: "note", textContent: " words, or conditions: dice>=0.9 state=done model_file~unet" })),
      said, table, below ? make("p", { className: "note path", textContent: below }) : null);
  };
})();
