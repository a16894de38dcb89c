/* What moves on the comparison report: sorting, the scans behind a number, maps of scans, and the case viewer.
 *
 * data is part of the results (classes, scans with images, answers, embedding, slices of volumes). Names are only ever set as text. */
function comparisonReport({classes, scans, answers, embedding, volumes}) {
  const byId = (id) => document.getElementById(id);
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const jpeg = (i) => `data:image/jpeg;base64,${scans.image[i]}`;

  function scanFigure(parent, i, note) {
    const figure = make("figure", parent, "scan"), image = make("img", figure), words = make("figcaption", figure);
    const {name, colour} = classes[scans.label[i]], label = make("span", words, "class");
    image.decoding = "async";
    image.alt = `scan ${scans.file[i]}`;
    image.src = jpeg(i);
    make("i", label).style.background = colour;
    label.append(name);
    words.append(note);
    figure.title = scans.file[i];
    make("span", words, "file", scans.file[i].split("/").at(-1));
    make("span", words, "file", `patient ${scans.patient[i]}`);
  }

  /* Sorting. Cells without a number stay last; reference rows stay in their own part of the table. */
  function sortable(table) {
    const heads = [...[...table.tHead.rows].at(-1).cells];
    const shown = (cell) => cell.querySelector("[data-class]:not([hidden])") || cell;
    function compare(a, b, sign) {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const difference = Number(a) - Number(b);
      return sign * (Number.isNaN(difference) ? a.localeCompare(b, undefined, {numeric: true}) : difference);
    }
    function sort(column, direction) {
      const sign = direction === "ascending" ? 1 : -1;
      for (const body of table.tBodies) {
        const valueOf = (row) => shown(row.cells[column]).dataset.value;
        body.append(...[...body.rows].sort((a, b) => compare(valueOf(a), valueOf(b), sign)));
      }
      heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
    }
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(column, now === "none" ? button.dataset.first : now === "ascending" ? "descending" : "ascending");
      });
    });
    return () => {
      const column = heads.findIndex((head) => head.getAttribute("aria-sort") !== "none");
      if (column >= 0) sort(column, heads[column].getAttribute("aria-sort"));
    };
  }

  /* The scans behind a number of a confusion matrix. */
  function confusions(box) {
    let opener = null;
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
      const {model, true: real, called} = button.dataset, answer = answers[model], name = classes[called].name;
      box.replaceChildren();
      const bar = make("div", box, "bar");
      make("h3", bar, "", `${model}: ${button.textContent} × ${classes[real].name} named ${name}`);
      make("button", bar, "plain-button", "Close").addEventListener("click", () => close(true));
      const strip = make("div", box, "tiles strip");
      answer.scans.forEach((scan, i) => {
        if (scans.label[scan] !== Number(real) || answer.called[i] !== Number(called)) return;
        scanFigure(strip, scan, ` · ${name} ${(100 * answer.probability[i]).toFixed(1)} %`);
      });
      box.hidden = false;
      box.focus({preventScroll: true});
      box.scrollIntoView({block: "nearest"});
    }
    for (const button of all(".confusion button")) {
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => button === opener ? close(true) : open(button));
    }
    box.addEventListener("keydown", (event) => { if (event.key === "Escape") close(true); });
  }

  /* Cases: one is shown, with one of its maps large; another case keeps the model and the method where it has them. */
  function caseViewer(root) {
    const cases = all(".case", root), panels = all(".case-panel", root), outline = byId("case-outline");
    let kept = {};
    function enlarge(panel, button) {
      const large = panel.querySelector(".large"), {model, method, words} = kept = button.dataset;
      all(".grid button", panel).forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      large.firstElementChild.src = button.querySelector("img").src;
      large.setAttribute("aria-label", `${panel.dataset.scan}; ${model}, ${method}`);
      panel.querySelector(".map-words").textContent = words;
    }
    /* Attention before training fades into that after it, as far as the slider says. */
    function training(panel, box) {
      const slider = box.querySelector("input"), [before, after] = all("img", box);
      const picture = (model) => all(".grid button", panel).find(({dataset}) => dataset.model === model
        && dataset.method === "attention").querySelector("img").src;
      before.src = picture(box.dataset.before);
      after.src = picture(box.dataset.after);
      before.style.opacity = `calc(var(--opacity) * ${1 - slider.value / 100})`;
      after.style.opacity = `calc(var(--opacity) * ${slider.value / 100})`;
    }
    function outlined(panel) {
      outline.disabled = !panel.style.getPropertyValue("--outline");
      outline.parentElement.title = outline.disabled ? "this scan has no lesion mask" : "";
    }
    function show(shown) {
      cases.forEach((button) => button.setAttribute("aria-pressed", String(Number(button.dataset.case) === shown)));
      panels.forEach((panel, i) => { panel.hidden = i !== shown; });
      const panel = panels[shown], maps = all(".grid button", panel);
      const same = maps.find(({dataset}) => dataset.model === kept.model && dataset.method === kept.method) || maps[0];
      if (same) enlarge(panel, same);
      outlined(panel);
    }
    /* Slider, wheel, arrow keys and bars go through the slices of a case's volume; pictures, maps and answers follow. */
    function slices(panel, box) {
      const {volume, own} = box.dataset, shown = volumes[volume], slider = box.querySelector("input");
      const large = panel.querySelector(".large"), answers = all(".answer", panel), maps = all(".grid button", panel);
      const paint = (name, picture) => panel.style.setProperty(name, `url(data:image/${picture})`);
      let turned = 0;
      function go(to) {
        const i = Math.min(Math.max(to, 0), shown.length - 1), slice = shown[i];
        const words = box.querySelector(".slice-words");
        slider.value = i;
        words.firstElementChild.textContent = slice.words;
        words.lastElementChild.textContent = i === Number(own) ? "· the case" : `· ${slice.file.split("/").at(-1)}`;
        slider.setAttribute("aria-valuetext", words.textContent);
        panel.dataset.scan = `scan ${slice.file}`;
        panel.style.setProperty("--ratio", slice.ratio);
        paint("--scan", `jpeg;base64,${slice.image}`);
        if (slice.outline) paint("--outline", `png;base64,${slice.outline}`);
        else panel.style.removeProperty("--outline");
        outlined(panel);
        for (const button of maps) {
          const {model, method} = button.dataset, [picture, words, ratio] = slice.maps[model][method];
          button.querySelector("img").src = `data:image/png;base64,${picture}`;
          button.dataset.words = words;
          button.lastElementChild.textContent = ratio;
          if (button.getAttribute("aria-pressed") === "true") enlarge(panel, button);
        }
        all(".training", panel).forEach((box) => training(panel, box));
        answers.forEach((answer, m) => {
          if (!slice.answers[m]) return;
          const [verdict, words, rows] = slice.answers[m], called = answer.querySelector("p");
          called.className = verdict;
          called.textContent = words;
          all(".row", answer).forEach((row, c) => {
            row.querySelector(".track i").style.width = `${rows[c]}%`;
            row.children[2].textContent = `${rows[c]} %`;
          });
          all("[data-slice]", answer).forEach((bar, b) => bar.classList.toggle("current", b === i));
        });
      }
      const at = () => Number(slider.value);
      const keys = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity};
      slider.parentElement.hidden = false;
      slider.addEventListener("input", () => go(at()));
      large.tabIndex = 0;
      large.addEventListener("keydown", (event) => {
        if (!(event.key in keys)) return;
        event.preventDefault();
        go(at() + keys[event.key]);
      });
      large.addEventListener("wheel", (event) => {
        const step = Math.sign(event.deltaY);
        if (!step || event.ctrlKey || at() + step < 0 || at() + step >= shown.length) return; // the page scrolls on
        event.preventDefault();
        turned = step === Math.sign(turned) ? turned + event.deltaY : event.deltaY;
        if (event.deltaMode === 0 && Math.abs(turned) < 40) return; // a touchpad sends many small turns
        turned = 0;
        go(at() + step);
      }, {passive: false});
      panel.addEventListener("click", ({target}) => { if (target.dataset.slice) go(Number(target.dataset.slice)); });
    }
    cases.forEach((button) => button.addEventListener("click", () => show(Number(button.dataset.case))));
    panels.forEach((panel) => all(".grid button", panel).forEach((button) => {
      button.addEventListener("click", () => enlarge(panel, button));
    }));
    panels.forEach((panel) => all(".volume", panel).forEach((box) => slices(panel, box)));
    panels.forEach((panel) => all(".training", panel).forEach((box) => {
      box.hidden = false;
      box.querySelector("input").addEventListener("input", () => training(panel, box));
      training(panel, box);
    }));
    root.querySelector(".controls").hidden = false;
    byId("case-opacity").addEventListener("input", ({target}) => root.style.setProperty("--opacity", target.value / 100));
    outline.addEventListener("change", () => root.classList.toggle("without-outline", !outline.checked));
    show(0);
  }

  function maps(root, {k, scans: shown, panels}) {
    embeddingMaps(root, {classes, k, heading: "h3",
      panels: panels.map(({title, near, ...frame}) => ({title, near, frames: [frame]})),
      scans: Object.fromEntries(Object.entries(scans).map(([name, column]) => [name, shown.map((i) => column[i])]))});
  }

  for (const image of all("img[data-scan]")) image.src = jpeg(image.dataset.scan);
  for (const table of all("table.sortable")) {
    const again = sortable(table), chooser = table.id === "leaderboard-table" && byId("leaderboard-class");
    if (chooser) chooser.addEventListener("change", () => {
      for (const cell of all("[data-class]", table)) cell.hidden = cell.dataset.class !== chooser.value;
      again();
    });
  }
  if (byId("behind")) confusions(byId("behind"));
  if (byId("maps")) maps(byId("maps"), embedding);
  if (byId("viewer")) caseViewer(byId("viewer"));

  addEventListener("beforeprint", () => all("details").forEach((closed) => { closed.open = true; }));
}
