"use strict";
/* Charts as SVG: lines, bars, and means with their spread. Numbers under the pointer are read out by <title>. */

(function () {
  const WIDTH = 420, HEIGHT = 210, LEFT = 48, RIGHT = 12, TOP = 10, BOTTOM = 38;

  function svg(tag, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function titled(element, text) {
    element.append(svg("title", {}, text));
    return element;
  }

  /** Round numbers from low to high, about `count` of them. */
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= rough);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
    return found;
  }

  /** An empty chart: axes, and what turns values into places. */
  function frame(label, [x0, x1], [y0, y1], xTitle, height = HEIGHT, left = LEFT) {
    const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label, class: "chart" });
    const x = (value) => left + (value - x0) / (x1 - x0 || 1) * (WIDTH - left - RIGHT);
    const y = (value) => height - BOTTOM - (value - y0) / (y1 - y0 || 1) * (height - TOP - BOTTOM);
    for (const value of ticks(x0, x1, 5)) {
      root.append(svg("line", { x1: x(value), x2: x(value), y1: TOP, y2: height - BOTTOM, class: "grid" }));
      root.append(svg("text", { x: x(value), y: height - BOTTOM + 15, class: "tick middle" }, Report.short(value)));
    }
    root.append(svg("text", { x: (left + WIDTH - RIGHT) / 2, y: height - 4, class: "tick middle" }, xTitle));
    return { root, x, y };
  }

  function yTicks({ root, y }, low, high) {
    for (const value of ticks(low, high, 5)) {
      root.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }));
      root.append(svg("text", { x: LEFT - 6, y: y(value) + 4, class: "tick end" }, Report.short(value)));
    }
  }

  function extent(values) {
    const known = values.filter((value) => value !== null);
    const low = Math.min(...known), high = Math.max(...known);
    return low === high ? [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2] : [low, high];
  }

  /** Lines: [{title, x: numbers, y: numbers or null, className, dash}]; a lone point is a dot. */
  Report.lineChart = function (label, lines, xTitle, yRange = null) {
    const all = lines.flatMap((line) => line.y);
    if (!all.some((value) => value !== null)) return null;
    const [low, high] = yRange || extent(all);
    const chart = frame(label, extent(lines.flatMap((line) => line.x)), [low, high], xTitle);
    yTicks(chart, low, high);
    for (const line of lines) {
      const points = line.x.map((x, i) => [x, line.y[i]]).filter(([, y]) => y !== null);
      const places = points.map(([x, y]) => `${chart.x(x).toFixed(1)},${chart.y(y).toFixed(1)}`);
      const last = points.length ? `${line.title}: ${Report.short(points[points.length - 1][1])} at the end` : "";
      chart.root.append(titled(svg("polyline", { points: places.join(" "), class: `line ${line.className}` }), last));
      // What is measured every so many epochs has few points, which are marked.
      for (const [x, y] of points.length <= 40 ? points : []) {
        const dot = svg("circle", { cx: chart.x(x), cy: chart.y(y), r: 2.5, class: `dot ${line.className}` });
        chart.root.append(titled(dot, `${line.title}: ${Report.short(y)} at ${Report.short(x)}`));
      }
    }
    return chart.root;
  };

  /** How many values lie in each of `bins` parts of their range, for each series [{title, values, className}]. */
  Report.histogram = function (label, series, xTitle, bins = 20) {
    const [low, high] = extent(series.flatMap((one) => one.values));
    const counted = series.map((one) => {
      const counts = new Array(bins).fill(0);
      for (const value of one.values) counts[Math.min(bins - 1, Math.floor((value - low) / (high - low) * bins))]++;
      return { ...one, counts };
    });
    return Report.barChart(label, counted, [low, high], xTitle);
  };

  /** Counts in equal parts of a range, for each series [{title, counts, className}]; of `unit`, images say. */
  Report.barChart = function (label, series, [low, high], xTitle, unit = "images") {
    const bins = series[0].counts.length, most = Math.max(1, ...series.flatMap((one) => one.counts));
    const chart = frame(label, [low, high], [0, most], xTitle);
    yTicks(chart, 0, most);
    series.forEach((one, index) => one.counts.forEach((count, bin) => {
      const from = chart.x(low + bin * (high - low) / bins), width = chart.x(low + (high - low) / bins) - chart.x(low);
      const part = width / series.length;
      const place = { x: from + index * part + 0.5, y: chart.y(count), width: Math.max(1, part - 1) };
      const bar = svg("rect", { ...place, height: chart.y(0) - chart.y(count), class: `bar ${one.className}` });
      const [a, b] = [bin, bin + 1].map((k) => Report.short(low + k * (high - low) / bins));
      chart.root.append(titled(bar, `${one.title}: ${count} ${unit} from ${a} to ${b}`));
    }));
    return chart.root;
  };

  /** A line a name: least to greatest as a thin bar, one deviation to each side of the mean as a thick one, the mean.
      series: [{title, className, values: an array of numbers for each name}]. */
  Report.spreadChart = function (label, names, series, xTitle) {
    const ranges = series.map((one) => ({ ...one, ranges: one.values.map((values, k) => {
      const mean = Report.mean(values), sd = Report.deviation(values);
      const [least, most] = [Math.min(...values), Math.max(...values)];
      const numbers = [mean, sd, least].map((value) => Report.number(value));
      const text = `${one.title}, ${names[k]}: mean ${numbers[0]}, sd ${numbers[1]}, least ${numbers[2]}`;
      return { ends: [least, Math.max(mean - sd, least), mean, Math.min(mean + sd, most), most], text };
    }) }));
    const low = Math.min(...series.flatMap((one) => one.values.flat()));
    return Report.rangeChart(label, names, ranges, [Math.min(low, 0.9), 1], xTitle);
  };

  /** A line a name: a thin bar between the outer of five ends, a thick one between the inner, a dot at the middle.
      series: [{title, className, ranges: [{ends, text}] or null for each name}]. */
  Report.rangeChart = function (label, names, series, range, xTitle) {
    const line = 9 * series.length + 7, height = TOP + BOTTOM + line * names.length, left = 84;
    const chart = frame(label, range, [0, 1], xTitle, height, left);
    names.forEach((name, k) => {
      const top = TOP + k * line;
      const text = name.length > 12 ? name.slice(0, 11) + "…" : name;
      chart.root.append(titled(svg("text", { x: left - 6, y: top + line / 2 + 4, class: "tick end" }, text), name));
      series.forEach((one, s) => {
        if (!one.ranges[k]) return;
        const [least, from, middle, to, most] = one.ranges[k].ends.map(chart.x);
        const y = top + 8 + s * 9;
        const group = svg("g", { class: one.className });
        group.append(svg("line", { x1: least, x2: most, y1: y, y2: y, class: "range" }));
        group.append(svg("line", { x1: from, x2: to, y1: y, y2: y, class: "spread" }));
        group.append(svg("circle", { cx: middle, cy: y, r: 3.5, class: "mean" }));
        chart.root.append(titled(group, one.ranges[k].text));
      });
    });
    return chart.root;
  };

  /** What the colours of a chart mean: [{title, className}]. */
  Report.legend = function (series) {
    return Report.make("p", { className: "legend" }, ...series.map((one) => {
      return Report.make("span", { className: one.className }, Report.make("i"), one.title);
    }));
  };

  Report.figure = function (chart, ...more) {
    return chart && Report.make("figure", {}, chart, ...more);
  };
})();
