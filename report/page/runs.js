"use strict";
/* Masks as runs: decoded from a case's script (report/case.py), compared, and traced into outlines.
   A mask is an Int32Array of ends (start, end, start, end, …, the ends excluded) in the flattened image, sorted; no run
   goes on over the end of a row. */

(function () {
  function bytesOf(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  Report.decodeImage = function (base64) {
    return createImageBitmap(new Blob([bytesOf(base64)], { type: "image/jpeg" }));
  };

  /** {width, step, masks} of a layer of an image that is `width` px wide; null stays null. */
  Report.decodeLayer = async function (layer, width) {
    if (!layer) return null;
    const stream = new Blob([bytesOf(layer.data)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const numbers = new Int32Array(await new Response(stream).arrayBuffer());
    const own = Math.ceil(width / layer.step);
    let classes = 0;
    for (let runs = 0; classes + 2 * runs < numbers.length; classes++) runs += numbers[classes];
    const masks = [];
    let at = classes;
    for (let k = 0; k < classes; k++) {
      masks.push(splitRows(numbers.subarray(at, at + 2 * numbers[k]), own));
      at += 2 * numbers[k];
    }
    return { width: own, step: layer.step, masks };
  };

  /** Differences of ends -> a mask. */
  function splitRows(differences, width) {
    const ends = [];
    let at = 0;
    for (let i = 0; i < differences.length; i += 2) {
      let start = at + differences[i];
      at = start + differences[i + 1];
      while (start < at) {
        const end = Math.min(at, (Math.floor(start / width) + 1) * width);
        // Runs of a CSV may touch, and are then one.
        if (ends[ends.length - 1] === start && start % width) ends[ends.length - 1] = end;
        else ends.push(start, end);
        start = end;
      }
    }
    return Int32Array.from(ends);
  }

  /** The pixels of `a` that are not in `b`. */
  Report.subtract = function (a, b) {
    const found = [];
    let j = 0;
    for (let i = 0; i < a.length; i += 2) {
      let start = a[i];
      while (j < b.length && b[j + 1] <= start) j += 2;
      for (let k = j; k < b.length && b[k] < a[i + 1]; k += 2) {
        if (b[k] > start) found.push(start, b[k]);
        start = Math.max(start, b[k + 1]);
      }
      if (start < a[i + 1]) found.push(start, a[i + 1]);
    }
    return Int32Array.from(found);
  };

  /** Whether pixel (x, y) of the image is in mask k of a layer. */
  Report.contains = function (layer, k, x, y) {
    const mask = layer.masks[k], at = Math.floor(y / layer.step) * layer.width + Math.floor(x / layer.step);
    let low = 0, high = mask.length / 2;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (mask[2 * middle + 1] <= at) low = middle + 1;
      else high = middle;
    }
    return 2 * low < mask.length && mask[2 * low] <= at;
  };

  /** Box of a mask in layer pixels, [x0, y0, x1, y1]; null where it is empty. */
  Report.boxOf = function (mask, width) {
    if (!mask.length) return null;
    let left = width, right = 0;
    for (let i = 0; i < mask.length; i += 2) {
      left = Math.min(left, mask[i] % width);
      right = Math.max(right, (mask[i + 1] - 1) % width + 1);
    }
    return [left, Math.floor(mask[0] / width), right, Math.floor((mask[mask.length - 1] - 1) / width) + 1];
  };

  /** The outline of a mask along the edges of its pixels, as a Path2D in image pixels, `step` of which are one of the
      layer. */
  Report.outline = function (mask, width, step) {
    const side = width + 1; // corners of pixels in a row
    const edges = edgesOf(mask, width, side);
    const path = new Path2D();
    for (const first of edges.right.keys()) {
      if (!edges.right.has(first)) continue; // walked along from another start
      let at = first, rightwards = true;
      path.moveTo(at % side * step, Math.floor(at / side) * step);
      do {
        const own = rightwards ? edges.right : edges.left;
        const end = own.get(at);
        own.delete(at);
        path.lineTo(end % side * step, Math.floor(end / side) * step);
        // The inside lies to the right of the way, and where four pixels meet at a corner the way turns right.
        const down = rightwards ? edges.down.has(end) : !edges.up.has(end);
        at = end + (down ? side : -side);
        while (!edges.right.has(at) && !edges.left.has(at) && at !== first) at += down ? side : -side;
        path.lineTo(at % side * step, Math.floor(at / side) * step);
        rightwards = down ? !edges.left.has(at) : edges.right.has(at) || at === first;
      } while (at !== first || !rightwards);
      path.closePath();
    }
    return path;
  };

  /** Horizontal edges of a mask by the corner that they leave (left: those with the mask above them, right: below), and
      the corners from which vertical ones go down or up. A corner is row * side + column. */
  function edgesOf(mask, width, side) {
    const found = { right: new Map(), left: new Map(), down: new Set(), up: new Set() };
    const corner = (pixel, shift) => Math.floor(pixel / width) * side + pixel % width + shift * side;
    for (let i = 0; i < mask.length; i += 2) {
      const start = corner(mask[i], 0), length = mask[i + 1] - mask[i];
      found.up.add(start + side);
      found.down.add(start + length);
    }
    const above = Int32Array.from(mask, (pixel) => pixel + width); // the row above, moved into this one
    for (const [into, edges] of [[mask, Report.subtract(mask, above)], [null, Report.subtract(above, mask)]]) {
      for (let i = 0; i < edges.length; i += 2) {
        const from = corner(edges[i], 0), to = from + edges[i + 1] - edges[i];
        if (into) found.right.set(from, to);
        else found.left.set(to, from);
      }
    }
    return found;
  }
})();
