"use strict";
/* A case on a canvas: the image under window and level, the masks above it as outlines or fills, and what lies below a
   point. Several panels share one view, so that they show the same place. */

(function () {
  const KEPT = 4; // decoded cases: 20 MB each
  const waiting = new Map(); // file -> what to do with the case that its script will bring
  const decoded = new Map(); // file -> promise

  /** What a case's script calls. */
  Report.addCase = function (data) {
    const script = document.currentScript.getAttribute("src");
    waiting.get(script)(data);
    waiting.delete(script);
  };

  /** The decoded case of a script, which is loaded where it was not yet. */
  Report.loadCase = function (file) {
    if (!decoded.has(file)) {
      decoded.set(file, load(file).then(decode));
      decoded.get(file).catch(() => decoded.delete(file)); // the next try may find it
      for (const old of [...decoded.keys()].slice(0, -KEPT)) decoded.delete(old);
    }
    return decoded.get(file);
  };

  function load(file) {
    return new Promise((resolve, reject) => {
      const script = Report.make("script", { src: file });
      waiting.set(file, resolve);
      script.addEventListener("load", () => script.remove());
      script.addEventListener("error", () => reject(new Error(`${file} is missing or cannot be read.`)));
      document.head.append(script);
    });
  }

  async function decode(data) {
    const layers = await Promise.all(data.layers.map((layer) => Report.decodeLayer(layer, data.width)));
    const [truth, ...predictions] = layers;
    const bitmap = await Report.decodeImage(data.image);
    return { ...data, image: bitmap, shown: bitmap, level: "", layers, truth, predictions, paths: new Map() };
  }

  /** What panel `index` compares its prediction with: the truth, or the first prediction where there is none. */
  Report.reference = function (item, index) {
    return item.truth || (index > 0 ? item.predictions[0] : null);
  };

  /** [{mask's path, colour}] of class k in a panel. */
  function shapes(item, index, show, k) {
    const key = `${index} ${show} ${k}`;
    if (!item.paths.has(key)) item.paths.set(key, trace(item, index, show, k));
    return item.paths.get(key);
  }

  function trace(item, index, show, k) {
    const own = item.predictions[index], other = Report.reference(item, index);
    const path = (mask, layer) => Report.outline(mask, layer.width, layer.step);
    if (show === "truth") return item.truth ? [{ path: path(item.truth.masks[k], item.truth), colour: null }] : [];
    if (show === "prediction" || !other || other.step !== own.step) {
      return [{ path: path(own.masks[k], own), colour: null }];
    }
    return [
      { path: path(Report.subtract(other.masks[k], own.masks[k]), own), colour: Report.MISSED },
      { path: path(Report.subtract(own.masks[k], other.masks[k]), own), colour: Report.EXTRA },
    ];
  }

  /** The image with grey values below centre - width / 2 black and those above centre + width / 2 white. */
  function levelled(item, [centre, width]) {
    const level = `${centre} ${width}`;
    if (level === item.level) return item.shown;
    item.level = level;
    if (centre === 128 && width === 256) return (item.shown = item.image);
    const canvas = Report.make("canvas", { width: item.image.width, height: item.image.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(item.image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    const table = Uint8ClampedArray.from({ length: 256 }, (_, grey) => 255 * (grey - centre + width / 2) / width);
    const values = pixels.data;
    for (let i = 0; i < values.length; i += 4) values[i] = values[i + 1] = values[i + 2] = table[values[i]];
    context.putImageData(pixels, 0, 0);
    return (item.shown = canvas);
  }

  /** A canvas that shows prediction `index` of a case. */
  Report.Panel = class {
    constructor(index, title) {
      this.index = index;
      this.title = title;
      this.canvas = Report.make("canvas", { tabIndex: 0, role: "img" });
      this.caption = Report.make("figcaption");
      this.element = Report.make("figure", { className: "panel" }, this.caption, this.canvas);
    }

    /** Fit the canvas to its place on the page; returns its size in CSS pixels. */
    measure() {
      const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
      const density = Math.min(window.devicePixelRatio || 1, 2);
      const [w, h] = [Math.max(1, Math.round(width * density)), Math.max(1, Math.round(height * density))];
      if (this.canvas.width !== w || this.canvas.height !== h) [this.canvas.width, this.canvas.height] = [w, h];
      return [width, height];
    }

    /** view: {x, y} the image point in the middle, {scale} CSS pixels of an image pixel. */
    draw(item, view, state) {
      this.measure();
      const context = this.canvas.getContext("2d", { alpha: false });
      const density = this.canvas.width / Math.max(1, this.canvas.clientWidth);
      const scale = view.scale * density;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.fillStyle = "#0b0b0d";
      context.fillRect(0, 0, this.canvas.width, this.canvas.height);
      const [dx, dy] = [this.canvas.width / 2 - view.x * scale, this.canvas.height / 2 - view.y * scale];
      context.setTransform(scale, 0, 0, scale, dx, dy);
      context.imageSmoothingEnabled = scale < 2; // closer, the pixels themselves are what one wants to see
      context.drawImage(levelled(item, state.window), 0, 0, item.width, item.height);
      const order = item.predictions[this.index].masks.map((_, k) => k).filter((k) => !state.hidden.has(k));
      order.sort((a, b) => (a === state.focus) - (b === state.focus)); // the class in question above all others
      for (const k of order) this.drawClass(context, item, state, k, density / scale);
    }

    drawClass(context, item, state, k, pixel) {
      const focused = k === state.focus;
      for (const { path, colour } of shapes(item, this.index, state.show, k)) {
        context.fillStyle = context.strokeStyle = colour || Report.colour(k);
        if (state.style === "fill") {
          context.globalAlpha = focused || colour ? 0.65 : 0.4;
          context.fill(path, "evenodd");
          context.globalAlpha = 1;
        }
        if (state.style === "outline" || focused) {
          context.lineWidth = (focused ? 2.5 : 1.3) * pixel;
          context.stroke(path);
        }
      }
    }

    /** Names of the visible classes at an image point, with what is wrong there (missed, extra): an array of texts. */
    at(item, x, y, state, classes, [missed, extra]) {
      if (x < 0 || y < 0 || x >= item.width || y >= item.height) return [];
      const own = item.predictions[this.index], other = Report.reference(item, this.index);
      const found = [];
      classes.forEach((name, k) => {
        if (state.hidden.has(k)) return;
        const here = Report.contains(own, k, x, y);
        const there = other && Report.contains(other, k, x, y);
        if (here || there) found.push(other && here !== there ? `${name}: ${here ? extra : missed}` : name);
      });
      return found;
    }
  };
})();
