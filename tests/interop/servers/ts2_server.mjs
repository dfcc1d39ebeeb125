// A server on the official TypeScript SDK 2.x that serves both eras: `node ts2_server.mjs MODULES NAME [http]`.
//
// MODULES is the folder of node modules that holds the SDK; what it does is what sdk2_server.py does.
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";

const [modules, name, http] = process.argv.slice(2);
const load = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/${path}`));
const sdk = await load("server/dist/index.mjs");
const { ProtocolError, ProtocolErrorCode, Server, inputRequired } = sdk;

const TOOLS = [
  ...["echo", "progress", "log", "sleep", "count", "cancelled_log", "stopped"],
  ...["ask", "grow", "touch", "subscribed"],
];
const CHANGED = { tools: "sendToolListChanged", prompts: "sendPromptListChanged" };
const BUS_CHANGED = { tools: "tools_list_changed", prompts: "prompts_list_changed" };
const LISTEN = "subscriptions/listen";
const ROOTS_ASK = { method: "roots/list", params: {} };
const bus = new sdk.InMemoryServerEventBus();
const uris = [];
const cancelled = [];
const counts = {};
const grown = { tools: 0, prompts: 0 };

const remove = (uri) => void (uris.includes(uri) && uris.splice(uris.indexOf(uri), 1));
const say = (text, structuredContent) => ({
  content: text === undefined ? [] : [{ type: "text", text }],
  ...(structuredContent === undefined ? {} : { structuredContent }),
});
const invalid = (text, data) => new ProtocolError(ProtocolErrorCode.InvalidParams, text, data);

// -- asking ---------------------------------------------------------------------------------------------------------

function askOne(server, { method, params }, ctx) {
  if (method === "roots/list") return server.listRoots(undefined, { relatedRequestId: ctx.mcpReq.id });
  if (method === "sampling/createMessage") return ctx.mcpReq.requestSampling(params);
  return ctx.mcpReq.elicitInput(params);
}

function asInput({ method, params }) {
  if (method === "roots/list") return inputRequired.listRoots();
  if (method === "sampling/createMessage") return inputRequired.createMessage(params);
  const { mode, ...further } = params;
  return mode === "url" ? inputRequired.elicitUrl(further) : inputRequired.elicit(further);
}

// What was answered, or `needed`: the result that asks for it.
async function ask(server, era, requests, rounds, ctx) {
  const entries = Object.entries(requests);
  if (era === "modern") {
    const done = Number(ctx.mcpReq.requestState() ?? 0);
    if (done >= rounds) return { answers: ctx.mcpReq.inputResponses };
    const inputRequests = Object.fromEntries(entries.map(([key, wanted]) => [key, asInput(wanted)]));
    return { needed: inputRequired({ inputRequests, requestState: String(done + 1) }) };
  }
  const answers = {};
  const one = async ([key, wanted]) => {
    try {
      answers[key] = await askOne(server, wanted, ctx);
    } catch (error) {
      answers[key] = { error: { code: error.code, message: error.message } };
    }
  };
  for (let round = 0; round < rounds; round++) await Promise.all(entries.map(one));
  return { answers };
}

// -- tools ----------------------------------------------------------------------------------------------------------

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => void (clearTimeout(timer), reject(signal.reason)));
  });

async function call(server, era, { name: tool, arguments: given = {}, _meta }, ctx) {
  counts[tool] = (counts[tool] ?? 0) + 1;
  let over = false; // after which the SDK aborts, too
  ctx.mcpReq.signal.addEventListener("abort", () => void (over || cancelled.push(tool)));
  try {
    return await run(server, era, tool, given, _meta, ctx);
  } finally {
    over = !ctx.mcpReq.signal.aborted;
  }
}

async function run(server, era, tool, given, _meta, ctx) {
  const { signal, notify } = ctx.mcpReq;
  switch (tool) {
    case "echo":
      return say(given.text);
    case "ask": {
      const { needed, answers } = await ask(server, era, given.requests, given.rounds ?? 1, ctx);
      return needed ?? say(undefined, { answers });
    }
    case "progress":
      for (let progress = 1; progress <= given.n; progress++) {
        const params = { progressToken: _meta?.progressToken, progress, total: given.n, message: `step ${progress}` };
        if (params.progressToken !== undefined) await notify({ method: "notifications/progress", params });
        if (given.delay) await pause(given.delay, signal);
      }
      return say(`${given.n} steps`, { steps: given.n });
    case "log":
      for (let n = 0; n < (given.n ?? 1); n++) await ctx.mcpReq.log(given.level, given.data ?? "line", "rich");
      return say("logged", {});
    case "sleep":
      await pause(given.seconds, signal);
      return say("slept");
    case "grow":
      for (const feature of given.features ?? ["prompts"]) await grow(server, era, feature);
      return say("grown", {});
    case "touch":
      await tell(era, { kind: "resource_updated", uri: given.uri }, () =>
        uris.includes(given.uri) ? server.sendResourceUpdated({ uri: given.uri }) : undefined,
      );
      return say("touched", {});
    case "count":
      return say(undefined, counts);
    case "cancelled_log":
    case "stopped":
    case "subscribed":
      return say(undefined, { cancelled, tools: cancelled, uris });
    default:
      throw invalid(`Unknown tool: ${tool}`);
  }
}

// Listeners over HTTP hear the bus; on stdio, and in the legacy era, the connection's own server says it.
async function tell(era, event, say) {
  if (http) bus.publish(event);
  if (!http || era === "legacy") await say();
}

async function grow(server, era, feature) {
  grown[feature]++;
  await tell(era, { kind: BUS_CHANGED[feature] }, () => server[CHANGED[feature]]());
}

// -- the server -----------------------------------------------------------------------------------------------------

function makeServer({ era }) {
  const changing = { listChanged: true };
  const capabilities = { tools: changing, prompts: changing, resources: { ...changing, subscribe: true } };
  const server = new Server(
    { name, version: "1.0.0" },
    { capabilities: { ...capabilities, logging: {}, completions: {} } },
  );
  const numbered = (feature) => Array.from({ length: grown[feature] }, (_, number) => `grown_${number}`);
  server.setRequestHandler("tools/list", () => ({
    tools: [...TOOLS, ...numbered("tools")].map((each) => ({ name: each, inputSchema: { type: "object" } })),
  }));
  server.setRequestHandler("tools/call", ({ params }, ctx) => call(server, era, params, ctx));
  server.setRequestHandler("prompts/list", () => ({
    prompts: ["greet", "asks", ...numbered("prompts")].map((each) => ({ name: each })),
  }));
  server.setRequestHandler("prompts/get", async ({ params }, ctx) => {
    let text = `Hello ${params.arguments?.name}, says ${name}.`;
    if (params.name === "asks") {
      const { needed, answers } = await ask(server, era, { roots: ROOTS_ASK }, 1, ctx);
      if (needed) return needed;
      text = JSON.stringify(answers);
    }
    return { messages: [{ role: "user", content: { type: "text", text } }] };
  });
  server.setRequestHandler("resources/list", () => ({ resources: [{ uri: `memo://${name}/one`, name: "one" }] }));
  server.setRequestHandler("resources/templates/list", () => ({
    resourceTemplates: [{ uriTemplate: `memo://${name}/item/{id}`, name: "item" }],
  }));
  server.setRequestHandler("resources/read", ({ params: { uri } }) => {
    if (!uri.startsWith(`memo://${name}/`) || uri.endsWith("/missing")) {
      throw new sdk.ResourceNotFoundError(uri);
    }
    return { contents: [{ uri, mimeType: "text/plain", text: `${name} read ${uri}` }] };
  });
  server.setRequestHandler("completion/complete", ({ params: { ref, argument, context } }) => {
    const values = [name, ref.name ?? ref.uri, argument.value, JSON.stringify(context ?? {})];
    return { completion: { values, total: values.length, hasMore: false } };
  });
  if (era === "legacy") {
    server.setRequestHandler("resources/subscribe", ({ params }) => (uris.push(params.uri), {}));
    server.setRequestHandler("resources/unsubscribe", ({ params }) => (remove(params.uri), {}));
  }
  return server;
}

// The SDK serves `subscriptions/listen` itself; what is listened to is seen before it is handed over.
function watch({ method, params }) {
  const wanted = (method === LISTEN && params.notifications?.resourceSubscriptions) || [];
  uris.push(...wanted);
  return () => wanted.forEach(remove);
}

async function serveHttp() {
  const { toNodeHandler } = await load("node/dist/index.mjs");
  const modern = sdk.createMcpHandler(makeServer, { legacy: "reject", bus });
  const sessions = new Map();
  const serveLegacy = async (request) => {
    let transport = sessions.get(request.headers.get("mcp-session-id"));
    if (!transport) {
      transport = new sdk.WebStandardStreamableHTTPServerTransport({
        sessionIdGenerator: randomUUID,
        onsessioninitialized: (id) => void sessions.set(id, transport),
      });
      await makeServer({ era: "legacy" }).connect(transport);
    }
    return transport.handleRequest(request);
  };
  const fetch = async (request, options) => {
    if (await sdk.isLegacyRequest(request)) return serveLegacy(request);
    request.signal.addEventListener("abort", watch(await request.clone().json()));
    return modern.fetch(request, options);
  };
  const listener = createServer(toNodeHandler({ fetch }));
  listener.listen(0, "127.0.0.1", () => console.error(`listening on http://127.0.0.1:${listener.address().port}/mcp`));
  process.stdin.on("end", () => process.exit(0)).resume();
}

async function serveStdio() {
  const { StdioServerTransport, serveStdio } = await load("server/dist/stdio.mjs");
  const transport = new StdioServerTransport();
  const listening = new Map();
  let receive;
  Object.defineProperty(transport, "onmessage", {
    get: () => receive && ((message) => {
      if (message.method === LISTEN) listening.set(message.id, watch(message));
      if (message.method === "notifications/cancelled") listening.get(message.params.requestId)?.();
      receive(message);
    }),
    set: (given) => void (receive = given),
  });
  serveStdio(makeServer, { transport });
}

await (http ? serveHttp() : serveStdio());
