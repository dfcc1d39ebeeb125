// A client on the official TypeScript SDK, 1.x or 2.x, that is asked things, told things and cancels:
// `node ts_rows.mjs MODULES JOB`. JOB and what is printed are those of sdk1_rows.py; JOB has "mode" besides.
import { existsSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [modules, text] = process.argv.slice(2);
const job = JSON.parse(text);
const load = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/${path}`));
const isSecond = existsSync(`${modules}/@modelcontextprotocol/client`);

const capabilities = { elicitation: { form: {}, url: {} }, sampling: { tools: {} }, roots: {} };
const info = { name: "interop", version: "1.0.0" };
const makeTransport = (Http, Stdio) =>
  job.url ? new Http(new URL(job.url)) : new Stdio({ command: job.command, args: job.args, env: process.env });
let client, transport, on, hear;
if (isSecond) {
  const { Client, StreamableHTTPClientTransport } = await load("client/dist/index.mjs");
  client = new Client(info, { capabilities, versionNegotiation: { mode: job.mode } });
  const { StdioClientTransport } = await load("client/dist/stdio.mjs");
  transport = makeTransport(StreamableHTTPClientTransport, StdioClientTransport);
  on = (method, handler) => client.setRequestHandler(method, handler);
  hear = (method, handler) => client.setNotificationHandler(method, handler);
} else {
  const { Client } = await load("sdk/dist/esm/client/index.js");
  const { StreamableHTTPClientTransport } = await load("sdk/dist/esm/client/streamableHttp.js");
  const types = await load("sdk/dist/esm/types.js");
  client = new Client(info, { capabilities });
  const { StdioClientTransport } = await load("sdk/dist/esm/client/stdio.js");
  transport = makeTransport(StreamableHTTPClientTransport, StdioClientTransport);
  const schemas = {
    "elicitation/create": types.ElicitRequestSchema,
    "sampling/createMessage": types.CreateMessageRequestSchema,
    "roots/list": types.ListRootsRequestSchema,
    "notifications/message": types.LoggingMessageNotificationSchema,
    "notifications/tools/list_changed": types.ToolListChangedNotificationSchema,
    "notifications/resources/updated": types.ResourceUpdatedNotificationSchema,
  };
  on = (method, handler) => client.setRequestHandler(schemas[method], handler);
  hear = (method, handler) => client.setNotificationHandler(schemas[method], handler);
}

const heard = { asked: [], logs: 0, methods: new Set(), wake: () => {} };
on("elicitation/create", async ({ params }) => {
  const mode = params.mode ?? "form";
  heard.asked.push(`${mode} elicitation`);
  return mode === "form" ? { action: "accept", content: { name: "Ada" } } : { action: "accept" };
});
on("sampling/createMessage", async ({ params }) => {
  heard.asked.push(params.tools ? "sampling with tools" : "sampling");
  if (params.tools) {
    const content = [{ type: "tool_use", id: "use-1", name: "add", input: { a: 2 } }];
    return { role: "assistant", content, model: "m", stopReason: "toolUse" };
  }
  return { role: "assistant", content: { type: "text", text: "four" }, model: "m" };
});
on("roots/list", async () => {
  heard.asked.push("roots");
  return { roots: [{ uri: "file:///home/ada", name: "ada" }] };
});
hear("notifications/message", () => void heard.logs++);
for (const method of ["notifications/tools/list_changed", "notifications/resources/updated"]) {
  hear(method, () => {
    heard.methods.add(method);
    heard.wake();
  });
}

async function comeTrue(wish) {
  if (!wish) return;
  const [name, key, value] = wish;
  while (!(await client.callTool({ name, arguments: {} })).structuredContent[key].includes(value));
}

async function listen(row) {
  if (job.mode === "legacy") {
    if (row.subscribe) await client.subscribeResource({ uri: row.subscribe });
  } else if (row.wait) {
    const filter = row.subscribe ? { resourceSubscriptions: [row.subscribe] } : { toolsListChanged: true };
    return client.listen(filter);
  }
}

async function waitFor(method) {
  while (!heard.methods.has(method)) await new Promise((resolve) => (heard.wake = resolve));
}

async function isListed(name) {
  return (await client.listTools()).tools.some((tool) => tool.name === name);
}

async function run(row) {
  Object.assign(heard, { asked: [], logs: 0 });
  heard.methods.clear();
  const stop = new AbortController();
  let progress = 0;
  const onprogress = () => {
    progress++;
    if (row.cancel) stop.abort();
  };
  const stream = await listen(row);
  await comeTrue(row.before);
  const params = { name: row.tool, arguments: row.arguments };
  if (job.mode !== "legacy") params._meta = { "io.modelcontextprotocol/logLevel": "info" };
  const options = { onprogress, signal: stop.signal };
  let structured = null;
  let cancelled = false;
  try {
    const result = await (isSecond ? client.callTool(params, options) : client.callTool(params, undefined, options));
    structured = result.structuredContent ?? null;
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    cancelled = true;
  }
  if (row.wait) await waitFor(row.wait);
  while (row.listed && !(await isListed(row.listed))) {
    heard.methods.clear();
    await waitFor(row.wait);
  }
  await comeTrue(row.after);
  await stream?.close();
  const waited = row.wait ? true : null;
  return { asked: heard.asked.sort(), structured, progress, logs: heard.logs, waited, cancelled };
}

const late = setTimeout(() => process.exit(3), 60_000);
await client.connect(transport);
if (job.mode === "legacy") await client.setLoggingLevel("info");
const rows = [];
for (const row of job.rows) rows.push(await run(row));
clearTimeout(late);
await client.close();
console.log(JSON.stringify({ rows }));
