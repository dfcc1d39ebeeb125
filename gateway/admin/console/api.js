// The management API: requests and event streams. The token is kept here, in memory, and nowhere else.

const base = new URL("../", document.baseURI);
const SILENCE = 45_000; // milliseconds without a byte, three of the gateway's keep-alives, after which a stream is lost
const MAX_EVENT = 8 << 20; // characters of an incomplete event
const MAX_DELAY = 10_000;

let token = null;
let asking = null;
let ask = async () => null;
let isDeclined = false;

/** Have `handler(reason)` ask for the token; it resolves to null if the person declines. */
export function onTokenNeeded(handler) {
  ask = handler;
}

/** Ask for the token again, though the person has declined to give it. */
export function askAgain() {
  isDeclined = false;
}

/** An answer that is an error, with its hint. */
export class Refused extends Error {
  constructor(status, problem) {
    super([problem?.error ?? `The gateway answered with status ${status}.`, ...(problem?.details ?? [])].join("\n"));
    this.status = status;
    this.hint = problem?.hint ?? null;
  }
}

async function fetchOnce(method, path, signal) {
  const headers = token === null ? {} : { authorization: `Bearer ${token}` };
  if (method === "POST") headers["content-type"] = "application/json";
  const body = method === "POST" ? "{}" : undefined;
  const options = { method, headers, body, signal, cache: "no-store", credentials: "omit", redirect: "error" };
  return await fetch(new URL(path, base), options);
}

async function renewToken(used, isAction) {
  if (token !== used) return true; // another request has asked meanwhile
  if (isDeclined && !isAction) return false;
  asking ??= ask(used === null ? "" : "The gateway does not accept the token, or no longer.").finally(() => (asking = null));
  const given = await asking;
  isDeclined = given === null;
  if (given !== null) token = given;
  return given !== null;
}

async function open(method, path, signal) {
  for (;;) {
    const used = token;
    const response = await fetchOnce(method, path, signal);
    if (response.ok) return response;
    const problem = await response.json().catch(() => null);
    if (response.status !== 401 || !(await renewToken(used, method !== "GET"))) throw new Refused(response.status, problem);
  }
}

/** Send a request and return the document of the answer. Raises Refused, and TypeError without a connection. */
export async function request(method, path, signal = undefined) {
  return await (await open(method, path, signal)).json();
}

export const get = (path, signal) => request("GET", path, signal);
export const post = (path) => request("POST", path);

/** Return the path of a server's resource. */
export const serverPath = (name, rest = "") => `servers/${encodeURIComponent(name)}${rest}`;

async function readEvents(path, signal, watch, opened, onEvent) {
  const response = await open("GET", path, signal);
  opened();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    watch();
    const events = (buffered + value).split("\r\n\r\n");
    buffered = events.pop();
    if (buffered.length > MAX_EVENT) throw new Error("an event is too large");
    for (const event of events) {
      const lines = event.split("\r\n");
      const kind = lines.find((line) => line.startsWith("event: "))?.slice(7);
      const data = lines.find((line) => line.startsWith("data: "))?.slice(6);
      if (kind !== undefined && data !== undefined) onEvent(kind, JSON.parse(data));
    }
  }
}

/**
 * Read an event stream until `signal` is aborted, and connect again, with growing delays, whenever it ends.
 *
 * `onState` is called with "open", or with "lost" and the milliseconds until the next attempt. It ends with Refused if
 * the gateway refuses the stream for good.
 */
export async function follow(path, signal, onEvent, onState) {
  let delay = 500;
  while (!signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop);
    let timer;
    const watch = () => {
      clearTimeout(timer);
      timer = setTimeout(stop, SILENCE);
    };
    try {
      const opened = () => {
        delay = 500;
        watch();
        onState("open");
      };
      await readEvents(path, attempt.signal, watch, opened, onEvent);
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && [401, 404].includes(error.status)) {
        onState("refused", 0, error);
        return;
      }
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
      attempt.abort();
    }
    if (signal.aborted) return;
    const wait = delay * (0.75 + Math.random() / 2);
    delay = Math.min(delay * 2, MAX_DELAY);
    onState("lost", wait);
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
