// The live tree: client session, call, backend, process; each call can be cancelled.
import { get, post } from "./api.js";
import { confirm } from "./dialogs.js";
import { h, keyed, setText } from "./dom.js";
import { duration } from "./format.js";

const INTERVAL = 1_000; // milliseconds
const SHOWN_CALLS = 300;

function makeSession() {
  return h("li", {}, h("h3"), h("ul", { class: "calls" }));
}

function makeCall(call, cancel) {
  const button = h("button", { type: "button", "aria-label": `Cancel call ${call.call}` }, "Cancel");
  button.addEventListener("click", () => cancel(call));
  return h(
    "li",
    { class: "call" },
    h("span", { class: "what" }),
    h("span", { class: "where" }, h("a", { href: `#/backend/${encodeURIComponent(call.backend)}` }, call.backend), h("span")),
    h("span", { class: "when" }),
    button,
  );
}

const WAITS = {
  queue: "in the queue",
  start: "waiting for the start of the server",
  backend: "at the server",
  client: "waiting for the client's answer",
  delivery: "being delivered",
};

function updateCall(element, call) {
  const [what, where, when] = element.children;
  setText(what, `${call.call}: ${call.method} ${call.name}`);
  setText(where.lastChild, call.pid === null ? "" : `, process ${call.pid}`);
  const left = call.deadline_in > 0 ? `deadline in ${duration(call.deadline_in)}` : "deadline passed";
  setText(when, `${WAITS[call.waits_for] ?? call.waits_for}, age ${duration(call.age)}, ${left}`);
}

function updateSession(element, session, cancel) {
  const names = [session.client ?? "unnamed client", session.principal ? `principal ${session.principal}` : ""];
  const label = session.session ? `session ${session.session}` : "no session";
  setText(element.firstChild, [...names, label, session.era].filter((part) => part).join(", "));
  keyed(element.lastChild, session.calls, (call) => call.call, (call) => makeCall(call, cancel), updateCall);
}

/** Show the live tree in `main`; return the function that ends it. */
export function livePage(main) {
  const closing = new AbortController();
  const note = h("p", { class: "hint", role: "status" });
  const result = h("p", { role: "status" });
  const sessions = h("ul", { class: "tree" });
  const backends = h("tbody");

  const cancel = async (call) => {
    if (!(await confirm(`Cancel call ${call.call} (${call.name || call.method})?`, "Cancel the call"))) return;
    try {
      await post(`calls/${call.call}/cancel`);
      setText(result, `Call ${call.call} was cancelled.`);
    } catch (error) {
      setText(result, `Call ${call.call}: ${error.message}`);
    }
    refresh().catch(() => {});
  };

  const refresh = async () => {
    const tree = await get("tree", closing.signal);
    const count = tree.sessions.reduce((sum, session) => sum + session.calls.length, 0);
    let left = SHOWN_CALLS;
    const shown = tree.sessions.map((session) => {
      const calls = session.calls.toSorted((a, b) => a.call - b.call).slice(0, Math.max(0, left));
      left -= calls.length;
      return { ...session, calls };
    });
    setText(note, `${count} active ${count === 1 ? "call" : "calls"}${count > SHOWN_CALLS ? `, of which ${SHOWN_CALLS} are shown` : ""}`);
    keyed(
      sessions,
      shown.filter((session) => session.calls.length),
      (session) => JSON.stringify([session.session, session.principal, session.era]),
      makeSession,
      (element, session) => updateSession(element, session, cancel),
    );
    const rows = tree.backends.filter((one) => one.processes.length || one.in_flight || one.queued);
    keyed(
      backends,
      rows,
      (one) => one.name,
      (one) => h("tr", {}, h("th", { scope: "row" }, one.name), Array.from({ length: 4 }, () => h("td"))),
      (element, one) => {
        const texts = [one.state, one.in_flight, one.queued, one.processes.join(", ")];
        texts.forEach((text, index) => setText(element.children[index + 1], text));
      },
    );
  };

  const heads = ["Server", "State", "In flight", "Queued", "Processes"];
  main.append(
    h("h1", {}, "Live"),
    note,
    result,
    h("section", { "aria-label": "Calls" }, h("h2", {}, "Sessions and their calls"), sessions),
    h(
      "section",
      { "aria-label": "Processes" },
      h("h2", {}, "Servers and their processes"),
      h(
        "div",
        { class: "scroll", tabindex: "0", role: "group", "aria-label": "Servers and their processes" },
        h("table", {}, h("thead", {}, h("tr", {}, heads.map((title) => h("th", { scope: "col" }, title)))), backends),
      ),
    ),
  );
  (async () => {
    while (!closing.signal.aborted) {
      if (!document.hidden) await refresh().catch((error) => closing.signal.aborted || setText(note, error.message));
      await new Promise((resolve) => setTimeout(resolve, INTERVAL));
    }
  })();
  return () => closing.abort();
}
