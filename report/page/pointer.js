"use strict";
/* Mouse, touch and keys of the viewer. */

Report.listen = function (viewer) {
  const fingers = new Map(); // pointer -> its last place
  const ARROWS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  const KEYS = {
    n: () => viewer.step(1),
    p: () => viewer.step(-1),
    b: () => viewer.stepBone(1),
    B: () => viewer.stepBone(-1),
    1: () => show("truth"),
    2: () => show("prediction"),
    3: () => show("difference"),
    f: () => viewer.set({ style: viewer.state.style === "fill" ? "outline" : "fill" }),
    a: () => viewer.set({ hidden: new Set(viewer.state.hidden.size ? [] : viewer.classes.keys()) }),
    o: () => viewer.set({ hidden: new Set([...viewer.classes.keys()].filter((k) => k !== viewer.state.focus)) }),
    r: () => viewer.set({ window: [128, 256] }),
    0: () => viewer.fit(),
    "+": () => viewer.zoom(1.5),
    "=": () => viewer.zoom(1.5),
    "-": () => viewer.zoom(1 / 1.5),
  };

  function show(value) {
    if (viewer.inputs.show.some((input) => input.value === value)) viewer.set({ show: value });
  }

  /** A place in CSS pixels from the canvas's middle. */
  function offset(canvas, event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  }

  function span([a, b]) {
    return Math.hypot(a.x - b.x, a.y - b.y);
  }

  /** Right is more contrast, down is brighter, as on a reading station. */
  function shiftGrey(dx, dy) {
    const [centre, width] = viewer.state.window;
    const clamp = (value, low, high) => Math.min(high, Math.max(low, Math.round(value)));
    viewer.set({ window: [clamp(centre - dy, 0, 255), clamp(width - dx, 2, 512)] });
  }

  /** The names of what lies under the pointer, beside it. */
  function tell(panel, event) {
    const [px, py] = offset(panel.canvas, event), { x, y, scale } = viewer.view;
    const [imageX, imageY] = [Math.floor(x + px / scale), Math.floor(y + py / scale)];
    const { item, state, classes } = viewer;
    const names = item ? panel.at(item, imageX, imageY, state, classes, viewer.differences()) : [];
    viewer.hint.hidden = !names.length;
    viewer.hint.replaceChildren(...names.map((name) => Report.make("div", { textContent: name })));
    const left = Math.min(event.clientX + 14, window.innerWidth - viewer.hint.offsetWidth - 4);
    viewer.hint.style.transform = `translate(${left}px, ${event.clientY + 14}px)`;
  }

  function drag(panel, event) {
    tell(panel, event);
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
    const before = fingers.size === 2 ? span([...fingers.values()]) : 0;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (event.shiftKey && fingers.size === 1) shiftGrey(dx, dy);
    else viewer.move(dx / fingers.size, dy / fingers.size);
    if (before) viewer.zoom(span([...fingers.values()]) / before, ...offset(panel.canvas, event));
  }

  for (const panel of viewer.panels) {
    const { canvas } = panel;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      viewer.zoom(Math.exp(-Math.max(-100, Math.min(100, event.deltaY)) / 300), ...offset(canvas, event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      tell(panel, event);
    });
    canvas.addEventListener("pointermove", (event) => drag(panel, event));
    canvas.addEventListener("pointerup", (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => (viewer.hint.hidden = true));
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault(); // the page would scroll
      viewer.move(...ARROWS[event.key]);
    });
  }

  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof Element && event.target.matches("input[type=text], select, textarea");
    if (typing || viewer.root.hidden || !viewer.item || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in KEYS) KEYS[event.key]();
  });
  new ResizeObserver(() => viewer.draw()).observe(viewer.stage);
};
