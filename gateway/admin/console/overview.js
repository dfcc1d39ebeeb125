// The overview: all servers in a table, and the latest events.
import { h, keyed, setAttribute, setText, throttled } from "./dom.js";
import { bytes, clock, duration, milliseconds, rate, since } from "./format.js";
import { draw, sparkline } from "./sparkline.js";
import { RECENT, store, subscribe } from "./store.js";

const NEW_ROWS = 40; // made in one frame, so that no frame is long
const SHOWN_EVENTS = 50;
const EVENTS_INTERVAL = 250; // milliseconds between two renderings of the events
const collator = new Intl.Collator("en", { numeric: true });

const lastOf = (name, column) => store.series.get(name)?.[column].at(-1) ?? null;
const latest = (name, column) => store.series.get(name)?.[column].findLast((value) => value > 0) ?? null;
const shown = (microseconds) => (microseconds === null ? "" : milliseconds(microseconds / 1000));
const callRate = (name) => (lastOf(name, "calls") ?? 0) / (store.history?.recent.interval ?? 5);
const uptime = (line) => (line.state === "ready" ? since(line.since) : null);

// Title, the value to sort by, and whether it is a number.
const COLUMNS = [
  ["Server", (line) => line.name, false],
  ["State", (line) => line.state, false],
  ["Era", (line) => line.era ?? "", false],
  ["Transport", (line) => line.transport, false],
  ["Uptime", (line) => uptime(line) ?? -1, true],
  ["Restarts", (line) => line.restarts, true],
  ["In flight", (line) => line.in_flight, true],
  ["Queued", (line) => line.queued, true],
  ["Calls/s", (line) => callRate(line.name), true],
  ["p50, p99", (line) => latest(line.name, "p99") ?? -1, true],
  ["Last error", (line) => line.last_error ?? "", false],
];
const STATES = ["ready", "starting", "stopped", "backoff", "failed", "draining", "disabled"];

// They outlive the page, so that coming back shows the same rows.
const view = { column: 0, isDescending: false, text: "", state: "" };

function wantedRows() {
  const text = view.text.toLowerCase();
  const [, valueOf, isNumber] = COLUMNS[view.column];
  const matches = (line) =>
    (!view.state || line.state === view.state) &&
    [line.name, line.transport, line.era, line.last_error].some((part) => part?.toLowerCase().includes(text));
  const compare = isNumber ? (a, b) => a - b : collator.compare;
  const rows = [...store.servers.values()].filter(matches).map((line) => [valueOf(line), line]);
  const sign = view.isDescending ? -1 : 1;
  return rows.sort(([a], [b]) => sign * compare(a, b)).map(([, line]) => line);
}

/** Return a badge for a state. */
export const badge = (state) => h("span", { class: `state ${STATES.includes(state) ? state : ""}` }, state);

/** Change a badge. */
export function setBadge(element, state) {
  setText(element, state);
  setAttribute(element, "class", `state ${STATES.includes(state) ? state : ""}`);
}

function makeRow(line, observer) {
  const chart = (lines) => [h("span", { class: "number" }), sparkline(lines)];
  const row = h(
    "tr",
    {},
    h("th", { scope: "row" }, h("a", { href: `#/backend/${encodeURIComponent(line.name)}` }, line.name)),
    h("td", {}, badge(line.state)),
    ...Array.from({ length: 6 }, (_, index) => h("td", { class: index > 1 ? "right" : null })),
    h("td", {}, chart(1)),
    h("td", {}, chart(2)),
    h("td", { class: "error" }, h("span", {}), h("span", { class: "hint" })),
  );
  observer.observe(row);
  return row;
}

function updateRow(row, line, visible) {
  const cells = row.children;
  setBadge(cells[1].firstChild, line.state);
  const texts = [line.era, line.transport, duration(uptime(line)), line.restarts, line.in_flight, line.queued];
  texts.forEach((text, index) => setText(cells[index + 2], text));
  setText(cells[10].children[0], line.last_error);
  setText(cells[10].children[1], line.hint);
  row.server = line.name;
  if (visible.has(row)) drawCharts(row);
}

function drawCharts(row) {
  const found = store.series.get(row.server) ?? { calls: [], p50: [], p99: [] };
  if (row.drawn === found && row.sample === store.history?.recent.number) return;
  [row.drawn, row.sample] = [found, store.history?.recent.number];
  const [calls, cells] = [row.children[8], row.children[9]];
  const now = `${rate(callRate(row.server))} calls per second`;
  const [p50, p99] = [latest(row.server, "p50"), latest(row.server, "p99")].map(shown);
  setText(calls.firstChild, rate(callRate(row.server)));
  setText(cells.firstChild, p99 ? `${p50}, ${p99}` : "");
  draw(calls.lastChild, [found.calls], RECENT, `Calls in 15 minutes; now ${now}`);
  const times = [found.p50, found.p99].map((values) => values.map((value) => value || null));
  draw(cells.lastChild, times, RECENT, p99 ? `Last p50 ${p50}, last p99 ${p99}` : "No calls");
}

// Title, column of the samples, and its last value in words.
const perSecond = (value) => rate(value / store.history.recent.interval);
const TOTALS = [
  ["Calls/s", "calls", perSecond],
  ["Failed/s", "failed", perSecond],
  ["In flight", "in_flight", String],
  ["Memory of the gateway", "memory", bytes],
  ["Memory of servers", "children_memory", bytes],
  ["Processes of servers", "processes", String],
];

function makeTotals() {
  const entries = TOTALS.map(([title]) => h("div", {}, h("dt", {}, title), h("dd", {}, h("span", {}), sparkline(1))));
  const render = () => {
    TOTALS.forEach(([title, column, inWords], index) => {
      const values = store.totals[column] ?? [];
      if (!values.length) return;
      const [text, chart] = entries[index].lastChild.children;
      setText(text, inWords(values.at(-1)));
      draw(chart, [values], RECENT, `${title} in 15 minutes; now ${inWords(values.at(-1))}`);
    });
  };
  return [h("dl", { class: "totals" }, entries), render];
}

function describe(event) {
  const isFailure = ["backoff", "failed"].includes(event.state); // else the reason is that of an earlier failure
  if (event.kind === "state") return [event.server, event.state, (isFailure && event.reason) || ""];
  if (event.kind === "reload") return ["configuration", event.reload, event.reason ?? `by ${event.by}`];
  return [event.server, event.outcome, `${event.name || event.method}, ${milliseconds(event.ms)}`];
}

function makeEvents() {
  const body = h("tbody");
  const note = h("p", { class: "hint" });
  const kinds = h("input", { type: "checkbox", id: "calls", checked: true, onchange: () => render() });
  const render = () => {
    const events = kinds.checked ? store.events : store.events.filter((event) => event.kind !== "call");
    const last = events.slice(-SHOWN_EVENTS).reverse();
    keyed(
      body,
      last,
      (event) => event.key,
      (event) => h("tr", {}, [clock(event.at), ...describe(event)].map((text) => h("td", {}, String(text)))),
      () => {},
    );
    setText(note, store.dropped ? `${store.dropped} events were not sent, since this page was too slow.` : "");
    note.hidden = !store.dropped;
  };
  const heads = ["Time", "Subject", "Event", "Detail"].map((title) => h("th", { scope: "col" }, title));
  const section = h(
    "section",
    { "aria-labelledby": "events-title" },
    h("h2", { id: "events-title" }, "Recent events"),
    h("p", { class: "tools" }, kinds, " ", h("label", { for: "calls" }, "Calls")),
    note,
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "group", "aria-label": "Recent events" },
      h("table", { class: "events" }, h("thead", {}, h("tr", {}, heads)), body),
    ),
  );
  return [section, throttled(render, EVENTS_INTERVAL)];
}

/** Show the overview in `main`; return the function that ends it. */
export function overviewPage(main) {
  const visible = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) visible.delete(target);
      else {
        visible.add(target);
        drawCharts(target);
      }
    }
  });
  const body = h("tbody");
  const count = h("p", { class: "hint", role: "status" });
  const heads = COLUMNS.map(([title], index) => {
    const sort = () => {
      view.isDescending = view.column === index ? !view.isDescending : COLUMNS[index][2];
      view.column = index;
      render();
    };
    const place = index > 3 && index < 8 ? "right" : null;
    return h("th", { scope: "col", class: place }, h("button", { type: "button", onclick: sort }, title));
  });
  const text = h("input", { type: "search", id: "filter", value: view.text });
  const state = h(
    "select",
    { id: "state" },
    ["", ...STATES].map((name) => h("option", { value: name, selected: name === view.state }, name || "any state")),
  );
  const filter = () => {
    [view.text, view.state] = [text.value, state.value];
    render();
  };
  text.addEventListener("input", filter);
  state.addEventListener("change", filter);
  const render = throttled(() => {
    heads.forEach((head, index) => {
      const order = view.isDescending ? "descending" : "ascending";
      setAttribute(head, "aria-sort", index === view.column ? order : null);
    });
    const rows = wantedRows();
    const update = (row, line) => updateRow(row, line, visible);
    if (!keyed(body, rows, (line) => line.name, (line) => makeRow(line, observer), update, NEW_ROWS)) render();
    for (const row of visible) if (!row.isConnected) visible.delete(row);
    const all = store.servers.size;
    setText(count, store.loaded ? `${rows.length === all ? all : `${rows.length} of ${all}`} servers` : "Loading");
  });
  const [events, renderEvents] = makeEvents();
  const [totals, renderTotals] = makeTotals();
  main.append(
    h("h1", {}, "Overview"),
    totals,
    h(
      "div",
      { class: "tools" },
      h("label", { for: "filter" }, "Filter"),
      text,
      h("label", { for: "state" }, "State"),
      state,
      count,
    ),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "group", "aria-label": "Servers" },
      h("table", { class: "servers" }, h("thead", {}, h("tr", {}, heads)), body),
    ),
    events,
  );
  const unsubscribe = subscribe((what) => {
    if (what === "history") renderTotals();
    if (what === "events") renderEvents();
    else render();
  });
  const clockTimer = setInterval(render, 1_000); // uptimes
  render();
  renderEvents();
  renderTotals();
  return () => {
    unsubscribe();
    clearInterval(clockTimer);
    observer.disconnect();
  };
}
