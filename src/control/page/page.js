// The live page. Everything it shows comes from /events; names and keys are other people's text and are set as text, never as markup.
"use strict";

const PAST_SECS = 120;
// Longer without a word from the gateway is an outage.
const SILENT_MS = 3500;

const $ = (selector, root = document) => root.querySelector(selector);

/** What has arrived. */
const view = {
  seconds: [], // of the last two minutes, oldest first
  bands_ms: [], // upper bounds of the heat map's bands; beyond the last there is one more
  now: null, // the last `now` event
  chosen: null, // name of the route whose heat map is shown; null: all
  heardAt: performance.now(),
  heard: null, // wall clock of the last event
  paused: false,
};

// --- Words and numbers

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const oneDigit = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

function number(x) {
  if (x == null) return "–";
  return Number.isInteger(x) || Math.abs(x) >= 100 ? whole.format(x) : oneDigit.format(x);
}

const percent = (share) => share == null ? "–" : share === 1 ? "100 %" : share === 0 ? "0 %" : oneDigit.format(Math.floor(share * 1000) / 10) + " %";

function millis(ms) {
  if (ms == null) return "–";
  if (ms < 0.0995) return whole.format(ms * 1000) + " µs";
  if (ms < 0.995) return ms.toFixed(2) + " ms";
  if (ms < 9.95) return ms.toFixed(1) + " ms";
  if (ms < 999.5) return whole.format(ms) + " ms";
  return (ms / 1000).toFixed(ms < 9950 ? 2 : 1) + " s";
}

function bytes(n) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (n < 1000) return (unit === "B" || n >= 100 ? whole.format(n) : n.toFixed(1)) + " " + unit;
    n /= 1024;
  }
  return n.toFixed(1) + " GiB";
}

function duration(secs) {
  if (secs == null) return "–";
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  for (const [at, [unit, size]] of units.entries()) {
    if (secs >= size) {
      const [small, smallSize] = units[at + 1] ?? ["s", 1];
      const rest = Math.floor((secs % size) / smallSize);
      return `${Math.floor(secs / size)} ${unit}` + (rest > 0 ? ` ${rest} ${small}` : "");
    }
  }
  return whole.format(Math.floor(secs)) + " s";
}

const clock = (date) => date.toLocaleTimeString([], { hour12: false });

// --- Small helpers on the document

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** As many children as items: made once, then only brought up to date, so that focus and selection stay where they are. */
function list(parent, items, create, update) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, at) => update(parent.children[at] ?? parent.appendChild(create()), item, at));
}

/** A row of a table: its first cell is the heading, the others carry their class and label. */
function row(heading, cells) {
  const tr = make("tr", { role: "row" }, heading);
  for (const [label, className] of cells) {
    const td = tr.appendChild(make("td", { className: className ?? "", role: "cell" }));
    td.dataset.label = label;
  }
  return tr;
}

const barCell = (td) => td.append(make("div", {}, make("span"), make("div", { className: "meter" }, make("i"))));

function setBar(td, share, text, high = false) {
  setText($("span", td), text);
  setMeter($(".meter", td), share, high);
}

function setMeter(meter, share, high = false) {
  $("i", meter).style.width = `${Math.min(100, Math.max(0, (share ?? 0) * 100))}%`;
  meter.classList.toggle("high", high);
}

// --- Sparklines

const SPARK = { width: PAST_SECS - 1, height: 30 };

/** Lines over the last two minutes. A second that is missing leaves a gap; the first line is filled. */
function spark(svg, lines, { max, log = false } = {}) {
  const newest = view.seconds.at(-1)?.unix_secs ?? 0;
  const values = lines.flatMap((value) => view.seconds.map(value)).filter((v) => v != null);
  const top = max ?? Math.max(1e-9, ...values);
  const bottom = log ? Math.min(top, ...values.filter((v) => v > 0)) / 1.5 : 0;
  const share = (v) => log ? Math.log(Math.max(v, bottom) / bottom) / Math.log(Math.max(top / bottom, 1.01)) : v / top;
  const y = (v) => (SPARK.height - 1 - share(v) * (SPARK.height - 2)).toFixed(1);
  svg.setAttribute("viewBox", `0 0 ${SPARK.width} ${SPARK.height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const paths = lines.map((value, at) => {
    let line = "", area = "", last = null;
    for (const second of view.seconds) {
      const v = value(second);
      if (v == null) continue;
      const x = SPARK.width - (newest - second.unix_secs);
      if (last === null || second.unix_secs - last > 2) {
        if (last !== null) area += `V${SPARK.height}`;
        line += `M${x} ${y(v)}`;
        area += `M${x} ${SPARK.height}`;
      }
      line += `L${x} ${y(v)}`;
      area += `L${x} ${y(v)}`;
      last = second.unix_secs;
    }
    if (area !== "") area += `V${SPARK.height}`;
    return at === 0 ? [["area", area], ["line", line]] : [["line second", line]];
  }).flat();
  list(svg, paths, () => document.createElementNS("http://www.w3.org/2000/svg", "path"), (path, [kind, d]) => {
    path.setAttribute("class", kind);
    path.setAttribute("d", d);
  });
}

// --- Heat maps

const LEVELS = 64;
let ramp = [];
let inkColours = {};

/** Colours of the theme, as canvases need them. */
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const rgb = (name) => colour(name).match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16));
  const stops = ["--heat-low", "--heat-mid", "--heat-high"].map(rgb);
  ramp = Array.from({ length: LEVELS }, (_, level) => {
    const at = level / (LEVELS - 1) * 2;
    const [from, to, t] = at < 1 ? [stops[0], stops[1], at] : [stops[1], stops[2], at - 1];
    return `rgb(${from.map((c, i) => Math.round(c + (to[i] - c) * t)).join(" ")})`;
  });
  inkColours = { muted: colour("--muted"), line: colour("--line") };
}

/** Counts by second and band, of one route or of all. */
function heatOf(route) {
  return view.seconds.map((second) => {
    const counts = new Map();
    for (const [at, bands] of second.heat) {
      if (route !== null && at !== route) continue;
      for (const [band, count] of bands) counts.set(band, (counts.get(band) ?? 0) + count);
    }
    return { secs: second.unix_secs, counts };
  });
}

/** A canvas as large as it is shown, in device pixels; its context and size. */
function prepare(canvas) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  return { context, width, height, scale };
}

/** Of the bands from `low` up to `high`, or of all. */
function drawCells(context, heat, area, [low, high] = [0, view.bands_ms.length]) {
  const bands = high - low + 1;
  const newest = view.seconds.at(-1)?.unix_secs ?? 0;
  const most = Math.max(1, ...heat.flatMap(({ counts }) => [...counts.values()]));
  const x = (column) => Math.round(area.left + area.width * column / PAST_SECS);
  const y = (band) => Math.round(area.top + area.height * (1 - (band - low) / bands));
  for (const { secs, counts } of heat) {
    const column = PAST_SECS - 1 - (newest - secs);
    if (column < 0) continue;
    for (const [band, count] of counts) {
      const level = most === 1 ? LEVELS - 1 : Math.round(Math.log(count) / Math.log(most) * (LEVELS - 1));
      context.fillStyle = ramp[level];
      context.fillRect(x(column), y(band + 1), Math.max(1, x(column + 1) - x(column)), Math.max(1, y(band) - y(band + 1)));
    }
  }
}

/** The bands that occur, of all routes; so few that a strip shows them apart, and at least some, so that a steady route is no wall. */
function usedBands() {
  const used = view.seconds.flatMap((second) => second.heat.flatMap(([, bands]) => bands.map(([band]) => band)));
  const low = used.reduce((a, b) => Math.min(a, b), view.bands_ms.length);
  const high = used.reduce((a, b) => Math.max(a, b), 0);
  return [Math.max(0, Math.min(low, high - 9)), high];
}

const AXIS_MS = [0.1, 1, 10, 100, 1000, 10000];
const AXIS_NAMES = ["100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s"];

/** Where a latency stands among the bands, from 0. */
const bandPosition = (ms) => Math.log2(ms / view.bands_ms[0]) + 1;

function heatArea({ width, height, scale }) {
  const [left, bottom] = [52 * scale, 18 * scale];
  return { left, top: 2, width: width - left, height: height - bottom - 2 };
}

function drawHeatMap() {
  if (view.bands_ms.length === 0) return;
  const routes = view.now?.status.routes ?? [];
  const chosen = view.chosen === null ? -1 : routes.findIndex((route) => route.name === view.chosen);
  const canvas = $("#heat-map");
  const prepared = prepare(canvas);
  const { context, width, scale } = prepared;
  const area = heatArea(prepared);
  context.font = `${11.5 * scale}px ${getComputedStyle(document.body).fontFamily}`;
  context.fillStyle = inkColours.muted;
  context.strokeStyle = inkColours.line;
  context.textBaseline = "middle";
  context.textAlign = "right";
  context.lineWidth = 1;
  AXIS_MS.forEach((ms, at) => {
    const y = Math.round(area.top + area.height * (1 - bandPosition(ms) / (view.bands_ms.length + 1))) + 0.5;
    context.fillText(AXIS_NAMES[at], area.left - 8 * scale, y);
    context.beginPath();
    context.moveTo(area.left, y);
    context.lineTo(width, y);
    context.stroke();
  });
  context.textBaseline = "bottom";
  const foot = prepared.height - 1;
  context.textAlign = "left";
  context.fillText("2 min ago", area.left, foot);
  context.textAlign = "center";
  context.fillText("1 min", area.left + area.width / 2, foot);
  context.textAlign = "right";
  context.fillText("now", width, foot);
  drawCells(context, heatOf(chosen < 0 ? null : chosen), area);
  const live = chosen < 0 ? null : view.now.live.routes[chosen];
  const last = view.seconds.at(-1);
  const [p50, p99] = live ? [live.p50_ms, live.p99_ms] : [last?.p50_ms, last?.p99_ms];
  const name = chosen < 0 ? "all routes" : view.chosen;
  setText($("#heat-route"), name);
  canvas.setAttribute("aria-label",
    p99 == null ? `Latency heat map of ${name}: no requests in the last ten seconds`
      : `Latency heat map of ${name}, two minutes. Last ten seconds: median ${millis(p50)}, 99th percentile ${millis(p99)}`);
}

const READOUT = "Two minutes, one column a second; the stronger the colour, the more requests.";

function readHeatMap(event) {
  const canvas = $("#heat-map");
  const area = heatArea({ width: canvas.clientWidth, height: canvas.clientHeight, scale: 1 });
  const column = Math.floor((event.offsetX - area.left) / area.width * PAST_SECS);
  const band = Math.floor((1 - (event.offsetY - area.top) / area.height) * (view.bands_ms.length + 1));
  const newest = view.seconds.at(-1)?.unix_secs;
  if (newest == null || column < 0 || band < 0) return setText($("#heat-readout"), READOUT);
  const secs = newest - (PAST_SECS - 1 - column);
  const routes = view.now?.status.routes ?? [];
  const chosen = routes.findIndex((route) => route.name === view.chosen);
  const count = heatOf(chosen < 0 ? null : chosen).find((second) => second.secs === secs)?.counts.get(band) ?? 0;
  const [from, to] = [view.bands_ms[band - 1], view.bands_ms[band]];
  const range = to == null ? `over ${millis(from)}` : `${millis(from ?? 0)} to ${millis(to)}`;
  setText($("#heat-readout"), `${clock(new Date(secs * 1000))}, ${range}: ${whole.format(count)} ${count === 1 ? "request" : "requests"}`);
}

// --- Panels

const sum = (values) => Object.values(values).reduce((a, b) => a + b, 0);
const requestsOf = (second) => sum(second.outcomes);
const hitsOf = (second) => (second.outcomes.hit ?? 0) + (second.outcomes.stale ?? 0);
const hitRatioOf = (second) => requestsOf(second) > 0 ? hitsOf(second) / requestsOf(second) : null;

function setValue(tile, value) {
  const [figure, unit = ""] = value.split(" ");
  const b = $(".value b", tile);
  setText(b, figure);
  if (b.nextSibling) b.nextSibling.data = " " + unit;
  else b.after(" " + unit);
}

function showTiles({ second, live }) {
  const { outcomes } = second;
  const tile = (id) => $("#" + id);
  setValue(tile("requests"), number(requestsOf(second)) + " /s");
  const fetched = requestsOf(second) - hitsOf(second) - (outcomes.error ?? 0) - (outcomes.rejected ?? 0);
  const failed = (outcomes.error ?? 0) + (outcomes.rejected ?? 0);
  setText($(".note", tile("requests")), `${number(fetched)} not from the cache, ${number(failed)} errors`);
  spark($("svg", tile("requests")), [requestsOf, (second) => requestsOf(second) - hitsOf(second)]);

  setValue(tile("hits"), percent(hitRatioOf(second)));
  setText($(".note", tile("hits")), `${number(hitsOf(second))} hits/s, ${number(outcomes.stale ?? 0)} of them stale`);
  spark($("svg", tile("hits")), [hitRatioOf], { max: 1 });

  setValue(tile("latency"), millis(second.p99_ms));
  setText($(".note", tile("latency")), `median ${millis(second.p50_ms)}`);
  spark($("svg", tile("latency")), [(second) => second.p99_ms, (second) => second.p50_ms], { log: true });

  setValue(tile("fetches"), number(second.upstream_rate) + " /s");
  setText($(".note", tile("fetches")), `${number(second.upstream_failed_rate)} failed`);
  spark($("svg", tile("fetches")), [(second) => second.upstream_rate, (second) => second.upstream_failed_rate]);

  const { cache } = live;
  setValue(tile("cache"), bytes(cache.bytes));
  const entries = `${whole.format(cache.entries)} ${cache.entries === 1 ? "entry" : "entries"}`;
  setText($(".note", tile("cache")), `of ${bytes(cache.memory)}, ${entries}, ${number(cache.eviction_rate)} evicted/s`);
  setMeter($(".meter", tile("cache")), cache.bytes / cache.memory);
}

function showUpstreams({ status, live }) {
  const create = () => make("li", { className: "upstream" },
    make("b"), make("span", { className: "queue" }), make("div", { className: "slots", ariaHidden: "true" }), make("p"), make("p", { className: "bad" }));
  list($("#upstreams ul"), status.upstreams, create, (li, upstream, at) => {
    const { name, max_concurrency: most, inflight, queue } = upstream;
    const now = live.upstreams[at] ?? {};
    setText($("b", li), name);
    setText($(".queue", li), most == null ? `${whole.format(inflight)} in flight`
      : `${whole.format(inflight)} of ${whole.format(most)} slots, ${whole.format(queue)} queued`);
    $(".queue", li).classList.toggle("waiting", queue > 0);
    showSlots($(".slots", li), inflight, most);
    const took = now.p99_ms == null ? "" : `, p50 ${millis(now.p50_ms)}, p99 ${millis(now.p99_ms)}`;
    setText($("p", li), `${number(now.rate)} requests/s, ${number(now.failed_rate)} failed${took}`);
    const out = outOfService(upstream);
    $(".bad", li).hidden = out === "";
    setText($(".bad", li), out);
  });
}

/** The servers of an upstream that get no requests, in words. */
function outOfService({ servers = [] }) {
  const down = servers.flatMap(({ addresses }) => addresses.filter(({ up }) => !up).map(({ address }) => `${address} is down`));
  const ejected = servers.filter((server) => server.ejected > 0).map(({ server }) => `${server} is left out for its failures`);
  return [...down, ...ejected].join(", ");
}

const SLOTS_DRAWN_MAX = 32;

function showSlots(slots, inflight, most) {
  slots.hidden = most == null;
  slots.classList.toggle("full", most != null && inflight >= most);
  if (most <= SLOTS_DRAWN_MAX) {
    const taken = Array.from({ length: most ?? 0 }, (_, at) => at < inflight);
    list(slots, taken, () => make("i"), (slot, taken) => slot.classList.toggle("taken", taken));
  } else {
    if (!$(".meter", slots)) slots.replaceChildren(make("div", { className: "meter" }, make("i")));
    setMeter($(".meter", slots), inflight / most, inflight >= most);
  }
}

const ROUTE_CELLS = [["latency", "strip"], ["req/s"], ["hit ratio"], ["errors/s"], ["p50"], ["p90"], ["p99"], ["p99.9"]];

function createRoute() {
  const button = make("button", { type: "button" });
  button.addEventListener("click", () => {
    view.chosen = view.chosen === button.textContent ? null : button.textContent;
    show();
  });
  const tr = row(make("th", { scope: "row" }, button), ROUTE_CELLS);
  tr.children[1].append(make("canvas", { ariaHidden: "true" }));
  return tr;
}

function showRoutes({ status, live }) {
  const bands = usedBands();
  list($("#routes tbody"), status.routes, createRoute, (tr, route, at) => {
    const now = live.routes[at] ?? {};
    const button = $("button", tr);
    setText(button, route.name);
    button.setAttribute("aria-pressed", String(view.chosen === route.name));
    const figures = [number(now.rate), percent(now.hit_ratio), number(now.error_rate), now.p50_ms, now.p90_ms, now.p99_ms, now.p999_ms];
    figures.forEach((figure, cell) => setText(tr.children[cell + 2], typeof figure === "string" ? figure : millis(figure)));
    tr.children[4].classList.toggle("bad", now.error_rate > 0);
    const { context, width, height } = prepare($("canvas", tr));
    drawCells(context, heatOf(at), { left: 0, top: 0, width, height }, bands);
  });
}

function showShards({ status, live }) {
  const create = () => {
    const tr = row(make("th", { scope: "row" }, make("span"), " ", make("span", { className: "sub" })), [["busy", "bar"], ["lag"], ["clients"], ["fetching"], ["waiting"]]);
    barCell(tr.children[1]);
    return tr;
  };
  list($("#shards tbody"), status.shards, create, (tr, shard, at) => {
    const { busy = null, lag_p99_ms = null, cpu = null } = live.shards[at] ?? {};
    const [heading, bar, lag, clients, fetching, waiting] = tr.children;
    const state = shard.ended ? "ended" : shard.stalled ? `stands still for ${duration(shard.heartbeat_age_ms / 1000)}` : "";
    setText(heading.firstChild, `${shard.shard} ${state}`.trim());
    setText($(".sub", heading), cpu == null ? "" : `CPU ${cpu}`);
    heading.classList.toggle("bad", state !== "");
    setBar(bar, busy, busy == null ? "–" : whole.format(busy * 100) + " %", busy > 0.85);
    setText(lag, millis(lag_p99_ms));
    setText(clients, whole.format(shard.connections));
    setText(fetching, whole.format(shard.inflight));
    setText(waiting, whole.format(shard.waiters));
  });
}

function showWarm({ status }) {
  const create = () => {
    const tr = row(make("th", { scope: "row" }, make("span"), " ", make("span", { className: "sub" })),
      [["filled", "bar"], ["oldest"], ["next refresh"]]);
    barCell(tr.children[1]);
    return tr;
  };
  list($("#warm tbody"), status.warm, create, (tr, warm) => {
    const [heading, bar, oldest, next] = tr.children;
    setText(heading.firstChild, warm.list);
    setText($(".sub", heading), warm.host);
    setBar(bar, warm.total > 0 ? warm.filled / warm.total : 0, `${warm.filled}/${warm.total}`, warm.filled < warm.total);
    setText(oldest, duration(warm.oldest_age_secs));
    const left = warm.next_refresh_secs;
    setText(next, left == null ? "–" : left < 0.5 ? "now" : `in ${duration(Math.ceil(left))}`);
  });
}

function createHot() {
  const button = make("button", { type: "button", textContent: "Purge…" });
  const tr = row(make("td", { role: "cell" }), [["hits/s", "bar"], ["action"]]);
  barCell(tr.children[1]);
  tr.children[2].append(button);
  button.addEventListener("click", () => {
    $("#purge-by").value = "url";
    nameKind();
    $("#purge-what").value = `http://${tr.firstElementChild.textContent}`;
    $("#purge-what").focus();
  });
  return tr;
}

function showHot({ live }) {
  const most = live.hot[0]?.rate ?? 0;
  list($("#hot tbody"), live.hot, createHot, (tr, { key, rate }) => {
    setText(tr.children[0], key);
    setBar(tr.children[1], rate / most, number(rate));
    tr.children[2].firstChild.setAttribute("aria-label", `Purge ${key}`);
  });
}

/** What the watchdog found; a gateway that does not say has at least its stalled shards. */
function findingsOf({ status }) {
  if (Array.isArray(status.findings)) return status.findings;
  return status.shards.filter((shard) => shard.stalled).map((shard) => ({
    kind: "shard_stalled", subject: `shard ${shard.shard}`, detail: `its loop stands still for ${duration(shard.heartbeat_age_ms / 1000)}`,
  }));
}

const words = (text) => String(text ?? "").replaceAll("_", " ");

/** A time as RFC 3339, or as seconds or milliseconds since 1970. */
function timeOf(value) {
  const date = typeof value === "number" ? new Date(value > 1e11 ? value : value * 1000) : new Date(value ?? NaN);
  return Number.isNaN(date.getTime()) ? null : date;
}

function showFindings(now) {
  const findings = findingsOf(now);
  $("#findings").classList.toggle("some", findings.length > 0);
  list($("#findings ul"), findings, () => make("li", {}, make("b"), " ", make("span"), make("p")), (li, finding) => {
    const since = timeOf(finding.since);
    setText($("b", li), `${words(finding.kind)}: ${finding.subject ?? ""}`);
    setText($("span", li), [finding.detail, since && `since ${clock(since)}`].filter(Boolean).join(", "));
    setText($("p", li), finding.remedy ?? "");
  });
  document.title = findings.length > 0 ? `(${findings.length}) pilotlight` : "pilotlight";
}

// --- Together

function show() {
  const { now } = view;
  if (now) {
    showFindings(now);
    showTiles(now);
    showUpstreams(now);
    showRoutes(now);
    showShards(now);
    showWarm(now);
    showHot(now);
    setText($("#about"), `${now.status.version}, up ${duration(now.status.uptime_secs)}`);
  }
  drawHeatMap();
}

/** The state of the gateway, or that there is none. Said once, not every second: it is read out. */
function showState() {
  const state = $("#state");
  const say = (level, text) => {
    state.dataset.level = level;
    setText(state, text);
  };
  const gone = performance.now() - view.heardAt > SILENT_MS;
  $("#main").classList.toggle("gone", gone);
  if (gone) return say("bad", view.heard ? `Gateway gone: nothing heard since ${clock(view.heard)}. Trying again` : "Gateway gone: no answer. Trying again");
  if (view.paused) return say("wait", `Paused at ${clock(new Date(view.now.second.unix_secs * 1000))}`);
  if (!view.now) return say("wait", "Connecting");
  const { ready, draining, reasons } = view.now.status;
  if (draining) say("warn", "Draining");
  else if (ready) say("good", "Ready");
  else say("warn", `Not ready: ${reasons.join("; ")}`);
}

function keep(second) {
  view.seconds.push(second);
  const oldest = second.unix_secs - PAST_SECS;
  view.seconds = view.seconds.filter(({ unix_secs }) => unix_secs > oldest && unix_secs <= second.unix_secs);
}

function listen() {
  const source = new EventSource("/events");
  const heard = () => {
    view.heardAt = performance.now();
    view.heard = new Date();
  };
  source.addEventListener("past", (event) => {
    heard();
    const past = JSON.parse(event.data);
    view.bands_ms = past.bands_ms;
    if (!view.paused) view.seconds = past.seconds;
  });
  source.addEventListener("now", (event) => {
    heard();
    if (!view.paused) {
      view.now = JSON.parse(event.data);
      keep(view.now.second);
      show();
    }
    showState();
  });
  source.addEventListener("error", () => {
    // The browser tries again by itself, unless the answer was a refusal.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  });
}

// --- What the operator does

async function act(form, what, options) {
  const button = $("button", form);
  const done = $("#done");
  button.disabled = true;
  let text, failed = true;
  try {
    const answer = await fetch(what, { method: "POST", headers: { "X-Pilotlight": "page" }, ...options });
    const said = await answer.json();
    failed = !answer.ok;
    if (failed) text = `Refused: ${said.detail ?? said.error}`;
    else if ("purged" in said) text = `Purged ${whole.format(said.purged)} ${said.purged === 1 ? "entry" : "entries"}.`;
    else text = `Warming ${whole.format(said.accepted)} ${said.accepted === 1 ? "URL" : "URLs"}.`;
  } catch (error) {
    text = `No answer: ${error.message}`;
  }
  button.disabled = false;
  done.classList.toggle("failed", failed);
  setText(done, `${clock(new Date())} ${text}`);
}

const KINDS = {
  url: ["URL as clients send it", "http://host/path?query"],
  prefix: ["Prefix: with a host, or a path on every host", "http://host/path or /path"],
  tag: ["Cache-Tag or Surrogate-Key", "farm-7"],
};

function nameKind() {
  const [label, example] = KINDS[$("#purge-by").value];
  setText($("#purge-label"), label);
  $("#purge-what").placeholder = example;
}

$("#purge-by").addEventListener("change", nameKind);
$("#purge").addEventListener("submit", (event) => {
  event.preventDefault();
  const [by, what] = [$("#purge-by").value, $("#purge-what").value.trim()];
  if (what !== "") act(event.target, `/purge?${by}=${encodeURIComponent(what)}`);
});
$("#warm-form").addEventListener("submit", (event) => {
  event.preventDefault();
  act(event.target, "/warm", { body: $("#warm-urls").value });
});

$("#pause").addEventListener("click", (event) => {
  if (!view.now) return;
  view.paused = !view.paused;
  event.target.setAttribute("aria-pressed", String(view.paused));
  showState();
});

const THEMES = ["auto", "light", "dark"];

/** Storage may be forbidden to the page; then the choice lasts as long as the page. */
function remembered(theme) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch {
    return theme;
  }
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  setText($("#theme"), `Theme: ${theme}`);
  readColours();
  show();
}

let theme = THEMES.includes(remembered()) ? remembered() : "auto";
$("#theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  remembered(theme);
  setTheme(theme);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(theme));

$("#heat-map").addEventListener("mousemove", readHeatMap);
$("#heat-map").addEventListener("mouseleave", () => setText($("#heat-readout"), READOUT));
window.addEventListener("resize", show);

setTheme(theme);
setInterval(showState, 500);
listen();
