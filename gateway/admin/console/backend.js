// One server: its state and history, configuration, processes, stderr, and what it offers.
import { follow, get, post, serverPath } from "./api.js";
import { confirm } from "./dialogs.js";
import { h, keyed, setText, throttled } from "./dom.js";
import { bytes, clock, duration, milliseconds, since } from "./format.js";
import { badge, setBadge } from "./overview.js";
import { schemaSection } from "./schema.js";
import { store, subscribe } from "./store.js";

const PROCESSES_INTERVAL = 2_000; // milliseconds
const DETAIL_INTERVAL = 5_000;
const KEPT_LINES = 500;
const RENDER_INTERVAL = 250;
const SHOWN_ITEMS = 100; // of a kind at first

const table = (label, heads, body) =>
  h(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": label },
    h("table", {}, h("thead", {}, h("tr", {}, heads.map((title) => h("th", { scope: "col" }, title)))), body),
  );

const section = (title, ...content) => h("section", { "aria-label": title }, h("h2", {}, title), ...content);

function fillRows(body, rows, keyOf, textsOf) {
  keyed(
    body,
    rows,
    keyOf,
    (row) => h("tr", {}, textsOf(row).map(() => h("td"))),
    (element, row) => textsOf(row).forEach((text, index) => setText(element.children[index], text)),
  );
}

// Stderr: a ring of lines, drawn at most four times a second, and not while the reader has scrolled up.

function stderrSection(name, signal) {
  const log = h("pre", { class: "log", tabindex: "0", role: "log", "aria-live": "off", "aria-label": "stderr" });
  const note = h("p", { class: "hint" }, "Waiting for output");
  const lines = [];
  let dropped = 0;
  let count = 0;
  const render = throttled(() => {
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const skipped = dropped ? `; ${dropped} lines were left out, since they came too fast` : "";
    setText(note, `${count} lines${skipped}${isAtEnd ? "" : "; scroll to the end to continue"}`);
    if (!isAtEnd && log.firstChild) return;
    log.textContent = lines.join("\n");
    log.scrollTop = log.scrollHeight;
  }, RENDER_INTERVAL);
  const onEvent = (_kind, event) => {
    for (const line of event.lines) lines.push(line);
    lines.splice(0, lines.length - KEPT_LINES);
    count += event.lines.length;
    dropped += event.dropped;
    render();
  };
  log.addEventListener("scroll", render, { passive: true });
  follow(serverPath(name, "/stderr"), signal, onEvent, () => {});
  return section("stderr", note, log);
}

function processesSection(name, signal) {
  const body = h("tbody");
  const before = new Map();
  const note = h("p", { class: "hint" });
  const refresh = async () => {
    const now = performance.now();
    const { processes } = await get(serverPath(name, "/processes"), signal);
    fillRows(
      body,
      processes.map((one) => {
        const last = before.get(one.pid);
        const share = last ? Math.max(0, (one.cpu - last.cpu) / ((now - last.at) / 1000)) * 100 : null;
        return { ...one, share };
      }),
      (one) => one.pid,
      (one) => [
        one.pid,
        one.pid === one.child ? one.name : `${one.name} (below ${one.child})`,
        one.share === null ? "" : `${one.share.toFixed(1)} %`,
        `${one.cpu.toFixed(1)} s`,
        bytes(one.memory),
        duration(one.age),
      ],
    );
    before.clear();
    for (const one of processes) before.set(one.pid, { cpu: one.cpu, at: now });
    setText(note, processes.length ? "" : "No process of this server runs on this machine.");
    note.hidden = processes.length > 0;
  };
  repeat(refresh, PROCESSES_INTERVAL, signal);
  return section("Processes", note, table("Processes", ["PID", "Name", "CPU", "CPU time", "Memory", "Age"], body));
}

/** Call `refresh` at an interval, until `signal` is aborted; a hidden page asks for nothing. */
async function repeat(refresh, interval, signal) {
  while (!signal.aborted) {
    if (!document.hidden) await refresh().catch(() => {}); // the stream of events notices a lost connection
    await new Promise((resolve) => setTimeout(resolve, interval));
  }
}

function itemView({ name, own, era, item }) {
  const found = item ?? {};
  const title = typeof found.title === "string" ? found.title : "";
  const content = h("details", { class: "item" }, h("summary", {}, h("code", {}, name), title ? ` ${title}` : ""));
  content.addEventListener(
    "toggle",
    () => {
      const { inputSchema, outputSchema, description, ...rest } = found;
      content.append(
        h("p", {}, "Own name: ", h("code", {}, own), era ? ` (${era} clients only)` : ""),
        ...(typeof description === "string" ? [h("p", { class: "text" }, description)] : []),
        ...(inputSchema === undefined ? [] : [schemaSection("Input schema", inputSchema)]),
        ...(outputSchema === undefined ? [] : [schemaSection("Output schema", outputSchema)]),
        schemaSection("Everything else", rest),
      );
    },
    { once: true },
  );
  return content;
}

function itemsSection(items) {
  const kinds = [
    ["Tools", items.tools],
    ["Prompts", items.prompts],
    ["Resources", items.resources],
    ["Resource templates", items.templates],
  ];
  return kinds
    .filter(([, found]) => found.length)
    .map(([title, found]) => {
      const list = h("div", {}, found.slice(0, SHOWN_ITEMS).map(itemView));
      const rest = found.slice(SHOWN_ITEMS);
      const more = h("button", { type: "button" }, `Show ${rest.length} more`);
      more.addEventListener("click", () => {
        more.remove();
        list.append(...rest.map(itemView));
      });
      return section(`${title} (${found.length})`, list, rest.length ? more : null);
    });
}

function actions(name, refresh) {
  const result = h("p", { role: "status" });
  const act = (label, path, question) => {
    const button = h("button", { type: "button" }, label);
    button.addEventListener("click", async () => {
      if (question && !(await confirm(question, label))) return;
      button.disabled = true;
      setText(result, `${label}: in progress`);
      try {
        const answer = await post(path);
        const late = typeof answer.not_ready === "string" ? `; it is not ready: ${answer.not_ready}` : "";
        setText(result, `${label}: done${late}`);
      } catch (error) {
        setText(result, `${label}: ${error.message}${error.hint ? ` (${error.hint})` : ""}`);
      }
      button.disabled = false;
      refresh();
    });
    return button;
  };
  return [
    h(
      "div",
      { class: "actions" },
      act("Restart", serverPath(name, "/restart"), `Restart ${name}?`),
      act("Enable", serverPath(name, "/enable"), null),
      act("Disable", serverPath(name, "/disable"), `Disable ${name}? Clients can no longer use it.`),
      act("Reload configuration", "reload", null),
    ),
    result,
  ];
}

/** Show the page of one server in `main`; return the function that ends it. */
export function backendPage(main, name) {
  const closing = new AbortController();
  const state = badge("");
  const facts = h("dl");
  const states = h("tbody");
  const errors = h("tbody");
  const config = h("pre", { tabindex: "0", role: "group", "aria-label": "Configuration" });
  const items = h("div");
  const problem = h("p", { class: "problem", role: "status" });

  const showFacts = (detail) => {
    const { status, latency } = detail;
    const pairs = [
      ["Since", status ? `${clock(status.since)} (${duration(since(status.since))})` : ""],
      ["Origin", detail.origin],
      ["Era", status?.era],
      ["Protocol", detail.protocol_version],
      ["Server", [detail.server_info?.name, detail.server_info?.version].filter((one) => one).join(" ")],
      ["Restarts", status?.restarts],
      ["In flight, queued", status ? `${status.in_flight}, ${status.queued}` : ""],
      ["Calls, failed", `${detail.calls}, ${detail.failed}`],
      ["p50, p99", latency.calls ? `${milliseconds(latency.p50)}, ${milliseconds(latency.p99)}` : ""],
      ["Last error", status?.last_error],
      ["What to do", detail.hint],
      ["Warnings", status?.warnings.join("; ")],
    ].filter(([, value]) => value !== null && value !== undefined && value !== "");
    keyed(
      facts,
      pairs,
      ([title]) => title,
      ([title]) => h("div", {}, h("dt", {}, title), h("dd")),
      (element, [, value]) => setText(element.lastChild, value),
    );
  };

  let offered = null;
  const refreshItems = async () => {
    const found = await get(serverPath(name, "/items"), closing.signal);
    const text = JSON.stringify(found);
    if (text !== offered) items.replaceChildren(...itemsSection(found)); // else open sections would close
    offered = text;
  };
  const refresh = async () => {
    try {
      const detail = await get(serverPath(name), closing.signal);
      setText(problem, "");
      setBadge(state, detail.status?.state ?? "disabled");
      showFacts(detail);
      fillRows(states, detail.states.toReversed(), (one) => one.at + one.state, (one) => [
        clock(one.at), one.state, one.reason,
      ]);
      fillRows(errors, detail.errors.toReversed(), (one) => one.at + one.call + one.error, (one) => [
        clock(one.at), one.call ?? "start or session", one.error, one.code,
      ]);
      setText(config, JSON.stringify(detail.config, null, 2));
      await refreshItems();
    } catch (error) {
      if (!closing.signal.aborted) setText(problem, error.message);
    }
  };

  main.append(
    h("h1", {}, name, " ", state),
    problem,
    ...actions(name, refresh),
    facts,
    h(
      "div",
      { class: "columns" },
      section("States", table("States", ["Time", "State", "Reason"], states)),
      section("Errors", table("Errors", ["Time", "Call", "Error", "Code"], errors)),
    ),
    processesSection(name, closing.signal),
    stderrSection(name, closing.signal),
    items,
    section("Configuration", config),
  );
  repeat(refresh, DETAIL_INTERVAL, closing.signal);
  let shown = "";
  const unsubscribe = subscribe((what) => {
    const line = store.servers.get(name);
    if (what !== "servers" || !line || shown === line.state + line.since) return;
    shown = line.state + line.since;
    setBadge(state, line.state);
    refresh();
  });
  return () => {
    closing.abort();
    unsubscribe();
  };
}
