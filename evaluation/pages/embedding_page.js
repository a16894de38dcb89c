"use strict";
function make(tag, parent, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

/* Maps of the same scans side by side, linked: one legend, one scan under the cursor in every panel.
 *
 * root: an element to fill. data: {classes: [{name, colour, shape}], k, scans: {label, file, patient, split, image},
 * panels: [{title, near, frames: [{caption, x, y}]}]}; scans are columns, images base64 JPEGs, x and y from 0 to 10000,
 * near each scan's nearest scans or null; if given, heading is the tag of a panel's title, unit what a point is, and
 * scans.place where each was taken. Names are only ever set as text.
 * Returns {select(i)}: show scan i, or none for −1. */
function embeddingMaps(root, data) {
  const {classes, scans, panels, unit: noun = "scan"} = data;
  const hidden = new Set();
  const order = scans.label.map((_, i) => i).sort((a, b) => mixed(a) - mixed(b)); // no class lies above another
  let current = -1, pinned = false;

  function mixed(i) { return Math.imul(i + 1, 2654435761) >>> 0; }

  function path(context, shape, x, y, r) {
    context.beginPath();
    const corners = {
      square: [[-.85, -.85], [.85, -.85], [.85, .85], [-.85, .85]],
      up: [[0, -1.15], [1.05, .8], [-1.05, .8]],
      down: [[0, 1.15], [1.05, -.8], [-1.05, -.8]],
      diamond: [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]],
      plus: [[-.4, -1.1], [.4, -1.1], [.4, -.4], [1.1, -.4], [1.1, .4], [.4, .4], [.4, 1.1], [-.4, 1.1], [-.4, .4],
             [-1.1, .4], [-1.1, -.4], [-.4, -.4]],
      cross: [[-1.1, -.55], [-.55, -1.1], [0, -.55], [.55, -1.1], [1.1, -.55], [.55, 0], [1.1, .55], [.55, 1.1],
              [0, .55], [-.55, 1.1], [-1.1, .55], [-.55, 0]],
    }[shape];
    if (corners) {
      corners.forEach(([u, v]) => context.lineTo(x + r * u, y + r * v));
      context.closePath();
    } else {
      context.arc(x, y, r, 0, 2 * Math.PI);
    }
  }

  function mark(context, label, x, y, r) {
    path(context, classes[label].shape, x, y, r);
    context.fillStyle = classes[label].colour;
    context.fill();
    context.strokeStyle = "white";
    context.lineWidth = 0.5;
    context.stroke();
  }

  function panelOf(panel) {
    const box = make("section", grid, "map");
    make(data.heading || "h2", box, "", panel.title);
    const caption = make("p", box, "caption");
    const plot = make("div", box, "plot");
    const points = make("canvas", plot), over = make("canvas", plot);
    over.tabIndex = 0;
    over.setAttribute("role", "img");
    over.setAttribute("aria-label", `${panel.title}: map of ${scans.label.length} ${noun}s; arrow keys move between ${noun}s`);
    const neighbours = make("p", box, "neighbours");
    let size = 0, frame = panel.frames[panel.frames.length - 1], radius = 3;

    const place = (i) => [12 + frame.x[i] * (size - 24) / 1e4, size - 12 - frame.y[i] * (size - 24) / 1e4];

    function draw() {
      size = plot.clientWidth;
      const scale = window.devicePixelRatio || 1;
      for (const canvas of [points, over]) {
        canvas.width = canvas.height = Math.round(size * scale);
        canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
      }
      radius = Math.min(5, Math.max(2.2, 0.24 * size / Math.sqrt(scans.label.length)));
      const context = points.getContext("2d");
      context.globalAlpha = 0.85;
      for (const i of order) if (!hidden.has(scans.label[i])) mark(context, scans.label[i], ...place(i), radius);
      caption.textContent = frame.caption;
      highlight();
    }

    function highlight() {
      const context = over.getContext("2d"), ink = getComputedStyle(root).color;
      context.clearRect(0, 0, size, size);
      neighbours.textContent = "";
      if (current < 0) return;
      const near = panel.near ? panel.near[current] : [];
      context.strokeStyle = ink;
      context.lineWidth = 1;
      for (const i of near) {
        path(context, "circle", ...place(i), radius + 2.5);
        context.stroke();
      }
      const [x, y] = place(current);
      mark(context, scans.label[current], x, y, radius + 3);
      path(context, "circle", x, y, radius + 6);
      context.strokeStyle = ink;
      context.lineWidth = 2;
      context.stroke();
      if (near.length) neighbours.textContent = `nearest in these features: ${counted(near)}`;
    }

    function closest(x, y, least, distance) { // the drawn scan of least distance (of its offset), −1 without any
      let best = -1;
      for (const i of order) {
        const [u, v] = place(i), away = distance(u - x, v - y);
        if (!hidden.has(scans.label[i]) && away <= least) [best, least] = [i, away];
      }
      return best;
    }

    const pick = (x, y, reach) => closest(x, y, reach, Math.hypot);

    function step(dx, dy) { // to the nearest scan in the arrow's quadrant; the first press starts in the middle
      if (current < 0) return pick(size / 2, size / 2, Infinity);
      const next = closest(...place(current), Infinity, (u, v) => {
        const along = u * dx + v * dy, across = Math.abs(u * dy + v * dx);
        return along > 0 && across <= along ? along + across : NaN;
      });
      return next < 0 ? current : next;
    }

    function onPointer(event, press) {
      const bounds = over.getBoundingClientRect();
      const nearest = pick(event.clientX - bounds.left, event.clientY - bounds.top, press ? 24 : 14);
      if (press) pinned = nearest >= 0 && !(pinned && nearest === current);
      if (press || !pinned) select(nearest, event.clientX, event.clientY);
    }
    over.addEventListener("pointermove", (event) => onPointer(event, false));
    over.addEventListener("click", (event) => onPointer(event, true));
    over.addEventListener("pointerleave", (event) => { if (!pinned && event.pointerType === "mouse") select(-1); });
    over.addEventListener("keydown", (event) => {
      const arrow = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      if (!arrow && event.key !== "Escape") return;
      event.preventDefault();
      pinned = Boolean(arrow);
      const next = arrow ? step(...arrow) : -1, bounds = over.getBoundingClientRect();
      const [x, y] = next < 0 ? [0, 0] : place(next);
      select(next, bounds.left + x, bounds.top + y);
    });

    if (panel.frames.length > 1) slider(box, panel.frames.length, (i) => { frame = panel.frames[i]; draw(); });
    return {draw, highlight};
  }

  function slider(box, count, show) {
    const row = make("div", box, "slider");
    const button = make("button", row, "", "play");
    const range = make("input", row);
    Object.assign(range, {type: "range", min: 0, max: count - 1, value: count - 1});
    range.setAttribute("aria-label", "training step");
    let timer = 0;
    function stop() { clearInterval(timer); timer = 0; button.textContent = "play"; }
    range.addEventListener("input", () => { stop(); show(Number(range.value)); });
    button.addEventListener("click", () => {
      if (timer) return stop();
      button.textContent = "stop";
      timer = setInterval(() => {
        range.value = (Number(range.value) + 1) % count;
        show(Number(range.value));
      }, 700);
    });
  }

  function counted(positions) {
    const counts = classes.map((_, c) => positions.filter((i) => scans.label[i] === c).length);
    return classes.map(({name}, c) => [counts[c], `${name} × ${counts[c]}`]).filter(([count]) => count)
      .sort((a, b) => b[0] - a[0]).map(([, text]) => text).join(", ");
  }

  function select(i, x, y) {
    current = i;
    drawn.forEach((panel) => panel.highlight());
    card.hidden = i < 0;
    if (i < 0) return;
    image.src = `data:image/jpeg;base64,${scans.image[i]}`;
    image.alt = `scan ${scans.file[i]}`;
    title.textContent = classes[scans.label[i]].name;
    title.style.borderColor = classes[scans.label[i]].colour;
    const place = scans.place?.[i] ? `${scans.place[i]}\n` : "";
    details.textContent = `patient ${scans.patient[i]} · ${scans.split[i]}\n${place}${scans.file[i]}`;
    if (x === undefined) [x, y] = [innerWidth / 2, innerHeight / 2];
    const {offsetWidth: width, offsetHeight: height} = card; // beside the cursor, inside the window
    const bounds = root.getBoundingClientRect(); // the card moves with the maps and never leaves them
    const left = x + 18 + width < innerWidth ? x + 18 : x - 18 - width, top = Math.min(y + 12, innerHeight - height - 4);
    card.style.left = `${Math.max(4, left) - bounds.left}px`;
    card.style.top = `${Math.max(0, Math.min(Math.max(4, top) - bounds.top, bounds.height - height))}px`;
  }

  const legend = make("div", root, "legend");
  classes.forEach(({name}, c) => {
    const button = make("button", legend);
    button.setAttribute("aria-pressed", "true");
    const symbol = make("canvas", button);
    symbol.width = symbol.height = 18;
    mark(symbol.getContext("2d"), c, 9, 9, 6);
    make("span", button, "", `${name} (${scans.label.filter((label) => label === c).length})`);
    button.addEventListener("click", () => {
      hidden.has(c) ? hidden.delete(c) : hidden.add(c);
      button.setAttribute("aria-pressed", String(!hidden.has(c)));
      if (current >= 0 && hidden.has(scans.label[current])) { pinned = false; select(-1); }
      drawn.forEach((panel) => panel.draw());
    });
  });
  const grid = make("div", root, "maps");
  const card = make("div", root, "card");
  card.hidden = true;
  const image = make("img", card);
  if (scans.image.length) image.src = `data:image/jpeg;base64,${scans.image[0]}`; // an image without one counts as broken
  const title = make("strong", card), details = make("p", card);
  const drawn = panels.map(panelOf);
  drawn.forEach((panel) => panel.draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((panel) => panel.draw()));
  new ResizeObserver(() => drawn.forEach((panel) => panel.draw())).observe(grid);
  return {select};
}
