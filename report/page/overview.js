"use strict";
/* The first page of a report: what was set, how it went, and what is worst. */

(function () {
  const MOST_ROWS = 50; // of the lists of the worst
  const make = Report.make;
  const seriesClass = (index) => `series-${index % 6}`;

  /** Dice of a source to show: of what the viewer shows where there are labels, else of the validation. */
  const shownScores = (source) => source.scores || source.validation;

  const link = Report.caseLink;

  function headline(summary) {
    const tiles = summary.sources.map((source, index) => {
      const facts = [];
      const kinds = [["Validation Dice", source.validation], [scoredTitle(summary, source), source.scores]];
      for (const [title, scores] of kinds) {
        if (!scores) continue;
        const means = scores.values.map(Report.mean);
        const spread = `sd ${Report.number(Report.deviation(means))} over ${means.length} images`;
        const mean = make("strong", { textContent: Report.number(Report.mean(means)) });
        facts.push(make("p", {}, `${title} `, mean, ` ${spread}`));
      }
      if (source.csv) facts.push(make("p", { className: "note path", textContent: source.csv }));
      const heading = make("h2", { textContent: source.title });
      return make("div", { className: `tile ${seriesClass(index)}` }, heading, ...facts);
    });
    const first = summary.cases[0];
    const open = first && make("a", { className: "button", href: Report.hashOf({ case: first.name }),
      textContent: summary.sources.some((source) => source.scores) ? "Open the worst image" : "Open the first image" });
    return make("div", {}, make("div", { className: "tiles" }, ...tiles), open || null);
  }

  function scoredTitle(summary, source) {
    if (!summary.labelled) return `Dice with ${summary.sources[0].title}`;
    return source.split === "val" ? "Out-of-fold Dice" : source.split === "test" ? "Test Dice" : "Dice";
  }

  function worst(summary) {
    const scored = summary.sources.filter((source) => source.scores);
    if (!scored.length) return cases(summary);
    const rows = scored[0].scores.images.map((name) => {
      return { name, dice: scored.map((source) => Report.mean(valuesOf(source, name))) };
    });
    const image = imageColumn(summary);
    const images = [image, ...diceColumns(scored)];
    const least = (row) => Math.min(...row.dice);
    const worstFirst = (list) => [...list].sort((a, b) => least(a) - least(b));
    // Of bones that are equally bad, often missed altogether, the one in the worse image comes first.
    const bones = worstFirst(rows).flatMap(({ name }) => summary.classes.map((label, k) => {
      return { name, label, dice: scored.map((source) => valuesOf(source, name)[k]) };
    }));
    const few = (list) => worstFirst(list).slice(0, MOST_ROWS);
    const bone = { title: "Bone", words: true, value: (row) => row.label,
      show: (row) => link(summary, row.name, row.label, row.label) };
    return Report.section("Worst first", summary.labelled ? "" : "Without labels: where the two differ most.",
      make("div", { className: "pair" },
        Report.table("Images", images, few(rows)),
        Report.table("Bones", [bone, image, ...diceColumns(scored)], few(bones))));
  }

  function imageColumn(summary) {
    const show = (row) => link(summary, row.name, row.name);
    return { title: "Image", words: true, value: (row) => row.name, show };
  }

  function cases(summary) {
    if (!summary.cases.length) return null;
    const rows = summary.cases;
    const columns = [
      imageColumn(summary),
      { title: "Subject", words: true, value: (row) => row.subject, show: (row) => row.subject },
    ];
    return Report.section("Images", "They have no labels, so they are in their own order.",
      Report.table("Images", columns, rows));
  }

  function valuesOf(source, name) {
    return source.scores.values[source.scores.images.indexOf(name)];
  }

  function diceColumns(sources) {
    return sources.map((source, s) => {
      const title = sources.length > 1 ? source.title : "Dice";
      return { title, value: (row) => row.dice[s], show: (row) => Report.number(row.dice[s]) };
    });
  }

  function perClass(summary) {
    const scored = summary.sources.map((source, index) => ({ source, index, scores: shownScores(source) }));
    const known = scored.filter((one) => one.scores);
    if (!known.length) return null;
    const { classes } = known[0].scores;
    const series = known.map(({ source, index, scores }) => {
      const values = classes.map((name) => {
        const k = scores.classes.indexOf(name);
        return scores.values.map((row) => row[k]);
      });
      return { title: source.title, className: seriesClass(index), values, scores };
    });
    const rows = classes.map((name, k) => ({ name, k, cells: series.map((one) => statistics(one, k)) }));
    const of = (title, s, field) => ({ title: series.length > 1 ? `${title} ${series[s].title}` : title,
      value: (row) => row.cells[s][field], show: (row) => Report.number(row.cells[s][field]) });
    const columns = [
      { title: "Bone", words: true, value: (row) => row.k, show: (row) => row.name },
      ...series.flatMap((_, s) => [of("Mean", s, "mean"), of("sd", s, "sd"), of("Least", s, "least")]),
    ];
    if (series.length === 2) {
      const gain = (row) => row.cells[1].mean - row.cells[0].mean;
      columns.splice(1, 0, { title: "Gain", value: gain, show: (row) => Report.number(gain(row)) });
    }
    const last = series.length - 1;
    columns.push({ title: "Worst image", words: true, value: (row) => row.cells[last].worst,
      show: (row) => link(summary, row.cells[last].worst, row.cells[last].worst, row.name) });
    const images = series.map((one) => {
      return { title: one.title, className: one.className, values: one.scores.values.map(Report.mean) };
    });
    return [
      Report.section("Dice of each bone",
        "Dot: mean over images. Thick: one standard deviation. Thin: least to greatest.",
        make("div", { className: "pair" },
          Report.figure(Report.spreadChart("Dice of each bone", classes, series, "Dice"), Report.legend(series)),
          Report.table("Dice of each bone", columns, rows))),
      Report.section("Images by their Dice", "", Report.figure(
        Report.histogram("Images by their mean Dice", images, "mean Dice of an image"), Report.legend(images))),
    ];
  }

  function statistics({ values, scores }, k) {
    const own = values[k], least = Math.min(...own);
    return { mean: Report.mean(own), sd: Report.deviation(own), least, worst: scores.images[own.indexOf(least)] };
  }

  function settings(summary) {
    const titles = summary.sources.filter((source) => source.experiment).map((source) => source.title);
    if (!summary.settings.length) return null;
    const text = (value) => (value.length > 200 ? `${value.slice(0, 200)}…` : value);
    const columns = [
      { title: "Setting", words: true, value: (row) => row.name, show: (row) => row.name },
      { title: "Default", words: true, value: (row) => row.default, show: (row) => text(row.default) },
      ...summary.settings[0].values.map((_, s) => ({
        title: titles[s], words: true, value: (row) => row.values[s],
        show: (row) => {
          const differs = row.values.some((value) => value !== row.values[0]);
          return make(differs ? "strong" : "span", { textContent: text(row.values[s]) });
        },
      })),
    ];
    const several = summary.settings[0].values.length > 1;
    const note = several ? "Bold: the experiments differ." : "Where they differ from the defaults.";
    return Report.section("Settings", note,
      Report.table("Settings that differ from the defaults", columns, summary.settings));
  }

  const CURVES = [
    ["train_loss", "Training loss"], ["val_dice", "Validation Dice"], ["lr", "Learning rate"],
    ["seconds", "Seconds an epoch"], ["samples_per_second", "Samples a second"],
    ["waiting", "Share of time waiting for data"], ["gpu_gib", "GPU memory, GiB"],
  ];

  function curves(summary) {
    const figures = CURVES.map(([column, title]) => {
      const lines = summary.sources.flatMap((source, index) => source.curves
        .filter((one) => column in one.columns)
        .map((one) => ({ title: `${source.title} ${one.title}`.trim(), className: seriesClass(index), x: one.epochs,
          y: one.columns[column] })));
      const chart = Report.lineChart(title, lines, "epoch");
      return Report.figure(chart, make("figcaption", { textContent: title }));
    }).filter((figure) => figure);
    if (!figures.length) return null;
    const trained = summary.sources.map(({ title }, index) => ({ title, className: seriesClass(index) }));
    return Report.section("Training", "", Report.legend(trained), make("div", { className: "grid" }, ...figures));
  }

  function thresholds(summary) {
    const fitted = summary.sources.map((source, index) => ({ ...source.thresholds, index, title: source.title }))
      .filter((one) => one.levels);
    if (!fitted.length) return null;
    const { classes } = fitted[0];
    const choice = make("select", { id: "threshold-class" },
      make("option", { value: -1, textContent: "mean of all" }),
      ...classes.map((name, k) => make("option", { value: k, textContent: name })));
    const place = make("div");

    function fill() {
      const k = Number(choice.value);
      const lines = fitted.flatMap((one) => one.dice.map((dice, c) => {
        return { title: `${one.title}, ${one.classes[c]}`, className: "faint", x: one.levels, y: dice };
      }));
      for (const one of fitted) {
        const c = one.classes.indexOf(classes[k]);
        const y = k < 0 ? one.levels.map((_, i) => Report.mean(one.dice.map((dice) => dice[i]))) : one.dice[c];
        lines.push({ title: one.title, className: `${seriesClass(one.index)} strong`, x: one.levels, y });
      }
      const said = fitted.map((one) => {
        const value = k < 0 ? null : one.chosen[one.classes.indexOf(classes[k])];
        const none = value === null || value === undefined;
        return none ? "" : `${one.title}: fitted threshold ${Report.number(value, 3)}. `;
      });
      place.replaceChildren(Report.figure(Report.lineChart("Dice by threshold", lines, "threshold", [0, 1])),
        make("p", { className: "note", textContent: said.join("") }));
    }

    choice.addEventListener("change", fill);
    fill();
    const legend = Report.legend(fitted.map((one) => ({ title: one.title, className: seriesClass(one.index) })));
    return Report.section("Dice by threshold", "",
      make("p", {}, make("label", { htmlFor: choice.id, textContent: "Bone " }), choice), legend, place);
  }

  const COSTS = [
    ["trainings", "Trainings"], ["epochs", "Epochs"], ["hours", "Hours"], ["seconds", "Seconds an epoch (median)"],
    ["samples_per_second", "Samples a second (median)"], ["waiting", "Share of time waiting for data (median)"],
    ["gpu_gib", "GPU memory, GiB"], ["checkpoint_mb", "Weights, MB"],
  ];

  function costs(summary) {
    const trained = summary.sources.filter((source) => source.costs);
    if (!trained.length) return null;
    const rows = COSTS.map(([name, title]) => ({ title, values: trained.map((source) => source.costs[name]) }))
      .filter((row) => row.values.some((value) => value !== null));
    const columns = [
      { title: "All folds together", words: true, value: (row) => row.title, show: (row) => row.title },
      ...trained.map((source, s) => ({ title: source.title, value: (row) => row.values[s],
        show: (row) => Report.short(row.values[s]) })),
    ];
    return Report.section("Time and memory", "Validation is not counted.",
      Report.table("Time and memory", columns, rows));
  }

  /** The whole page from what summary.js holds. */
  Report.show = function (summary) {
    const own = [headline, worst, perClass, settings, curves, thresholds, costs];
    Report.present(summary, [...own, Report.experiments]);
  };
})();
