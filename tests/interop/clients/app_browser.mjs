// A host of MCP Apps that shows pages in Chromium: `node app_browser.mjs MODULES JOB`.
//
// MODULES is the folder of node modules with the SDK and @modelcontextprotocol/ext-apps. JOB is JSON: `browser`, its
// command; `mode`; `picture`, a file to write, or null; `shows`: {title, target, tool, click, calls}, where target is {url}
// or {command, args}, click the selector of a button of the page or null, and calls the number of calls to wait for.
// Shows of one target share one connection. Each tool is called and its page shown in a frame, with an `AppBridge` behind
// it; then the button is clicked. Prints one entry for each show: `before` and `after`, the text of its page, and `called`,
// the tools that its script has called by then.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { pathToFileURL } from "node:url";

const WITHIN = 30_000; // milliseconds until a page has done what it was asked for
const [modules, text] = process.argv.slice(2);
const job = JSON.parse(text);
const load = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/${path}`));

const { Client, StreamableHTTPClientTransport } = await load("client/dist/index.mjs");
const { StdioClientTransport } = await load("client/dist/stdio.mjs");
const { AppBridge, RESOURCE_MIME_TYPE, getToolUiResourceUri } = await load("ext-apps/dist/src/app-bridge.js");

const info = { name: "interop", version: "1.0.0" };
const HOST = `<!doctype html><style>
  body { font: 15px sans-serif; margin: 0; padding: 16px; display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
  figure { margin: 0; } figcaption { padding: 0 0 6px; font-weight: bold; }
  iframe { width: 100%; height: 440px; border: 1px solid #999; border-radius: 6px; }
</style><script>
  addEventListener("message", (event) => {
    const index = [...document.querySelectorAll("iframe")].findIndex((one) => one.contentWindow === event.source);
    toHost(JSON.stringify({ index, message: event.data }));
  });
</script>`;

// The browser: one page, over a pipe (Chrome DevTools Protocol).
const profile = mkdtempSync(`${tmpdir()}/browser-`);
const flags = ["--headless", "--no-sandbox", "--hide-scrollbars", `--user-data-dir=${profile}`, "--remote-debugging-pipe"];
const browser = spawn(job.browser, flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
const waiting = new Map();
const bridges = [];
let lastId = 0;
let session;
let buffered = "";
browser.stdio[4].setEncoding("utf8").on("data", (data) => {
  const messages = (buffered + data).split("\0");
  buffered = messages.pop();
  for (const one of messages.map((message) => JSON.parse(message))) {
    if (one.method === "Runtime.bindingCalled") {
      const { index, message } = JSON.parse(one.params.payload);
      bridges[index]?.onmessage(message);
    } else {
      waiting.get(one.id)?.(one);
    }
  }
});

async function command(method, params = {}) {
  const id = ++lastId;
  browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId: session })}\0`);
  const answer = await new Promise((resolve) => waiting.set(id, resolve));
  waiting.delete(id);
  if (answer.error) throw new Error(`${method}: ${answer.error.message}`);
  return answer.result;
}

async function evaluate(expression) {
  const { result, exceptionDetails } = await command("Runtime.evaluate", { expression, returnByValue: true });
  if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
  return result.value;
}

async function until(what, condition) {
  const deadline = Date.now() + WITHIN;
  for (let found; Date.now() < deadline; await new Promise((resolve) => setTimeout(resolve, 50))) {
    if ((found = await condition())) return found;
  }
  throw new Error(`not within ${WITHIN} ms: ${what}`);
}

const { targetId } = await command("Target.createTarget", { url: "about:blank" });
({ sessionId: session } = await command("Target.attachToTarget", { targetId, flatten: true }));
await command("Runtime.enable");
await command("Runtime.addBinding", { name: "toHost" });
await command("Emulation.setDeviceMetricsOverride", { width: 1000, height: 990, deviceScaleFactor: 1, mobile: false });
await evaluate(`document.open(); document.write(${JSON.stringify(HOST)}); document.close();`);

// The host: a connection for each target, and a frame for each show.
const clients = new Map();
async function connect(target) {
  const key = JSON.stringify(target);
  if (!clients.has(key)) {
    const transport = target.url
      ? new StreamableHTTPClientTransport(new URL(target.url))
      : new StdioClientTransport({ command: target.command, args: target.args, env: process.env });
    const extensions = { "io.modelcontextprotocol/ui": { mimeTypes: [RESOURCE_MIME_TYPE] } };
    const client = new Client(info, { capabilities: { extensions }, versionNegotiation: { mode: job.mode } });
    await client.connect(transport);
    clients.set(key, client);
  }
  return clients.get(key);
}

const found = [];
for (const [index, { title, target, tool: name, click, calls }] of job.shows.entries()) {
  const client = await connect(target);
  const tool = (await client.listTools()).tools.find((one) => one.name === name);
  const result = await client.callTool({ name, arguments: {} });
  const [page] = (await client.readResource({ uri: getToolUiResourceUri(tool) })).contents;
  const frame = `document.querySelectorAll("iframe")[${index}]`;
  const called = [];
  const transport = {
    start: async () => {},
    close: async () => {},
    send: (message) => evaluate(`${frame}.contentWindow.postMessage(${JSON.stringify(message)}, "*")`),
  };
  const capabilities = { serverTools: {}, serverResources: {}, openLinks: {}, logging: {} };
  const bridge = new AppBridge(client, info, capabilities, { hostContext: { toolInfo: { tool } } });
  bridges[index] = {
    onmessage: (message) => {
      if (message.method === "tools/call") called.push(message.params.name);
      transport.onmessage(message);
    },
  };
  const ready = new Promise((resolve) => (bridge.oninitialized = resolve));
  await bridge.connect(transport);
  await evaluate(`{
    const figure = document.body.appendChild(document.createElement("figure"));
    figure.appendChild(document.createElement("figcaption")).textContent = ${JSON.stringify(title)};
    const frame = figure.appendChild(document.createElement("iframe"));
    frame.sandbox = "allow-scripts allow-same-origin";
    frame.srcdoc = ${JSON.stringify(page.text)};
  }`);
  await ready;
  await bridge.sendToolInput({ arguments: {} });
  await bridge.sendToolResult(result);
  const read = () => evaluate(`${frame}.contentDocument.body.innerText`);
  const before = await until(`the text of ${title}`, read);
  if (click) await evaluate(`${frame}.contentDocument.querySelector(${JSON.stringify(click)}).click()`);
  await until(`calls of ${title}`, () => called.length >= calls);
  const after = await until(`news in ${title}`, async () => ((await read()) !== before ? read() : null));
  found.push({ before, after, called });
}
if (job.picture) {
  const { data } = await command("Page.captureScreenshot", { format: "png" });
  writeFileSync(job.picture, Buffer.from(data, "base64"));
}
for (const client of clients.values()) await client.close();
browser.kill();
await new Promise((resolve) => browser.once("exit", resolve));
rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
console.log(JSON.stringify(found));
process.exit(0);
