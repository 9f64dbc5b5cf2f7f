// SPDX-License-Identifier: BSD-3-Clause
// The live page, and the focal plane of a visit's page. Text of others is set as text, never as HTML.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const FROM_S = -45, TO_S = 90, BUDGET_S = 60;  // the time axis; the style sheet has the places of 0 and 60 s
const CELL = { state: 0, since: 1, latency: 2, attempt: 3, slot: 4, reason: 5 };
const byId = (id) => document.getElementById(id);

const looks = {};
for (const item of document.querySelectorAll("[data-states]")) {
  const word = item.textContent.slice(item.dataset.letter.length).trim();
  for (const state of item.dataset.states.split(" ")) {
    looks[state] = { letter: item.dataset.letter, style: item.dataset.style, word };
  }
}
const lookOf = (state) => looks[state] || { letter: "?", style: "none", word: state };

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function link(text, href) {
  const made = element("a", text);
  made.href = href;
  return made;
}
const visitLink = (group) => "/visit/" + encodeURIComponent(group);
const detectorLink = (instrument, id) => "/detector/" + encodeURIComponent(instrument) + "/" + id;
const utc = (ms) => new Date(ms).toISOString().slice(11, 19);
function age(ms) {
  const s = Math.max(0, ms / 1000);
  if (s < 100) return Math.round(s) + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  return (s / 3600).toFixed(1) + " h";
}

// --- focal plane -------------------------------------------------------------------------------------

class Plane {
  constructor(holder) {
    this.holder = holder;
    this.instrument = null;
    this.cells = new Map();
    this.geometry = [];
  }

  async show(instrument, ids) {
    if (this.instrument === instrument && ids.every((id) => this.cells.has(id))) return;
    let geometry = [];
    try {
      geometry = await (await fetch("/camera/" + encodeURIComponent(instrument))).json();
    } catch { /* the grid below will do */ }
    const missing = ids.filter((id) => !geometry.some((d) => d.id === id));
    if (!geometry.length) {
      const columns = Math.ceil(Math.sqrt(missing.length));
      geometry = missing.map((id, n) => ({ id, name: "", x: 42 * (n % columns), y: -42 * Math.floor(n / columns), w: 40, h: 40 }));
    }
    this.instrument = instrument;
    this.draw(geometry);
  }

  draw(geometry) {
    this.geometry = geometry;
    const left = Math.min(...geometry.map((d) => d.x - d.w / 2)), right = Math.max(...geometry.map((d) => d.x + d.w / 2));
    const low = Math.min(...geometry.map((d) => d.y - d.h / 2)), high = Math.max(...geometry.map((d) => d.y + d.h / 2));
    const svg = document.createElementNS(SVG, "svg");
    const margin = (right - left) / 150;
    svg.setAttribute("viewBox", [left - margin, -high - margin, right - left + 2 * margin, high - low + 2 * margin].join(" "));
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", "detectors of " + this.instrument);
    this.cells.clear();
    for (const d of geometry) {
      const g = document.createElementNS(SVG, "g"), rect = document.createElementNS(SVG, "rect"), text = document.createElementNS(SVG, "text");
      const place = { x: d.x - d.w / 2, y: -d.y - d.h / 2, width: d.w, height: d.h, rx: Math.min(d.w, d.h) / 12 };
      for (const [name, value] of Object.entries(place)) rect.setAttribute(name, value);
      rect.setAttribute("stroke-width", margin / 4);
      text.setAttribute("x", d.x);
      text.setAttribute("y", -d.y);
      text.setAttribute("font-size", Math.min(d.w, d.h) * 0.55);
      g.append(rect, text);
      g.dataset.detector = d.id;
      g.setAttribute("role", "link");
      g.setAttribute("tabindex", this.cells.size ? -1 : 0);  // one stop of the tab key; arrows do the rest
      g.addEventListener("focus", () => this.focused(d, g));
      g.addEventListener("click", () => (document.activeElement === g && this.was === g ? this.open(d.id) : (g.focus(), this.was = g)));
      g.addEventListener("keydown", (event) => this.key(event, d));
      svg.append(g);
      this.cells.set(d.id, { g, text, d });
    }
    this.holder.replaceChildren(svg);
  }

  set(id, style, letter, label) {
    const cell = this.cells.get(id);
    if (!cell) return;
    if (cell.style !== style) cell.g.setAttribute("class", style);
    if (cell.letter !== letter) cell.text.textContent = letter;
    cell.style = style;
    cell.letter = letter;
    cell.g.setAttribute("aria-label", `${cell.d.name} detector ${id}: ${label}`);
  }

  clear() {
    for (const [id, cell] of this.cells) {
      cell.style = cell.letter = undefined;
      cell.g.removeAttribute("class");
      cell.text.textContent = "";
      cell.g.setAttribute("aria-label", `${cell.d.name} detector ${id}`);
    }
  }

  focused(d, g) {
    for (const cell of this.cells.values()) cell.g.setAttribute("tabindex", -1);
    g.setAttribute("tabindex", 0);
    if (this.onFocus) this.onFocus(d);
  }

  open(id) { location.href = detectorLink(this.instrument, id); }

  key(event, from) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.open(from.id);
    } else if (step) {
      event.preventDefault();
      let best = null, least = Infinity;
      for (const d of this.geometry) {
        const along = (d.x - from.x) * step[0] + (d.y - from.y) * step[1];
        const across = Math.abs((d.x - from.x) * step[1]) + Math.abs((d.y - from.y) * step[0]);
        if (along > 1 && along + 3 * across < least) [best, least] = [d, along + 3 * across];
      }
      if (best) this.cells.get(best.id).g.focus();
    }
  }
}

// --- a visit's page ----------------------------------------------------------------------------------

for (const holder of document.querySelectorAll(".plane[data-instrument]")) {
  const plane = new Plane(holder), rows = [...document.querySelectorAll("tr[data-detector]")];
  plane.show(holder.dataset.instrument, rows.map((row) => Number(row.dataset.detector))).then(() => {
    for (const row of rows) {
      const look = lookOf(row.dataset.state);
      plane.set(Number(row.dataset.detector), "s-" + look.style, look.letter, row.dataset.state);
    }
  });
  plane.open = (id) => { location.hash = "d" + id; };
}

// --- the live page -----------------------------------------------------------------------------------

function live() {
  const plane = new Plane(byId("plane"));
  let visits = new Map(), status = {}, failures = [], away = null, connected = false, lost = null;
  let offset = 0, followNewest = true, byLatency = false, selected = null, focusedId = null, drawing = false;
  const now = () => Date.now() + offset;
  const keyOf = (visit) => visit.instrument + "\n" + visit.group;

  function use(delta) {
    offset = delta.now - Date.now();
    connected = true;
    lost = null;
    if (delta.all) [visits, status] = [new Map(), {}];
    if ("away" in delta) away = delta.away;
    Object.assign(status, delta.status);
    for (const visit of delta.visits || []) {
      const known = visits.get(keyOf(visit));
      if (known) visit.cells = Object.assign(known.cells, visit.cells);
      visits.set(keyOf(visit), visit);
    }
    if (delta.failures) failures = delta.failures;
    const order = [...visits.values()].sort((a, b) => b.received - a.received);
    visits = new Map(order.slice(0, 20).map((visit) => [keyOf(visit), visit]));
    if (followNewest || !visits.has(selected)) selected = visits.keys().next().value || null;
    if (delta.visits) drawPlane(), drawVisits();
    if (delta.status) drawNode();
    if (delta.failures) drawFailures();
    if (delta.alert && byId("stamps")) drawAlert(delta.alert);
    drawHead();
  }

  // --- parts

  function drawHead() {
    const gone = !connected || away;
    const badge = byId("state");
    badge.textContent = !connected ? "not connected" : away ? "away" : status.state || "connecting";
    badge.className = "badge " + (gone ? "gone" : status.state === "running" ? "ok" : "warn");
    byId("node").textContent = status.node || "ppdaemon";
    document.title = `${badge.textContent} - ${status.node || "ppdaemon"}`;
    byId("text").textContent = gone ? "" : (status.text || "").replace(/^\w+: /, "");
    byId("clock").textContent = new Date(now()).toISOString().slice(0, 19).replace("T", " ") + " UTC";
    const text = !connected && lost ? `No connection to ppweb since ${utc(lost)} UTC; what is below is of then. Trying again.`
      : away ? `The daemon is away since ${utc(away.since)} UTC (${age(now() - away.since)}); what is below is of then. ${away.reason}` : "";
    if (byId("away").textContent !== text) byId("away").textContent = text;
    byId("away").hidden = !text;
  }

  function drawNode() {
    byId("problems").replaceChildren(...(status.problems || []).map((problem) => {
      const item = element("li", (problem.degrades ? "! " : "") + problem.text + " ", problem.degrades ? "degrades" : "");
      item.append(element("time", `since ${utc(problem.since)} UTC`));
      return item;
    }));
    const styles = { idle: "none", starting: "queued", preparing: "prepare", waiting: "ready", rescanning: "raw", processing: "tasks",
      exporting: "spooled", quarantined: "bad", unkillable: "bad", killing: "bad", backoff: "bad", stopping: "queued", stopped: "queued" };
    const slots = Object.entries(status.slots || {});
    byId("slots").replaceChildren(...slots.map(([state, count]) => {
      const part = element("span", `${count} ${state}`, "s-" + (styles[state] || "none"));
      part.style.flexGrow = count;
      return part;
    }));
    byId("slots").setAttribute("aria-label", "slots: " + slots.map(([state, count]) => `${count} ${state}`).join(", "));
    const memory = status.memory || {}, workers = status.workers || {};
    const mb = (value) => (value == null ? "?" : value >= 9950 ? (value / 1000).toFixed(0) + " GB" : value >= 1000 ? (value / 1000).toFixed(1) + " GB" : value + " MB");
    const counts = (values) => Object.entries(values || {}).map(([name, n]) => `${n} ${name}`).join(", ") || "none";
    const figures = {
      slots: counts(status.slots) + `; at most ${status.workers_max}`,
      queue: `${status.queued} wait for a worker, ${status.open_visits} open, capacity ${status.capacity}`,
      outcomes: `${counts(status.outcomes)}, since ${status.started ? utc(status.started) : "?"} UTC`,
      memory: `workers ${mb(workers.memory)}, the largest ${mb(workers.largest)}; supervisor ${mb(memory.supervisor)}`,
      "RAM disk": `${mb(memory.ramdisk)} of ${mb(memory.ramdisk_size)}`,
      export: `${status.spooled} wait` + (status.oldest_spool_s ? ` (for ${age(status.oldest_spool_s * 1000)})` : "") + `; ${status.exporter}`,
      relay: status.relay,
      arrivals: (status.arrivals || []).map((source) => (source.live ? "" : "! ") + source.name + (source.note ? `: ${source.note}` : "")).join("; "),
      "late raws": status.late_raws,
    };
    byId("figures").replaceChildren(...Object.entries(figures).flatMap(([name, value]) => {
      const minor = ["relay", "arrivals", "late raws", "RAM disk"].includes(name) ? "minor" : "";  // not on a wall
      return [element("dt", name, minor), element("dd", value ?? "", minor)];
    }));
  }

  function drawFailures() {
    byId("failures").replaceChildren(...(failures.length ? failures.slice(0, 10) : [null]).map((failure) => {
      if (!failure) return element("li", "none");
      const item = element("li");
      item.append(element("span", "✗", "mark s-bad"), " ", element("time", utc(failure.at)), " ",
        link(failure.group, visitLink(failure.group) + "#d" + failure.detector), " ",
        link("detector " + failure.detector, detectorLink(failure.instrument, failure.detector)), " ",
        element("b", failure.outcome), ": " + failure.reason + " ", link("log", visitLink(failure.group) + "#log"));
      return item;
    }));
  }

  function drawAlert(alert) {
    const figures = ["Science", "Template", "Difference"].map((name) => {
      const figure = element("figure"), image = element("img");
      image.src = `/alert/${name}?${encodeURIComponent(alert.id)}`;
      image.alt = `${name} cutout`;
      figure.append(image, element("figcaption", name));
      return figure;
    });
    const fixed = (value, digits) => (typeof value === "number" ? value.toFixed(digits) : "?");
    const words = `${alert.id}: visit ${alert.visit}, detector ${alert.detector}, ${alert.band || ""} ra ${fixed(alert.ra, 5)}`
      + ` dec ${fixed(alert.dec, 5)}, S/N ${fixed(alert.snr, 1)}`;
    byId("stamps").replaceChildren(...figures, element("p", words));
  }

  function styleOf(cell) {
    const look = lookOf(cell[CELL.state]), latency = cell[CELL.latency];
    if (!byLatency) return ["s-" + look.style, look.letter];
    if (latency == null) return look.style === "bad" ? ["s-bad", look.letter] : ["s-none", ""];
    return ["l" + [30, 45, BUDGET_S].filter((limit) => latency >= limit).length, String(Math.round(latency))];
  }

  async function drawPlane() {
    const visit = visits.get(selected);
    document.body.classList.toggle("latency", byLatency);
    if (!visit || drawing) return;
    const shown = byId("shown");
    if (shown.dataset.key !== selected) {
      shown.replaceChildren(link(visit.group, visitLink(visit.group)), ` ${visit.survey}`);
      shown.dataset.key = selected;
      plane.clear();
    }
    drawing = true;  // the geometry may have to be fetched; what changes meanwhile is drawn after it
    const ids = Object.keys(visit.cells).map(Number);
    try { await plane.show(visit.instrument, ids); } finally { drawing = false; }
    if (visits.get(selected) !== visit) { drawPlane(); return; }
    for (const id of ids) {
      const cell = visit.cells[id];
      plane.set(id, ...styleOf(cell), cell[CELL.state] + (cell[CELL.reason] ? ", " + cell[CELL.reason] : ""));
    }
    drawDetail();
  }

  function drawDetail() {
    const visit = visits.get(selected), cell = visit && focusedId != null && visit.cells[focusedId];
    if (focusedId == null) return;
    const d = plane.geometry.find((each) => each.id === focusedId);
    const parts = [link(`${d ? d.name + " " : ""}detector ${focusedId}`, detectorLink(plane.instrument, focusedId)), ": "];
    if (!cell) parts.push("not of this visit here");
    else {
      parts.push(element("b", cell[CELL.state]), ` at ${utc(cell[CELL.since])} UTC`);
      if (cell[CELL.latency] != null) parts.push(`, ${cell[CELL.latency]} s after shutter close`);
      if (cell[CELL.attempt] > 1) parts.push(`, attempt ${cell[CELL.attempt]}`);
      if (cell[CELL.slot] != null) parts.push(`, slot ${cell[CELL.slot]}`);
      if (cell[CELL.reason]) parts.push(`: ${cell[CELL.reason]}`);
      parts.push(" ", link("times and log", visitLink(visit.group) + "#d" + focusedId));
    }
    byId("detail").replaceChildren(...parts);
  }
  plane.onFocus = (d) => { focusedId = d.id; drawDetail(); };

  const OPEN = new Set(["queued", "prepare", "ready", "raw", "tasks", "spooled"]);

  function drawVisits() {
    const list = byId("visits"), old = new Map([...list.children].map((item) => [item.dataset.key, item]));
    const items = [...visits.entries()].map(([key, visit]) => {
      const item = old.get(key) || row(key);
      fill(item, visit, key === selected);
      return item;
    });
    if (items.length !== list.children.length || items.some((item, n) => item !== list.children[n])) list.replaceChildren(...items);
    if (!items.length) list.replaceChildren(element("li", "no visit yet"));
  }

  function row(key) {
    const item = element("li"), button = element("button");
    item.dataset.key = key;
    button.type = "button";
    const line = element("span", "", "line"), budget = element("span", "", "line budget");
    line.style.left = percent(0);
    budget.style.left = percent(BUDGET_S);
    button.append(element("span", "", "span"), element("span", "", "run"), line, budget, element("span", "", "words"));
    button.addEventListener("click", () => select(key));
    item.append(button);
    return item;
  }

  const percent = (s) => (100 * (Math.min(TO_S, Math.max(FROM_S, s)) - FROM_S)) / (TO_S - FROM_S) + "%";

  function fill(item, visit, pressed) {
    const button = item.firstChild, [before, run, , , words] = button.children;
    const cells = Object.values(visit.cells), counts = new Map();
    let open = 0, slowest = 0, last = visit.received;
    for (const cell of cells) {
      const look = lookOf(cell[CELL.state]);
      counts.set(look, (counts.get(look) || 0) + 1);
      if (OPEN.has(look.style)) open += 1;
      slowest = Math.max(slowest, cell[CELL.latency] || 0);
      last = Math.max(last, cell[CELL.since]);
    }
    const end = open ? now() : last, close = visit.close;
    // Before the shutter closes nobody knows when it will: the bar grows up to the line.
    const from = close ? (visit.received - close) / 1000 : Math.max(FROM_S, (visit.received - now()) / 1000);
    const to = close ? (open || !slowest ? (end - close) / 1000 : slowest) : 0;
    before.style.left = percent(from);
    before.style.right = `calc(100% - ${percent(0)})`;
    run.style.left = percent(0);
    run.style.right = `calc(100% - ${percent(Math.max(0, to))})`;
    button.classList.toggle("over", to > BUDGET_S);
    button.setAttribute("aria-pressed", pressed);
    const time = element("b", close ? `${Math.max(0, to).toFixed(0)} s` : open ? "shutter open" : "");
    words.replaceChildren(element("span", visit.group, "name"), time, ...[...counts].map(([look, count]) => {
      const part = element("span", `${count} `);
      part.append(element("span", look.letter, "mark s-" + look.style));
      part.title = look.word;
      return part;
    }));
    button.setAttribute("aria-label", `${visit.group}: ` + [...counts].map(([look, count]) => `${count} ${look.word}`).join(", ")
      + (close ? `; ${to.toFixed(0)} s after shutter close` : ""));
  }

  // --- keys

  function select(key) {
    followNewest = false;
    selected = key;
    byId("newest").setAttribute("aria-pressed", false);
    drawPlane();
    drawVisits();
  }
  const actions = {
    n: () => {
      followNewest = true;
      selected = visits.keys().next().value || null;
      byId("newest").setAttribute("aria-pressed", true);
      drawPlane();
      drawVisits();
    },
    l: () => { byLatency = !byLatency; byId("latency").setAttribute("aria-pressed", byLatency); drawPlane(); },
    w: () => document.documentElement.classList.toggle("wall"),
    "?": () => { byId("keys").hidden = !byId("keys").hidden; },
  };
  byId("newest").addEventListener("click", actions.n);
  byId("latency").addEventListener("click", actions.l);
  byId("help").addEventListener("click", actions["?"]);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (actions[event.key]) { actions[event.key](); return; }
    const item = document.activeElement && document.activeElement.closest("#visits li");
    if (item && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      event.preventDefault();
      const next = event.key === "ArrowUp" ? item.previousElementSibling : item.nextElementSibling;
      if (next) next.querySelector("button").focus();
    }
  });

  // --- events

  function connect() {
    const source = new EventSource("/events");
    source.onmessage = (message) => use(JSON.parse(message.data));
    source.onerror = () => {
      if (lost === null) lost = now();
      connected = false;
      drawHead();
      // A browser gives up after an answer such as 503, and otherwise connects again by itself.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
    };
  }
  connect();
  setInterval(() => { drawHead(); drawVisits(); }, 1000);
}

if (byId("visits")) live();
