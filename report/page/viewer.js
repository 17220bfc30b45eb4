"use strict";
/* The viewer: one case, a panel for each prediction, and the controls. Its whole state stands in the address, so that a
   link leads back to it: #case=…&class=…&show=…&style=…&hide=…&window=… */

Report.Viewer = class {
  constructor(root, summary) {
    this.root = root;
    this.summary = summary;
    this.classes = summary.classes;
    this.state = { case: "", focus: -1, show: "prediction", style: "outline", hidden: new Set(), window: [128, 256] };
    this.view = { x: 0, y: 0, scale: 1 };
    this.item = null;
    this.panels = summary.sources.map((source, index) => new Report.Panel(index, source.title));
    this.bones = summary.bones || this.worstBones();
    this.build();
    Report.listen(this);
  }

  /* ---- the page ---- */

  build() {
    const make = Report.make;
    const shows = [["prediction", `${this.summary.shows || "Prediction"} (2)`], ["difference", "Difference (3)"]];
    if (this.summary.labelled) shows.unshift(["truth", "Truth (1)"]);
    else if (this.panels.length < 2) shows.pop();
    this.inputs = {};
    const button = (text, title, action) => {
      const element = make("button", { type: "button", textContent: text, title });
      element.addEventListener("click", action);
      return element;
    };
    this.status = make("p", { className: "status", role: "status" });
    this.note = make("p", { className: "note" });
    this.hint = make("div", { className: "hint", hidden: true });
    const go = make("div", { className: "row" },
      button("‹ Previous", "Previous image (p)", () => this.step(-1)),
      button("Next worst ›", "Next worst image (n)", () => this.step(1)),
      this.bones.length ? button("Next worst bone", "(b)", () => this.stepBone(1)) : null,
      button("−", "Zoom out (-)", () => this.zoom(1 / 1.5)),
      button("+", "Zoom in (+)", () => this.zoom(1.5)),
      button("Fit", "Whole image (0)", () => this.fit()));
    const modes = make("div", { className: "row" },
      this.radios("show", "Show", shows),
      this.radios("style", "As", [["outline", "Outlines"], ["fill", "Fills (f)"]]));
    this.key = make("p", { className: "legend", hidden: true });
    this.list = make("ul", { className: "classes" });
    const side = make("aside", { "aria-label": "Classes and grey values" },
      this.slider("Level", 0, 0, 255), this.slider("Window", 1, 2, 512),
      button("Reset grey values", "(r)", () => this.set({ window: [128, 256] })),
      make("div", { className: "row" },
        make("strong", { textContent: "Classes" }),
        button("All", "Show all classes (a)", () => this.set({ hidden: new Set() })),
        button("None", "Hide all classes", () => this.set({ hidden: new Set(this.classes.keys()) }))),
      this.list);
    const help = make("details", {}, make("summary", { textContent: "Keys" }), make("p", { textContent:
      "n, p: next and previous worst image. b, shift b: next and previous worst bone. 1, 2, 3: truth, prediction, " +
      "difference. f: fills or outlines. a: all classes on or off. o: only the chosen class. + and -: zoom. 0: fit. " +
      "Arrows: move. r: reset grey values. Wheel or two fingers: zoom. Drag: move. " +
      "Shift and drag: window and level." }));
    this.stage = make("div", { className: "stage" }, ...this.panels.map((panel) => panel.element));
    this.root.replaceChildren(this.status, go, modes, this.key,
      make("div", { className: "split" }, make("div", {}, this.stage, this.note, help), side), this.hint);
    this.buildList();
  }

  radios(name, title, choices) {
    const inputs = choices.map(([value]) => {
      const input = Report.make("input", { type: "radio", name, value });
      input.addEventListener("change", () => this.set({ [name]: value }));
      return input;
    });
    this.inputs[name] = inputs;
    const labels = choices.map(([, text], i) => Report.make("label", {}, inputs[i], text));
    return Report.make("fieldset", {}, Report.make("legend", { textContent: title }), ...labels);
  }

  slider(title, index, min, max) {
    const input = Report.make("input", { type: "range", min, max, id: `grey-${index}` });
    input.addEventListener("input", () => {
      const window = [...this.state.window];
      window[index] = Number(input.value);
      this.set({ window });
    });
    (this.inputs.window = this.inputs.window || [])[index] = input;
    return Report.make("p", { className: "slider" },
      Report.make("label", { htmlFor: input.id, textContent: title }), input);
  }

  buildList() {
    this.rows = this.classes.map((name, k) => {
      const box = Report.make("input", { type: "checkbox", id: `class-${k}`, "aria-label": `show ${name}` });
      box.addEventListener("change", () => this.toggle(k));
      const swatch = Report.make("i", { className: "swatch" });
      swatch.style.background = Report.colour(k);
      const choose = Report.make("button", { type: "button", className: "name", textContent: name,
        title: `Zoom to ${name}` });
      choose.addEventListener("click", () => this.choose(k === this.state.focus ? -1 : k));
      const numbers = this.panels.map(() => Report.make("span", { className: "dice" }));
      return { box, choose, numbers, element: Report.make("li", {}, box, swatch, choose, ...numbers) };
    });
    this.list.replaceChildren(...this.rows.map((row) => row.element));
  }

  /* ---- the state ---- */

  /** Take the state of an address; an image that is not in the report is said to be missing. */
  async open(fields) {
    const focus = this.classes.indexOf(fields.class ?? "");
    const numbers = (text) => (text ? text.split(",").map(Number).filter(Number.isFinite) : []);
    const grey = numbers(fields.window);
    const known = (name, fallback) => this.inputs[name].some((i) => i.value === fields[name]) ? fields[name] : fallback;
    const state = {
      case: fields.case, focus, show: known("show", "prediction"), style: known("style", "outline"),
      hidden: new Set(numbers(fields.hide)), window: grey.length === 2 && grey[1] > 0 ? grey : [128, 256],
    };
    const changed = state.case !== this.state.case || !this.item;
    const moved = changed || focus !== this.state.focus;
    this.state = state;
    if (changed && !(await this.load())) return;
    if (moved) this.focusView(changed);
    this.refresh();
  }

  /** Change the state, and the address with it. */
  set(changes) {
    Object.assign(this.state, changes);
    window.history.replaceState(null, "", this.hash());
    this.refresh();
  }

  hash(changes = {}) {
    const state = { ...this.state, ...changes };
    return Report.hashOf({
      case: state.case,
      class: this.classes[state.focus],
      show: state.show === "prediction" ? "" : state.show,
      style: state.style === "outline" ? "" : state.style,
      hide: [...state.hidden].sort((a, b) => a - b).join(","),
      window: String(state.window) === "128,256" ? "" : String(state.window),
    });
  }

  async load() {
    const wanted = this.state.case, index = this.index();
    this.item = null;
    this.root.classList.toggle("missing", index < 0);
    if (index < 0) {
      const held = `This report holds ${this.summary.cases.length} of ${this.summary.images} images`;
      this.status.textContent = `${wanted} is not here. ${held}: write it with --all to have every one.`;
      return false;
    }
    this.status.textContent = `Loading ${wanted} …`;
    try {
      const item = await Report.loadCase(this.summary.cases[index].file);
      if (this.state.case !== wanted) return false; // another one was asked for meanwhile
      this.item = item;
    } catch (error) {
      this.status.textContent = String(error.message);
      return false;
    }
    const next = this.summary.cases[index + 1];
    if (next) setTimeout(() => Report.loadCase(next.file).catch(() => {}), 300);
    return true;
  }

  index() {
    return this.summary.cases.findIndex((one) => one.name === this.state.case);
  }

  step(by) {
    const { cases } = this.summary, at = this.index();
    const next = cases[(at + by + cases.length) % cases.length];
    window.location.hash = this.hash({ case: next.name });
  }

  /** Every bone of the cases, the lowest Dice in any prediction first: [{case, focus}]. */
  worstBones() {
    const found = [];
    for (const { name } of this.summary.cases) {
      this.classes.forEach((_, k) => {
        const dice = Math.min(...this.summary.sources.map((_, s) => this.dice(s, name, k) ?? Infinity));
        if (dice < Infinity) found.push({ case: name, focus: k, dice });
      });
    }
    return found.sort((a, b) => a.dice - b.dice);
  }

  stepBone(by) {
    const at = this.bones.findIndex((one) => one.case === this.state.case && one.focus === this.state.focus);
    const next = this.bones[at < 0 ? 0 : (at + by + this.bones.length) % this.bones.length];
    window.location.hash = this.hash(next);
  }

  toggle(k) {
    const hidden = new Set(this.state.hidden);
    if (!hidden.delete(k)) hidden.add(k);
    this.set({ hidden });
  }

  choose(k) {
    const hidden = new Set(this.state.hidden);
    hidden.delete(k);
    this.set({ focus: k, hidden });
    if (k >= 0) this.focusView(false);
  }

  /** Dice of a class (of all, for k < 0) in prediction s of an image; null where it has none. */
  dice(s, name, k) {
    const scores = this.summary.sources[s].scores;
    const at = scores ? scores.images.indexOf(name) : -1;
    if (at < 0) return null;
    return k < 0 ? Report.mean(scores.values[at]) : scores.values[at][k];
  }

  /* ---- the view ---- */

  fit() {
    const [width, height] = this.panels[0].measure();
    const { width: w, height: h } = this.item;
    this.view = { x: w / 2, y: h / 2, scale: Math.min(width / w, height / h) };
    this.draw();
  }

  /** Look at the class in question, where there is one; else at the whole image where it is a new one. */
  focusView(whole) {
    const layers = this.state.focus < 0 ? [] : this.item.layers.filter((layer) => layer);
    const boxes = layers.flatMap((layer) => {
      const box = Report.boxOf(layer.masks[this.state.focus], layer.width);
      return box ? [box.map((value) => value * layer.step)] : [];
    });
    if (!boxes.length) return whole ? this.fit() : undefined;
    const of = (i, pick) => pick(...boxes.map((box) => box[i]));
    const [x0, y0, x1, y1] = [of(0, Math.min), of(1, Math.min), of(2, Math.max), of(3, Math.max)];
    const [width, height] = this.panels[0].measure();
    const scale = Math.min(width / (x1 - x0), height / (y1 - y0), 24) * 0.5;
    this.view = { x: (x0 + x1) / 2, y: (y0 + y1) / 2, scale };
    return this.draw();
  }

  /** Zoom about a point of the panels, CSS pixels from their middle. */
  zoom(factor, px = 0, py = 0) {
    if (!this.item) return;
    const scale = Math.min(60, Math.max(0.02, this.view.scale * factor));
    this.view.x += px / this.view.scale - px / scale;
    this.view.y += py / this.view.scale - py / scale;
    this.view.scale = scale;
    this.draw();
  }

  move(dx, dy) {
    if (!this.item) return;
    const clamp = (value, most) => Math.min(most, Math.max(0, value)); // the image can't be lost
    this.view.x = clamp(this.view.x - dx / this.view.scale, this.item.width);
    this.view.y = clamp(this.view.y - dy / this.view.scale, this.item.height);
    this.draw();
  }

  /** Draw once in the next frame, however often it is asked for. */
  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      if (!this.item || this.root.hidden) return;
      for (const panel of this.panels) panel.draw(this.item, this.view, this.state);
    });
  }

  refresh() {
    if (!this.item) return;
    const { state, item } = this;
    for (const name of ["show", "style"]) for (const i of this.inputs[name]) i.checked = i.value === state[name];
    state.window.forEach((value, i) => (this.inputs.window[i].value = value));
    this.rows.forEach((row, k) => {
      row.box.checked = !state.hidden.has(k);
      row.choose.setAttribute("aria-pressed", k === state.focus);
      row.numbers.forEach((cell, s) => (cell.textContent = Report.number(this.dice(s, item.name, k), 3)));
    });
    const index = this.index(), { subject } = this.summary.cases[index];
    const place = item.name.startsWith(subject) ? item.name : `${subject} / ${item.name}`;
    this.status.textContent = `${place}: ${index + 1} of ${this.summary.cases.length}`;
    for (const panel of this.panels) this.label(panel);
    const coarse = Math.max(...item.layers.filter((layer) => layer).map((layer) => layer.step));
    const ragged = `Too ragged to be shown whole: masks are drawn from every ${coarse}th pixel.`;
    this.note.textContent = [this.summary.cases[index].note, coarse > 1 ? ragged : ""].filter(Boolean).join(" ");
    this.key.hidden = state.show !== "difference";
    this.key.replaceChildren(...(this.key.hidden ? [] : this.differenceKey()));
    this.draw();
  }

  label(panel) {
    const whole = this.dice(panel.index, this.item.name, -1), focus = this.classes[this.state.focus];
    const parts = [this.state.show === "truth" ? `Truth (${panel.title})` : panel.title];
    if (whole !== null) parts.push(`Dice ${Report.number(whole)}`);
    if (focus !== undefined) {
      const own = this.dice(panel.index, this.item.name, this.state.focus);
      parts.push(own === null ? focus : `${focus} ${Report.number(own)}`);
    }
    panel.caption.textContent = parts.join(", ");
    panel.canvas.setAttribute("aria-label", `${this.item.name}, ${this.state.show} of ${parts.join(", ")}`);
  }

  /** What the two kinds of difference mean: to the truth, or without one to the first prediction. */
  differences() {
    const first = this.summary.sources[0].title;
    return this.item.truth ? ["missed", "extra"] : [`only in ${first}`, `not in ${first}`];
  }

  differenceKey() {
    const texts = this.differences();
    return [Report.MISSED, Report.EXTRA].map((colour, i) => {
      const swatch = Report.make("i");
      swatch.style.background = colour;
      return Report.make("span", {}, swatch, texts[i]);
    });
  }
};
