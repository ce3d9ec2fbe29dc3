"use strict";
// The gallery: only the cards in view exist, so ten thousand results cost what a screenful does.
(() => {
  const { images, recipes, results } = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const grid = byId("grid"), dialog = byId("detail");
  const GAP = 12, WIDEST = 230, SPARE = 3; // px between cards, a card's least width, rows kept beyond the view
  let shown = [], cards = new Map(), columns = 1, cardWidth = WIDEST, cardHeight = 0, current = 0;

  for (const [number, result] of results.entries()) {
    const recipe = recipes[result.recipe] || {};
    result.order = number;
    result.method = recipe.method || result.method || "";
    result.model = recipe.model || "";
    result.name = images[result.image].name;
    result.warnings = result.warnings || [];
    result.numbers = result.numbers || {};
    const told = result.error ? [result.error.message, result.error.hint] : result.warnings;
    result.text = [result.name, result.label, result.target, result.method, result.model, result.layer, ...told]
      .filter((part) => part !== null && part !== undefined).join("\n").toLowerCase();
  }

  // ---- small helpers: everything that comes from a run is written as text, never as markup
  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  // one line, and no marks that would show what follows them in another order
  const plain = (text) => String(text).replace(/\s+/g, " ").replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
  function bdi(tag, className, ...texts) { // each text keeps its own direction to itself
    const outer = make(tag, className);
    outer.append(...texts.map((text) => make("bdi", "", plain(text))));
    outer.title = texts.map(plain).join("");
    return outer;
  }
  const percent = (p) => (p === null || p === undefined ? "" : p > 0 && p < 0.001 ? "<0.1%" : `${(100 * Math.min(p, p < 1 ? 0.999 : 1)).toFixed(1)}%`);
  const figure = (v) => (typeof v === "number" ? String(Number(v.toPrecision(4))) : String(v));
  const file = (name) => name.split("/").pop();
  const map = (result) => [result.method, result.layer].filter(Boolean).join(" ");

  function options(select, values, all) {
    const known = [...new Set(values.filter((v) => v !== "" && v !== null && v !== undefined).map(String))].sort((a, b) => a.localeCompare(b));
    if (all) select.append(new Option(all, ""));
    for (const value of known) select.append(new Option(plain(value), value));
  }

  // ---- one picture: the image, and the map where the network looked
  function frame(result) {
    const well = make("span", "well");
    const image = images[result.image];
    if (result.error && !image.src) {
      well.append(bdi("span", "absent error", result.error.message));
      return well;
    }
    const alone = result.kind === "overlay"; // the image itself was not found: the overlay stands for it
    const shape = alone ? result : image;
    if (!shape.width || (alone && !result.map)) {
      well.append(make("span", "absent", "neither the image nor its overlay was found"));
      return well;
    }
    const box = make("span", `frame ${result.kind || ""} ${shape.width / shape.height > 4 / 3 ? "broad" : "tall"}`);
    box.style.aspectRatio = `${shape.width} / ${shape.height}`;
    const base = picture("base", alone ? result.map : image.src, `${file(result.name)}${alone ? `, ${result.method} overlay` : ""}`);
    box.append(base);
    if (!alone && result.map && result.box) {
      const seen = make("span", "seen");
      const [left, top, width, height] = result.box;
      Object.assign(seen.style, { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` });
      seen.append(picture("", result.map, `${result.method} map of ${plain(result.label)}`));
      box.append(seen);
    }
    well.append(box);
    return well;
  }
  function picture(className, source, alt) {
    const image = make("img", className);
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = plain(alt);
    image.src = source;
    return image;
  }

  function card(result, onClick) {
    const element = make("button", "card");
    element.type = "button";
    element.append(frame(result));
    const caption = make("span", "caption");
    if (result.error) {
      element.append(make("span", "sign error", "error"));
      caption.append(bdi("span", "name", file(result.name)), bdi("span", "small", result.error.message), bdi("span", "small", result.error.hint || result.method));
    } else {
      if (result.warnings.length) element.append(make("span", "sign", result.warnings.length > 1 ? `${result.warnings.length} warnings` : "warning"));
      const name = make("span", "name");
      name.append(bdi("span", "class", result.label), make("span", "chance", percent(result.probability)));
      caption.append(name, bdi("span", "small", map(result)), bdi("span", "small", result.name));
      const key = byId("sort").value;
      if (key.startsWith("#")) caption.lastChild.replaceWith(bdi("span", "small", `${key.slice(1)} ${value(result, key) === null ? "none" : figure(value(result, key))}`));
    }
    element.append(caption);
    element.addEventListener("click", onClick);
    return element;
  }

  // ---- filter and sort
  const SORTS = { order: "order of the run", probability: "probability", score: "score", seconds: "time", name: "image", label: "class" };
  function value(result, key) {
    const found = key.startsWith("#") ? result.numbers[key.slice(1)] : result[key];
    return found === undefined ? null : found;
  }
  function update(keepPlace) {
    const words = byId("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [label, method, model, state] = ["label", "method", "model", "state"].map((id) => byId(id).value);
    const down = byId("direction").getAttribute("aria-pressed") === "true" ? -1 : 1;
    const key = byId("sort").value;
    shown = results.filter((r) =>
      (!label || r.label === label) && (!method || r.method === method) && (!model || r.model === model) &&
      (!state || (state === "errors" ? r.error : state === "maps" ? !r.error : r.warnings.length)) &&
      words.every((word) => r.text.includes(word)));
    shown.sort((a, b) => {
      const x = value(a, key), y = value(b, key);
      if (x === null || y === null) return (x === null) - (y === null) || a.order - b.order; // what has no value comes last
      return down * (typeof x === "string" ? x.localeCompare(y) : x - y) || a.order - b.order;
    });
    byId("count").textContent = shown.length === results.length ? `${results.length} shown` : `${shown.length} of ${results.length} shown`;
    for (const element of cards.values()) element.remove();
    cards.clear();
    current = 0;
    measure();
    if (!keepPlace && window.scrollY > byId("controls").offsetTop) window.scrollTo(0, grid.offsetTop - byId("controls").offsetHeight);
    draw();
  }

  // ---- only the cards in view
  function measure() {
    const width = grid.clientWidth;
    columns = Math.max(1, Math.floor((width + GAP) / (WIDEST + GAP)));
    cardWidth = Math.floor((width - GAP * (columns - 1)) / columns);
    if (!cardHeight || measure.width !== cardWidth) {
      const probe = card(results[0], () => {});
      Object.assign(probe.style, { width: `${cardWidth}px`, height: "auto" });
      grid.append(probe);
      cardHeight = probe.offsetHeight;
      probe.remove();
      measure.width = cardWidth;
    }
    grid.style.height = `${Math.ceil(shown.length / columns) * (cardHeight + GAP)}px`;
  }
  function draw() {
    const top = -grid.getBoundingClientRect().top;
    const step = cardHeight + GAP;
    const first = Math.max(0, Math.floor(top / step) - SPARE) * columns;
    const last = Math.min(shown.length, (Math.ceil((top + window.innerHeight) / step) + SPARE) * columns);
    for (const [number, element] of cards) {
      if ((number < first || number >= last) && !element.contains(document.activeElement)) {
        element.remove();
        cards.delete(number);
      }
    }
    for (let number = first; number < last; number++) {
      if (!cards.has(number)) place(number);
    }
  }
  function place(number) {
    const element = make("div", "place");
    element.setAttribute("role", "listitem");
    element.append(card(shown[number], () => { current = number; open(shown[number]); }));
    element.setAttribute("aria-setsize", shown.length);
    element.setAttribute("aria-posinset", number + 1);
    element.dataset.number = number;
    const x = (number % columns) * (cardWidth + GAP), y = Math.floor(number / columns) * (cardHeight + GAP);
    Object.assign(element.style, { width: `${cardWidth}px`, height: `${cardHeight}px`, transform: `translate(${x}px, ${y}px)` });
    const after = [...cards.keys()].filter((n) => n > number).sort((a, b) => a - b)[0];
    grid.insertBefore(element, after === undefined ? null : cards.get(after)); // tab order is reading order
    cards.set(number, element);
  }
  function focus(number) {
    current = Math.max(0, Math.min(shown.length - 1, number));
    if (!cards.has(current)) place(current);
    const element = cards.get(current);
    element.firstChild.focus({ preventScroll: true });
    const box = element.getBoundingClientRect(), under = (getComputedStyle(byId("controls")).position === "sticky" ? byId("controls").offsetHeight : 0) + GAP;
    if (box.top < under) window.scrollBy(0, box.top - under);
    else if (box.bottom > window.innerHeight) window.scrollBy(0, box.bottom - window.innerHeight + GAP);
    draw();
  }

  // ---- one result in full, beside the other maps of its image
  let opened = null;
  function open(result) {
    opened = result;
    const number = shown.indexOf(result); // -1: filtered out of the gallery, still worth looking at
    if (number >= 0) current = number;
    const title = result.error ? [result.name] : [result.label, ` ${percent(result.probability)} · ${map(result)}`];
    byId("heading").replaceChildren(...bdi("span", "", ...title).childNodes);
    byId("large").replaceChildren(frame(result));
    byId("recipe").replaceChildren(...recipe(result));
    const same = results.filter((r) => r.image === result.image && !r.error)
      .sort((a, b) => String(a.label).localeCompare(String(b.label)) || a.order - b.order);
    byId("beside").replaceChildren(...same.map((other) => {
      const element = card(other, () => {
        open(other);
        byId("beside").querySelector("[aria-current=true]").focus({ preventScroll: true });
      });
      element.setAttribute("aria-current", other === result);
      return element;
    }));
    byId("previous").disabled = number <= 0;
    byId("next").disabled = number < 0 || number >= shown.length - 1;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  function step(by) {
    const number = shown.indexOf(opened);
    if (number >= 0 && shown[number + by]) open(shown[number + by]);
  }
  function recipe(result) {
    const parts = [];
    if (result.error) {
      parts.push(bdi("p", "warning error", result.error.message));
      if (result.error.hint) parts.push(bdi("p", "", result.error.hint));
    }
    for (const warning of result.warnings) parts.push(bdi("p", "warning", warning));
    const list = make("dl");
    const row = (name, shownAs, ...more) => {
      if (shownAs === "" || shownAs === null || shownAs === undefined) return;
      list.append(bdi("dt", "", name), bdi("dd", "", shownAs, ...more));
    };
    const shared = recipes[result.recipe] || {};
    row("image", result.name);
    if (!result.error) row({ class: "class", out: "value" }[result.kind] || result.kind, result.label, result.target === null ? "" : ` (${result.target})`);
    row("probability", percent(result.probability));
    if (typeof result.score === "number") row(shared.score_kind || "score", figure(result.score));
    row("method", result.method);
    row("layer", result.layer);
    for (const [key, v] of Object.entries(shared.params || {})) row(key, typeof v === "object" ? JSON.stringify(v) : v);
    row("model", result.model);
    if (shared.weights) row("weights", `${shared.weights.name} ${String(shared.weights.sha256).slice(0, 12)}`);
    if (shared.input_size) row("input", shared.input_size.join(" x "));
    if (result.range) row("map", result.range.map(figure).join(" to "));
    for (const [key, v] of Object.entries({ ...result.extras, ...result.numbers })) row(key, typeof v === "object" ? JSON.stringify(v) : figure(v));
    for (const key of ["seed", "device", "precision"]) row(key, shared[key]);
    if (typeof result.seconds === "number") row("time", `${figure(result.seconds)} s`);
    if (result.files && Object.keys(result.files).length) {
      const links = make("dd");
      for (const [kind, href] of Object.entries(result.files)) {
        const link = make("a", "", kind);
        link.href = href;
        links.append(link, " ");
      }
      list.append(make("dt", "", "files"), links);
    }
    parts.push(list);
    return parts;
  }

  // ---- wiring
  function opacity(event) {
    const share = event.target.value / 100;
    for (const slider of document.querySelectorAll(".alpha")) slider.value = event.target.value;
    document.documentElement.style.setProperty("--alpha", share);
    document.documentElement.style.setProperty("--strong", Math.min(1, 2 * share));
  }
  options(byId("label"), results.map((r) => r.label), "all");
  options(byId("method"), results.map((r) => r.method), "all");
  options(byId("model"), results.map((r) => r.model), "all");
  for (const [key, text] of Object.entries(SORTS)) byId("sort").append(new Option(text, key));
  for (const name of [...new Set(results.flatMap((r) => Object.keys(r.numbers)))].sort()) byId("sort").append(new Option(name, `#${name}`));
  for (const id of ["label", "method", "model", "state", "sort"]) byId(id).addEventListener("change", () => update());
  byId("text").addEventListener("input", () => update());
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("direction").addEventListener("click", (event) => {
    const down = event.target.getAttribute("aria-pressed") !== "true";
    event.target.setAttribute("aria-pressed", down);
    event.target.textContent = down ? "descending" : "ascending";
    update();
  });
  for (const slider of document.querySelectorAll(".alpha")) slider.addEventListener("input", opacity);
  byId("close").addEventListener("click", () => dialog.close());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  dialog.addEventListener("close", () => shown.length && focus(current));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.type === "range") return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  grid.addEventListener("keydown", (event) => {
    const page = columns * Math.max(1, Math.floor(window.innerHeight / (cardHeight + GAP)) - 1);
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const from = Number(event.target.closest(".place").dataset.number);
    focus(by === Infinity ? shown.length - 1 : by === -Infinity ? 0 : from + by);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !dialog.open && !/^(INPUT|SELECT)$/.test(event.target.tagName)) {
      event.preventDefault();
      byId("text").focus();
    }
  });
  let waiting = false;
  const soon = (work) => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; work(); }); } };
  window.addEventListener("scroll", () => soon(draw), { passive: true });
  let width = 0;
  new ResizeObserver(() => { if (grid.clientWidth !== width) { width = grid.clientWidth; update(true); } }).observe(grid);
  byId("summary").addEventListener("toggle", () => soon(draw));
  update(true);
})();
