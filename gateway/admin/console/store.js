// What all pages share: the servers, the history and the latest events. Pages subscribe, and are called when it changes.
import { follow, get } from "./api.js";

const POLL = 5_000; // milliseconds: the interval of the gateway's samples
const SOON = 100; // milliseconds in which changes of state are read together
const KEPT_EVENTS = 200;
export const RECENT = 180; // samples of 15 minutes
const TOTALS = ["calls", "failed", "in_flight", "memory", "children_memory", "processes"];

export const store = {
  servers: new Map(),
  loaded: false,
  events: [],
  seen: 0, // events in all, for their keys
  dropped: 0,
  history: null,
  series: new Map(), // by server: {calls, p50, p99}, the last entry being of the last sample
  totals: {}, // of the gateway: a list for each of TOTALS
};

const listeners = new Set();
const changed = (what) => listeners.forEach((listener) => listener(what));

/** Have `listener(what)` called with "servers", "history" or "events"; return the function that undoes it. */
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Read all servers. */
export async function refreshServers() {
  const { details } = await get("servers");
  store.servers = new Map(Object.entries(details).map(([name, line]) => [name, { name, ...line }]));
  store.loaded = true;
  changed("servers");
}

/** Read the samples since the last ones. */
export async function refreshHistory() {
  const before = store.history;
  let found = await get(before ? `history?after=${before.recent.number}` : "history");
  if (before && found.started !== before.started) found = await get("history"); // another run of the gateway
  const isMore = before !== null && found.started === before.started;
  const length = isMore ? found.recent.number - before.recent.number : 0;
  const series = new Map();
  const names = new Set([...Object.keys(found.backends), ...(isMore ? store.series.keys() : [])]);
  for (const name of names) {
    const old = isMore ? store.series.get(name) : undefined;
    const fresh = found.backends[name] ?? { calls: [], p50: [], p99: [] };
    const joined = {};
    for (const column of ["calls", "p50", "p99"]) {
      const gap = isMore ? Math.max(0, length - fresh[column].length) : 0;
      joined[column] = [...(old?.[column] ?? []), ...Array(gap).fill(0), ...fresh[column]].slice(-RECENT);
    }
    if (joined.calls.some((calls) => calls)) series.set(name, joined);
  }
  for (const column of TOTALS) {
    const old = isMore ? store.totals[column] : [];
    store.totals[column] = [...old, ...found.recent[column]].slice(-RECENT);
  }
  store.series = series;
  store.history = found;
  changed("history");
}

let pending = null;
function refreshSoon() {
  pending ??= setTimeout(() => {
    pending = null;
    refreshServers().catch(() => {}); // the stream of events notices a lost connection
  }, SOON);
}

function onEvent(kind, event) {
  store.dropped += event.dropped ?? 0;
  store.events.push({ ...event, kind, key: ++store.seen });
  if (store.events.length > 2 * KEPT_EVENTS) store.events.splice(0, store.events.length - KEPT_EVENTS);
  if (kind === "state") {
    const line = store.servers.get(event.server);
    if (line) Object.assign(line, { state: event.state, since: event.at });
    changed("servers");
  }
  if (kind !== "call") refreshSoon();
  changed("events");
}

async function poll(signal) {
  while (!signal.aborted) {
    if (!document.hidden) {
      await Promise.allSettled([refreshServers(), refreshHistory()]); // the stream notices a lost connection
    }
    await new Promise((resolve) => setTimeout(resolve, POLL));
  }
}

/** Keep the store up to date until `signal` is aborted; `onState` is that of `follow`. */
export async function run(signal, onState) {
  const opened = async (state, ...rest) => {
    onState(state, ...rest);
    if (state === "open") await refreshServers().catch(() => {});
  };
  await Promise.all([follow("events", signal, onEvent, opened), poll(signal)]);
}
