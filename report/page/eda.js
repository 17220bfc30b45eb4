"use strict";
/* The first page about a data set: what looks wrong, how much there is, what it looks like. */

(function () {
  const make = Report.make;
  const seriesClass = (index) => `series-${index % 6}`;
  const percent = (value, digits = 1) => (value === null ? "–" : `${(100 * value).toFixed(digits)} %`);
  const legendOf = (names) => Report.legend(names.map((title, index) => ({ title, className: seriesClass(index) })));

  /** A column of a table: `key` of a row, as text or as a number. */
  const words = (title, key) => ({ title, words: true, value: (row) => row[key], show: (row) => row[key] });
  const number = (title, key, show = Report.short) => {
    return { title, value: (row) => row[key], show: (row) => show(row[key]) };
  };

  function headline(summary) {
    const tiles = summary.splits.map(({ name, images, labels, subjects }, index) => {
      const facts = `${labels} labels, ${subjects} subjects`;
      return make("div", { className: `tile ${seriesClass(index)}` }, make("h2", { textContent: name }),
        make("p", {}, make("strong", { textContent: String(images) }), " images"), make("p", { textContent: facts }));
    });
    const errors = summary.kinds.filter((row) => row.severity === "error").reduce((sum, row) => sum + row.count, 0);
    const all = summary.kinds.reduce((sum, row) => sum + row.count, 0);
    tiles.push(make("div", { className: "tile series-5" }, make("h2", { textContent: "Suspicious" }),
      make("p", {}, make("strong", { textContent: String(all) }), " findings"),
      make("p", { textContent: `${errors} of them errors; layout ${summary.layout}` })));
    const first = summary.cases[0];
    return make("div", {}, make("div", { className: "tiles" }, ...tiles),
      first ? make("a", { className: "button", href: Report.hashOf({ case: first.name }),
        textContent: all ? "Open the most suspicious image" : "Open the image farthest from the usual" }) : null);
  }

  function suspects(summary) {
    const rows = summary.suspects.map((row, at) => ({ ...row, at }));
    if (!rows.length) {
      return Report.section("Suspicious labels", "",
        make("p", { textContent: "Nothing is suspicious; a class that fewer than ten labels show is not judged. " +
          "The viewer holds the images farthest from the usual." }));
    }
    const columns = [
      { title: "What", words: true, value: (row) => row.at,
        show: (row) => make(row.severity === "error" ? "strong" : "span", { textContent: row.kind }) },
      { title: "Image", words: true, value: (row) => row.image,
        show: (row) => Report.caseLink(summary, row.image, nameOf(row.image), row.label) },
      words("Class", "label"),
      number("Units", "score", (value) => Report.number(value, 1)),
      words("Why", "detail"),
    ];
    const kinds = summary.kinds.map((row) => `${row.kind}: ${row.count}`).join(", ");
    const all = summary.kinds.reduce((sum, row) => sum + row.count, 0);
    const cut = all > rows.length ? ` The first ${rows.length} of ${all}: suspects.csv beside this page has all.` : "";
    return Report.section("Suspicious labels", `${kinds}. Bold: errors. Units: 1 is what 95 % of the images stay ` +
      `within. Images without a link are not in the viewer: write the page with --all.${cut}`,
      Report.table("Suspicious labels", columns, rows));
  }

  /** The last part of a path, which is enough in a table. */
  const nameOf = (path) => path.slice(path.lastIndexOf("/") + 1);

  function sizes(summary) {
    const rows = summary.sizes.map((row) => ({ ...row, text: `${row.width} x ${row.height}` }));
    return Report.section("Sizes", "",
      Report.table("Sizes", [words("Split", "split"), words("Width x height, px", "text"), number("Images", "images")],
        rows));
  }

  function greys(summary) {
    if (!summary.levels.length) return null;
    const named = (index) => ({ title: summary.levels[index].split, className: seriesClass(index) });
    const lines = summary.levels.map((one, index) => {
      // Most of a radiograph is nearly black: on a plain scale nothing else would show.
      const y = one.shares.map((share) => (share ? Math.log10(100 * share) : null));
      return { ...named(index), x: [...one.shares.keys()], y };
    });
    const total = summary.means[0].counts.map((_, bin) => Report.mean(summary.means.map((one) => one.counts[bin])));
    const [from, to] = [total.findIndex(Boolean), total.findLastIndex(Boolean) + 1]; // of the bins that hold any
    const bars = summary.means.map((one, index) => ({ ...named(index), counts: one.counts.slice(from, to) }));
    const ends = [from, to].map((bin) => bin * 256 / total.length);
    const caption = (text) => make("figcaption", { textContent: text });
    return Report.section("Grey values", "", legendOf(summary.levels.map((one) => one.split)),
      make("div", { className: "grid" },
        Report.figure(Report.lineChart("Pixels by grey value", lines, "grey value"),
          caption("Pixels by grey value, log10 of %")),
        Report.figure(Report.barChart("Images by mean grey value", bars, ends, "mean grey value of an image"),
          caption("Images by their mean grey value"))));
  }

  function classes(summary) {
    const rows = summary.areas.map((row, k) => {
      return { ...row, k, median: row.pixels && row.pixels[2], least: row.pixels && row.pixels[0],
        most: row.pixels && row.pixels[4] };
    });
    if (!rows.some((row) => row.labels)) return null;
    const round = (value) => (value === null ? "–" : String(Math.round(value)));
    const columns = [
      { title: "Class", words: true, value: (row) => row.k, show: (row) => row.name },
      number("Labels", "labels"), number("Median area, px", "median", round), number("Least", "least", round),
      number("Greatest", "most", round), number("Share of image", "share", (value) => percent(value, 3)),
      number("Grey value", "grey", (value) => Report.number(value, 1)),
    ];
    const ranges = rows.map((row) => {
      if (!row.sides) return null;
      const [least, , middle, , most] = row.sides.map((side) => percent(side));
      return { ends: row.sides, text: `${row.name}: ${middle}, from ${least} to ${most}` };
    });
    const most = Math.max(...rows.flatMap((row) => row.sides || [0]));
    const chart = Report.rangeChart("Areas of the classes", rows.map((row) => row.name),
      [{ title: "", className: "series-0", ranges }], [0, most], "side of a square of that area, share of the image's");
    return Report.section("Classes",
      "Dot: median. Thick: 5 % to 95 % of the labels. Thin: least to greatest. Grey value: mean below the class.",
      make("div", { className: "pair" }, Report.figure(chart), Report.table("Classes", columns, rows)));
  }

  function overlaps(summary) {
    if (!summary.overlaps.length) return null;
    const columns = [
      words("Class", "a"), words("With", "b"), number("In labels", "labels"),
      number("Mean overlap, px", "pixels", (value) => Report.number(value, 1)),
      number("Share of the smaller", "share", (value) => percent(value, 2)),
    ];
    return Report.section("Overlaps", `${percent(summary.several, 2)} of the labelled pixels carry two classes or more.`,
      Report.table("Overlaps", columns, summary.overlaps));
  }

  function maps(summary) {
    if (!summary.maps.length) return null;
    const figures = summary.maps.map(({ name, most, image }, index) => {
      const said = index ? `${name}: at most ${percent(most, 0)} of the labels` : name;
      return make("figure", {}, make("img", { src: image, alt: `Where ${name} lies`, className: "map", title: said }),
        make("figcaption", { textContent: said }));
    });
    return Report.section("Positions",
      "In how many labels a class lies at a place of the image: dark blue in none, yellow in the most.",
      make("div", { className: "maps" }, ...figures));
  }

  function subjects(summary) {
    const figures = summary.columns.map((column) => {
      const unknown = column.unknown ? `, unknown or rare ${column.unknown}` : "";
      if (column.values.length) return counted(column, unknown);
      const series = column.counts.map((counts, index) => {
        return { title: column.splits[index], className: seriesClass(index), counts };
      });
      const ends = [column.edges[0], column.edges[column.edges.length - 1]];
      return Report.figure(Report.barChart(column.name, series, ends, column.name, "subjects"),
        make("figcaption", { textContent: `${column.name}, number of subjects${unknown}` }));
    });
    if (!figures.length) return null;
    return Report.section("Subjects", "", legendOf(summary.columns[0].splits),
      make("div", { className: "grid" }, ...figures));
  }

  function counted(column, unknown) {
    const rows = column.values.map((value, k) => ({ value, k, counts: column.counts.map((counts) => counts[k]) }));
    const columns = [
      { title: column.name, words: true, value: (row) => row.k, show: (row) => row.value },
      ...column.splits.map((split, s) => ({ title: split, value: (row) => row.counts[s],
        show: (row) => String(row.counts[s]) })),
    ];
    return make("div", {}, Report.table(column.name, columns, rows),
      make("p", { className: "note", textContent: `${column.name}, number of subjects${unknown}` }));
  }

  /** The whole page from what summary.js holds. */
  Report.showData = function (summary) {
    Report.present(summary, [headline, suspects, sizes, greys, classes, overlaps, maps, subjects]);
  };
})();
