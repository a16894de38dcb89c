/* What moves on the comparison report: sorting, charts, scans behind a number, and the case viewer.
 *
 * data comes from report_page.py, with every number already in words. Names are only ever set as text. */
function comparisonReport(data) {
  const {classes, scans} = data;
  const unlabelled = classes.length - 1;
  const byId = (id) => document.getElementById(id);
  const classOf = (label) => classes[label < 0 ? unlabelled : label];

  function make(tag, parent, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  function svg(tag, parent, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  function pushButton(parent, className, text, press) {
    const button = make("button", parent, className, text);
    button.type = "button";
    button.addEventListener("click", press);
    return button;
  }

  function select(parent, label, options, change) {
    const box = make("label", parent, "", `${label} `), chooser = make("select", box);
    let group = chooser, name = "";
    options.forEach((option, i) => {
      if (option.group && option.group !== name) {
        name = option.group;
        group = make("optgroup", chooser);
        group.label = name;
      }
      make("option", group, "", option.text).value = i;
    });
    chooser.addEventListener("change", () => change(Number(chooser.value)));
    return chooser;
  }

  const jpeg = (i) => `data:image/jpeg;base64,${scans.image[i]}`;

  function named(parent, label) {
    const name = make("span", parent, "class");
    make("i", name).style.background = classOf(label).colour;
    name.append(classOf(label).name);
  }

  function scanFigure(parent, i, note) {
    const figure = make("figure", parent, "scan"), image = make("img", figure), words = make("figcaption", figure);
    image.decoding = "async";
    image.alt = `scan ${scans.file[i]}`;
    image.src = jpeg(i);
    named(words, scans.label[i]);
    if (note) words.append(` · ${note}`);
    figure.title = scans.file[i];
    make("span", words, "file", scans.file[i].split("/").at(-1));
    make("span", words, "file", `patient ${scans.patient[i]}`);
  }

  /* One hint for all charts, beside the pointer or the focused mark. */
  const tip = make("div", document.body, "tip");
  tip.setAttribute("role", "status");
  tip.hidden = true;
  function hint(text, x, y, scan) {
    tip.hidden = text === null;
    if (tip.hidden) return;
    tip.textContent = text;
    if (scan !== undefined) {
      const image = make("img", tip);
      image.alt = "";
      image.src = jpeg(scan);
    }
    const {offsetWidth: width, offsetHeight: height} = tip;
    tip.style.left = `${Math.max(4, x + 16 + width < innerWidth ? x + 16 : x - 16 - width)}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - height - 6))}px`;
  }

  /* Sorting. Cells without a number stay last; reference rows stay in their own part of the table. */
  function sortable(table, sorted) {
    const heads = [...table.tHead.rows].at(-1).cells;
    const valueOf = (row, column) => {
      const cell = row.cells[column], shown = cell.querySelector("[data-class]:not([hidden])") || cell;
      return shown.dataset.value;
    };
    function compare(a, b, sign) {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const difference = Number(a) - Number(b);
      return sign * (Number.isNaN(difference) ? a.localeCompare(b, undefined, {numeric: true}) : difference);
    }
    function sort(column, direction) {
      const sign = direction === "ascending" ? 1 : -1;
      for (const body of table.tBodies) {
        const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
        rows.sort(([a], [b]) => compare(a, b, sign));
        body.append(...rows.map(([, row]) => row));
      }
      [...heads].forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
      if (sorted) sorted([...table.tBodies].flatMap((body) => [...body.rows]));
    }
    [...heads].forEach((head, column) => {
      const button = head.querySelector("button");
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(column, now === "none" ? button.dataset.first : now === "ascending" ? "descending" : "ascending");
      });
    });
    return () => {
      const column = [...heads].findIndex((head) => head.getAttribute("aria-sort") !== "none");
      if (column >= 0) sort(column, heads[column].getAttribute("aria-sort"));
    };
  }

  /* Charts. */
  function ticks(low, high) {
    const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
    return {step, found, text: (value) => value.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)))};
  }

  function extent(rows, include) {
    const ends = rows.flatMap((row) => [row.point, row.low, row.high]).concat(include)
      .filter((value) => typeof value === "number");
    if (!ends.length) return [0, 1];
    const low = Math.min(...ends), high = Math.max(...ends), margin = 0.04 * (high - low) || 0.05 * Math.abs(high) || 1;
    return [low - margin, high + margin];
  }

  function ellipsis(text, room) { // by the measured width of an average letter; the whole name is in the hint
    const letters = Math.floor(room / 6.9);
    return text.length <= letters ? text : `${text.slice(0, Math.max(3, letters - 1))}…`;
  }

  function intervals(box, title, rows, unit, zero) {
    make("h4", box, "", title);
    const width = Math.max(260, Math.round(box.clientWidth)), narrow = width < 500;
    const room = Math.max(...rows.map((row) => row.text.length)) * 7 + 14;
    const left = narrow ? 8 : Math.min(230, 0.34 * width), right = width - (narrow ? 10 : room);
    const step = narrow ? 42 : 26, height = rows.length * step + 34;
    const drawing = svg("svg", box, {viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": title});
    const [low, high] = extent(rows, zero ? [0] : []), scale = ticks(low, high);
    const x = (value) => left + (value - low) / (high - low) * (right - left);
    for (const tick of scale.found) {
      const strong = zero && Math.abs(tick) < 1e-9 * scale.step;
      svg("line", drawing, {x1: x(tick), x2: x(tick), y1: 2, y2: height - 26, stroke: strong ? "#555" : "#e4e4e4"});
      svg("text", drawing, {x: x(tick), y: height - 10, "text-anchor": "middle", fill: "#555", "font-size": 11.5},
        `${scale.text(tick)}${unit === "%" && !zero ? " %" : ""}`);
    }
    rows.forEach((row, i) => {
      const y = i * step + (narrow ? 30 : step / 2 + 2), words = `${row.full || row.name}: ${row.text}`;
      const group = svg("g", drawing, {tabindex: 0, role: "img", "aria-label": words});
      svg("rect", group, {class: "band", x: 0, y: i * step + 2, width, height: step, fill: "transparent"});
      const label = narrow ? width - room : left - 14, weight = row.best ? 700 : 400, ink = row.faint ? "#666" : "#1a1a1a";
      svg("text", group, {x: 4, y: narrow ? i * step + 16 : y + 4, "font-weight": weight, fill: ink},
        ellipsis(row.name, label));
      svg("text", group, {x: width - 4, y: narrow ? i * step + 16 : y + 4, "text-anchor": "end", "font-weight": weight,
        fill: ink}, row.text);
      if (row.point !== null) {
        const colour = row.faint ? "#888" : "#0b5394";
        if (row.low !== null) {
          svg("line", group, {x1: x(row.low), x2: x(row.high), y1: y, y2: y, stroke: colour, "stroke-width": 2});
          for (const end of [row.low, row.high]) {
            svg("line", group, {x1: x(end), x2: x(end), y1: y - 4, y2: y + 4, stroke: colour, "stroke-width": 1.5});
          }
        }
        svg("circle", group, {cx: x(row.point), cy: y, r: 4.5, fill: row.faint ? "white" : colour, stroke: colour,
          "stroke-width": 1.5});
      }
      const more = row.reason ? `\n${row.reason}` : "";
      group.addEventListener("pointermove", (event) => hint(words + more, event.clientX, event.clientY));
      group.addEventListener("pointerleave", () => hint(null));
      group.addEventListener("focus", () => {
        const bounds = group.getBoundingClientRect();
        if (group.matches(":focus-visible")) hint(words + more, bounds.left + bounds.width / 2, bounds.top + 12);
      });
      group.addEventListener("blur", () => hint(null));
    });
  }

  function forest(root, columns) {
    let shown = Math.max(0, columns.findIndex((column) => column.first)), order = null;
    const nameOf = (column) => [column.group, column.title].filter(Boolean).join(": ");
    const options = columns.map((one) => ({group: one.group, text: nameOf(one)}));
    const chooser = select(make("div", root), "Show", options,
      (i) => { shown = i; draw(); });
    chooser.value = shown;
    const box = make("div", root, "charts");
    function sorted(rows) {
      return order ? [...rows].sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name)) : rows;
    }
    function draw() {
      const column = columns[shown], title = nameOf(column);
      const unit = column.unit ? `, ${column.unit}` : "";
      box.replaceChildren();
      const rows = sorted(column.rows);
      const pairs = column.differences || {}, others = rows.filter((row) => pairs[row.name])
        .map((row) => ({...pairs[row.name], full: pairs[row.name].name, name: row.name}));
      const first = make("div", box), second = others.length ? make("div", box) : null;
      intervals(first, `${title}${unit}, 95 % interval`, rows, column.unit, false);
      if (second) intervals(second, `Paired difference: ${column.best} minus the other${unit}`, others, column.unit, true);
    }
    let width = 0;
    new ResizeObserver(() => {
      if (Math.abs(root.clientWidth - width) < 2) return;
      width = root.clientWidth;
      draw();
    }).observe(root);
    draw();
    return (names) => { order = names; draw(); };
  }

  /* The scans behind a number of a confusion matrix. */
  function confusions(box) {
    let opener = null;
    const most = 48;
    function close(refocus) {
      box.hidden = true;
      if (!opener) return;
      opener.setAttribute("aria-expanded", "false");
      if (refocus) opener.focus();
      opener = null;
    }
    function open(button) {
      close(false);
      opener = button;
      button.setAttribute("aria-expanded", "true");
      const {model, true: real, called} = button.dataset, one = data.confusions[model];
      const found = one.behind[`${real},${called}`] || [], count = Number(button.textContent);
      box.replaceChildren();
      const bar = make("div", box, "bar");
      make("h3", bar, "", `${one.model}: ${count} × ${classes[real].name} called ${classes[called].name}`);
      pushButton(bar, "plain-button", "Close", () => close(true));
      if (found.length < count) make("p", box, "help", `${found.length} of ${count} scans are on this page.`);
      const strip = make("div", box, "strip");
      const add = (some) => some.forEach((i) => {
        const probability = one.probability[i];
        scanFigure(strip, i, probability && `${classes[called].name} ${probability}`);
      });
      add(found.slice(0, most));
      if (found.length > most) {
        const more = pushButton(box, "plain-button", `Show the other ${found.length - most}`, () => {
          add(found.slice(most));
          more.remove();
        });
      }
      box.hidden = false;
      box.focus({preventScroll: true});
      box.scrollIntoView({block: "nearest"});
    }
    for (const button of document.querySelectorAll(".confusion button")) {
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => button === opener ? close(true) : open(button));
    }
    box.addEventListener("keydown", (event) => { if (event.key === "Escape") close(true); });
  }

  /* Maps over scans. Inferno by its values at every tenth, between them linear: perceptual, and safe for colour-blind eyes. */
  const INFERNO = [[0, 0, 4], [22, 11, 57], [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84], [221, 81, 58],
    [243, 120, 25], [252, 165, 10], [246, 215, 70], [252, 255, 164]];
  const palette = Array.from({length: 256}, (_, value) => {
    const place = value / 25.5, i = Math.min(9, Math.floor(place)), part = place - i;
    return INFERNO[i].map((low, channel) => Math.round(low + part * (INFERNO[i + 1][channel] - low)));
  });
  const gradient = `linear-gradient(90deg, ${INFERNO.map((rgb) => `rgb(${rgb.join()})`).join()})`;

  function picture(source) {
    const image = new Image();
    image.src = source;
    return image.decode().then(() => image, () => null);
  }

  function raster(image, width, height) {
    const canvas = document.createElement("canvas"), context = canvas.getContext("2d", {willReadFrequently: true});
    canvas.width = width;
    canvas.height = height;
    context.imageSmoothingEnabled = true;
    context.drawImage(image, 0, 0, width, height);
    return {canvas, context, pixels: context.getImageData(0, 0, width, height)};
  }

  function coloured(map, width, height) { // enlarged as grey, then coloured: colours never mix; weak places let the scan through
    const {canvas, context, pixels} = raster(map, width, height), values = pixels.data;
    for (let i = 0; i < values.length; i += 4) {
      const value = values[i];
      [values[i], values[i + 1], values[i + 2]] = palette[value];
      values[i + 3] = 38 + 0.85 * value;
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  function outlined(mask, width, height, thickness) {
    const {canvas, context, pixels} = raster(mask, width, height), values = pixels.data;
    const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && values[4 * (y * width + x)] > 127;
    context.clearRect(0, 0, width, height);
    context.fillStyle = "#00e5ff";
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        if (inside(x, y) && !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1))) {
          context.fillRect(x - (thickness - 1) / 2, y - (thickness - 1) / 2, thickness, thickness);
        }
      }
    }
    return canvas;
  }

  function caseViewer(root, {models, methods, cases}) {
    const LARGE = 880, SMALL = 200;
    let current = 0, model = 0, method = 0, opacity = 0.75, outline = true, loading = 0, layers = null;

    const list = make("div", root, "case-list"), buttons = [];
    for (const rule of [...new Set(cases.map((one) => one.rule))]) {
      const group = make("div", list, "case-group"), name = make("p", group, "", rule), row = make("div", group);
      row.setAttribute("role", "group");
      row.setAttribute("aria-label", `cases: ${name.textContent}`);
      cases.forEach((one, i) => {
        if (one.rule !== rule) return;
        const button = pushButton(row, "case", undefined, () => show(i)), image = make("img", button);
        image.alt = `scan ${scans.file[one.scan]}`;
        image.decoding = "async";
        image.src = jpeg(one.scan);
        named(button, scans.label[one.scan]);
        buttons[i] = button;
      });
    }
    const about = make("p", root, "case-about");
    const controls = make("div", root, "controls");
    const options = (names) => names.map((name) => ({text: name}));
    const modelChooser = select(controls, "Model", options(models), (i) => { model = i; draw(); });
    const methodChooser = select(controls, "Map", options([...methods, "scan alone"]), (i) => { method = i; draw(); });
    modelChooser.id = "case-model";
    methodChooser.id = "case-method";
    const range = make("input", make("label", controls, "", "Opacity"));
    Object.assign(range, {type: "range", id: "case-opacity", min: 0, max: 100, value: 100 * opacity});
    range.addEventListener("input", () => { opacity = range.value / 100; draw(); });
    const lesions = make("label", controls), toggle = make("input", lesions);
    Object.assign(toggle, {type: "checkbox", id: "case-outline", checked: outline});
    lesions.append("outline of the lesion");
    toggle.addEventListener("change", () => { outline = toggle.checked; draw(); });
    const key = make("span", controls, "scale", "0");
    make("i", key).style.background = gradient;
    key.append("the map’s maximum");

    const stage = make("div", root, "stage"), large = make("div", stage), canvas = make("canvas", large);
    canvas.id = "case-canvas";
    canvas.setAttribute("role", "img");
    const words = make("p", large, "map-words"), answers = make("div", stage, "answers");
    make("p", root, "help grid-help", cases.some((one) => one.lesion)
      ? "Every map of this case; click one to see it large. Below it: its density on the lesion over that on the retina."
      : "Every map of this case; click one to see it large.");
    const scroll = make("div", root, "scroll"), grid = make("table", scroll, "wide grid"), notes = make("ul", root, "footnotes");
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "every map of every model");
    let cells = [];

    function letters(i) { return (i >= 26 ? letters(Math.floor(i / 26) - 1) : "") + String.fromCharCode(97 + i % 26); }

    function fillGrid(one) {
      const reasons = [];
      grid.replaceChildren();
      notes.replaceChildren();
      cells = [];
      const head = make("tr", make("thead", grid));
      make("th", head, "first", "");
      methods.forEach((name) => { make("th", head, "", name).scope = "col"; });
      const body = make("tbody", grid);
      models.forEach((name, m) => {
        const row = make("tr", body), title = make("th", row, "first");
        title.scope = "row";
        name.split(/(?<=[/_:])/).forEach((part) => title.append(part, document.createElement("wbr")));
        methods.forEach((way, w) => {
          const cell = make("td", row), map = one.models[m].maps[way];
          if (map) {
            const button = pushButton(cell, "", undefined, () => {
              [model, method] = [m, w];
              draw();
            });
            button.setAttribute("aria-label", `${name}, ${way}: show large`);
            cells.push({canvas: make("canvas", button), button, m, w});
            make("span", button, "", map.words.short);
          } else {
            const reason = one.models[m].gaps[way] || "no map";
            if (!reasons.includes(reason)) reasons.push(reason);
            const gap = make("span", cell, "gap", "–");
            gap.title = reason;
            make("sup", gap, "", letters(reasons.indexOf(reason)));
          }
        });
      });
      reasons.forEach((reason, i) => {
        const line = make("li", notes);
        make("sup", line, "", letters(i));
        line.append(` ${reason}`);
      });
    }

    function fillAnswers(one) {
      answers.replaceChildren();
      make("p", answers, "help whole", "Each model’s answer: probability of each class, and behind it the logit.");
      models.forEach((name, m) => {
        const found = one.models[m], box = make("div", answers, "answer"), real = scans.label[one.scan];
        make("h4", box, "", name);
        if (found.called === null) return make("p", box, "gap", `– ${found.gap}`);
        const right = found.called === real, verdict = make("p", box, real < 0 ? "" : right ? "right-answer" : "wrong-answer");
        verdict.textContent = real < 0 ? `calls it ${classes[found.called].name}`
          : right ? `✓ ${classes[found.called].name}` : `✗ ${classes[found.called].name}, is ${classes[real].name}`;
        for (const bar of found.bars) {
          const row = make("div", box, "row");
          make("span", row, "", bar.name);
          const fill = make("i", make("div", row, "track"));
          fill.style.width = `${100 * (bar.share || 0)}%`;
          fill.style.background = bar.colour;
          make("span", row, "", bar.text);
          make("span", row, "", bar.logit).title = "logit";
        }
      });
    }

    async function show(i) {
      const turn = ++loading, one = cases[i];
      current = i;
      buttons.forEach((button, b) => button.setAttribute("aria-pressed", String(b === i)));
      about.textContent = "";
      named(about, scans.label[one.scan]);
      const severity = one.severity ? ` · severity ${one.severity}` : "";
      about.append(` · ${scans.file[one.scan]} · patient ${scans.patient[one.scan]}${severity} · chosen as ${one.rule}: ${one.why}`);
      fillAnswers(one);
      fillGrid(one);
      toggle.disabled = !one.lesion;
      lesions.title = one.lesion ? "" : "this scan has no lesion mask";
      const png = (base64) => picture(`data:image/png;base64,${base64}`);
      const [scan, lesion, maps] = await Promise.all([
        picture(`data:image/jpeg;base64,${one.image}`),
        one.lesion ? png(one.lesion) : null,
        Promise.all(models.map((_, m) => Promise.all(methods.map((way) => {
          const map = one.models[m].maps[way];
          return map ? png(map.image) : null;
        })))),
      ]);
      if (turn !== loading || !scan) return; // another case was chosen meanwhile
      layers = {scan, lesion, maps, made: new Map()};
      draw();
    }

    function layer(name, build) { // a coloured map is made once for a case, whatever the slider does
      if (!layers.made.has(name)) layers.made.set(name, build());
      return layers.made.get(name);
    }

    function paint(target, width, m, w) {
      const height = Math.round(width * layers.scan.naturalHeight / layers.scan.naturalWidth);
      const context = target.getContext("2d"), map = w < methods.length ? layers.maps[m][w] : null;
      if (target.width !== width || target.height !== height) [target.width, target.height] = [width, height];
      context.globalAlpha = 1;
      context.drawImage(layers.scan, 0, 0, width, height);
      if (map) {
        context.globalAlpha = opacity;
        context.drawImage(layer(`${m},${w},${width}`, () => coloured(map, width, height)), 0, 0);
        context.globalAlpha = 1;
      }
      if (outline && layers.lesion) {
        context.drawImage(layer(`lesion,${width}`, () => outlined(layers.lesion, width, height, width > 400 ? 3 : 1)), 0, 0);
      }
    }

    function draw() {
      if (!layers) return;
      const found = cases[current].models[model], way = methods[method], map = found.maps[way];
      modelChooser.value = model;
      methodChooser.value = method;
      paint(canvas, LARGE, model, method);
      const told = way === undefined ? "the scan alone"
        : map ? `${models[model]}, ${way}${map.words.long ? `: ${map.words.long}` : ""}`
        : `${models[model]}, ${way}: no map, ${found.gaps[way]}`;
      words.textContent = told;
      canvas.setAttribute("aria-label", `scan ${scans.file[cases[current].scan]}; ${told}`);
      for (const cell of cells) {
        paint(cell.canvas, SMALL, cell.m, cell.w);
        cell.button.setAttribute("aria-pressed", String(cell.m === model && cell.w === method));
      }
    }

    const first = cases[0].models.findIndex((one) => Object.keys(one.maps).length);
    if (first >= 0) {
      model = first;
      method = methods.findIndex((way) => cases[0].models[first].maps[way]);
    }
    show(0);
  }

  /* Severity against distance: small charts side by side, the same scan marked in all of them. */
  function scatters(root, {measure, panels}) {
    const grid = make("div", root, "panels"), drawn = [];
    let current = -1;
    const severest = Math.max(...panels.flatMap((panel) => panel.severity), 1e-9);
    for (const panel of panels) {
      const box = make("div", grid, "panel");
      make("h3", box, "", panel.title);
      make("p", box, "", panel.caption);
      const canvas = make("canvas", box), size = {width: 380, height: 280};
      const [low, high] = extent(panel.from_normal.map((point) => ({point, low: null, high: null})), []);
      const x = (i) => 46 + panel.severity[i] / severest * (size.width - 60);
      const y = (i) => size.height - 40 - (panel.from_normal[i] - low) / (high - low) * (size.height - 54);
      const order = panel.scans.map((_, i) => i).sort((a, b) => panel.severity[a] - panel.severity[b]);
      canvas.tabIndex = 0;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${panel.title}: ${measure} against distance from normal, ${panel.caption}; `
        + "left and right arrow keys move between scans");

      function draw() {
        const ratio = 2, context = canvas.getContext("2d");
        [canvas.width, canvas.height] = [size.width * ratio, size.height * ratio];
        context.setTransform(ratio, 0, 0, ratio, 0, 0);
        context.font = "11.5px system-ui, sans-serif";
        context.fillStyle = "#555";
        context.strokeStyle = "#e4e4e4";
        const across = ticks(0, severest), up = ticks(low, high);
        const line = (...ends) => {
          context.beginPath();
          context.moveTo(ends[0], ends[1]);
          context.lineTo(ends[2], ends[3]);
          context.stroke();
        };
        context.textAlign = "center";
        for (const tick of across.found) {
          const place = 46 + tick / severest * (size.width - 60);
          line(place, 10, place, size.height - 36);
          context.fillText(across.text(tick), place, size.height - 22);
        }
        context.fillText(measure, (46 + size.width - 14) / 2, size.height - 6);
        context.textAlign = "right";
        for (const tick of up.found) {
          const place = size.height - 40 - (tick - low) / (high - low) * (size.height - 54);
          line(46, place, size.width - 14, place);
          context.fillText(up.text(tick), 42, place + 4);
        }
        context.save();
        context.translate(10, (size.height - 26) / 2);
        context.rotate(-Math.PI / 2);
        context.textAlign = "center";
        context.fillText("distance from normal", 0, 0);
        context.restore();
        context.globalAlpha = 0.75;
        for (const i of order) dot(context, i, 3.2);
        context.globalAlpha = 1;
        const marked = panel.scans.indexOf(current);
        if (marked < 0) return;
        dot(context, marked, 5);
        context.strokeStyle = "black";
        context.lineWidth = 1.5;
        context.beginPath();
        context.arc(x(marked), y(marked), 8, 0, 2 * Math.PI);
        context.stroke();
        context.lineWidth = 1;
      }
      function dot(context, i, radius) {
        context.beginPath();
        context.arc(x(i), y(i), radius, 0, 2 * Math.PI);
        context.fillStyle = classOf(scans.label[panel.scans[i]]).colour;
        context.fill();
      }
      function choose(i, clientX, clientY) {
        const scan = i < 0 ? -1 : panel.scans[i];
        if (scan !== current) {
          current = scan;
          drawn.forEach((redraw) => redraw());
        }
        if (i < 0) return hint(null);
        hint(`${classOf(scans.label[scan]).name}, ${scans.file[scan]}\n${measure} ${panel.severity[i].toFixed(3)}, `
          + `distance ${panel.from_normal[i].toPrecision(3)}`, clientX, clientY, scan);
      }
      canvas.addEventListener("pointermove", (event) => {
        const bounds = canvas.getBoundingClientRect(), scale = bounds.width / size.width;
        const u = (event.clientX - bounds.left) / scale, v = (event.clientY - bounds.top) / scale;
        let best = -1, least = 144;
        for (const i of order) {
          const distance = (x(i) - u) ** 2 + (y(i) - v) ** 2;
          if (distance < least) [best, least] = [i, distance];
        }
        choose(best, event.clientX, event.clientY);
      });
      canvas.addEventListener("pointerleave", () => choose(-1));
      canvas.addEventListener("blur", () => choose(-1));
      canvas.addEventListener("keydown", (event) => {
        const way = {ArrowLeft: -1, ArrowRight: 1}[event.key];
        if (event.key === "Escape") choose(-1);
        if (!way || !order.length) return;
        event.preventDefault();
        const bounds = canvas.getBoundingClientRect(), scale = bounds.width / size.width;
        const at = order.indexOf(panel.scans.indexOf(current)) + (current < 0 && way < 0 ? 0 : way);
        const next = order[(at + order.length) % order.length];
        choose(next, bounds.left + x(next) * scale, bounds.top + y(next) * scale);
      });
      drawn.push(draw);
      draw();
    }
    const legend = make("p", root, "help");
    classes.forEach((one, c) => {
      if (!panels.some((panel) => panel.scans.some((i) => scans.label[i] === c))) return;
      named(legend, c);
      legend.append("  ");
    });
  }

  function embedding(root, {k, scans: shown, panels}) {
    const pick = (column) => shown.map((i) => column[i]);
    const label = pick(scans.label).map((one) => one < 0 ? unlabelled : one);
    const used = label.includes(unlabelled) ? classes : classes.slice(0, -1);
    embeddingMaps(root, {classes: used, k, panels, heading: "h3", scans: {label, file: pick(scans.file),
      patient: pick(scans.patient), split: pick(scans.split), image: pick(scans.image)}});
  }

  for (const image of document.querySelectorAll("img[data-scan]")) image.src = jpeg(image.dataset.scan);

  const chart = forest(byId("model-forest"), data.forest);
  sortable(byId("model-table"), (rows) => chart(rows.map((row) => row.dataset.model)));
  if (data.league) {
    const scores = forest(byId("league-forest"), data.league), table = byId("league-table");
    const again = sortable(table, (rows) => scores(rows.map((row) => row.cells[0].dataset.value))), chooser = byId("league-class");
    if (chooser) chooser.addEventListener("change", () => {
      for (const one of table.querySelectorAll("[data-class]")) one.hidden = one.dataset.class !== chooser.value;
      again();
    });
  }
  if (data.severity) {
    sortable(byId("severity-table"));
    scatters(byId("scatter"), data.severity);
  }
  if (byId("behind")) confusions(byId("behind"));
  if (data.embedding) embedding(byId("maps"), data.embedding);
  if (data.cases.cases.length) caseViewer(byId("viewer"), data.cases);

  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link, id) => {
        if (id === entry.target.id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    }
  }, {rootMargin: "-20% 0px -75% 0px"}); // the section that lies a fifth down the window
  links.forEach((_, id) => watcher.observe(byId(id)));
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
}
