// A server on the official TypeScript SDK 1.x that asks, tells and hears: `node ts1_server.mjs MODULES NAME [http]`.
//
// MODULES is the folder of node modules that holds the SDK; what it does is what sdk1_server.py does.
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";

const [modules, name, http] = process.argv.slice(2);
const load = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/sdk/dist/esm/${path}`));
const { Server } = await load("server/index.js");
const types = await load("types.js");

const TOOLS = ["ask", "progress", "log", "grow", "touch", "subscribed", "stopped"];
const uris = [];
const stopped = [];
let grown = 0;

function askOne(server, { method, params }, options) {
  if (method === "roots/list") return server.listRoots(undefined, options);
  if (method === "sampling/createMessage") return server.createMessage(params, options);
  return server.elicitInput(params, options);
}

async function answer(server, { name: tool, arguments: given }, extra) {
  const options = { relatedRequestId: extra.requestId };
  const token = extra._meta?.progressToken;
  if (tool === "ask") {
    const asked = Object.entries(given.requests);
    const results = await Promise.all(asked.map(([, wanted]) => askOne(server, wanted, options)));
    return { answers: Object.fromEntries(asked.map(([key], index) => [key, results[index]])) };
  }
  if (tool === "progress") {
    for (let progress = 1; progress <= given.n && !extra.signal.aborted; progress++) {
      const params = { progressToken: token, progress, total: given.n };
      if (token !== undefined) await extra.sendNotification({ method: "notifications/progress", params });
      if (given.delay) await new Promise((resolve) => setTimeout(resolve, 1000 * given.delay));
    }
  } else if (tool === "log") {
    const params = { level: given.level, data: "line" };
    for (let n = 0; n < given.n; n++) await extra.sendNotification({ method: "notifications/message", params });
  } else if (tool === "grow") {
    grown++;
    await server.sendToolListChanged();
  } else if (tool === "touch") {
    await server.sendResourceUpdated({ uri: given.uri });
  }
  return { uris, tools: stopped };
}

function makeServer() {
  const capabilities = {
    tools: { listChanged: true },
    resources: { listChanged: true, subscribe: true },
    logging: {},
  };
  const server = new Server({ name, version: "1.0.0" }, { capabilities });
  server.setRequestHandler(types.ListToolsRequestSchema, () => {
    const names = [...TOOLS, ...Array.from({ length: grown }, (_, number) => `grown_${number}`)];
    return { tools: names.map((each) => ({ name: each, inputSchema: { type: "object" } })) };
  });
  server.setRequestHandler(types.ListResourcesRequestSchema, () => {
    return { resources: [{ uri: `memo://${name}/one`, name: "one" }] };
  });
  server.setRequestHandler(types.SubscribeRequestSchema, ({ params }) => {
    uris.push(params.uri);
    return {};
  });
  server.setRequestHandler(types.UnsubscribeRequestSchema, ({ params }) => {
    uris.splice(uris.indexOf(params.uri), 1);
    return {};
  });
  server.setRequestHandler(types.CallToolRequestSchema, async ({ params }, extra) => {
    extra.signal.addEventListener("abort", () => void stopped.push(params.name));
    return { content: [], structuredContent: await answer(server, params, extra) };
  });
  return server;
}

if (http) {
  const { StreamableHTTPServerTransport } = await load("server/streamableHttp.js");
  const sessions = new Map();
  const listener = createServer(async (request, response) => {
    let transport = sessions.get(request.headers["mcp-session-id"]);
    if (!transport) {
      transport = new StreamableHTTPServerTransport({
        sessionIdGenerator: randomUUID,
        onsessioninitialized: (id) => void sessions.set(id, transport),
      });
      await makeServer().connect(transport);
    }
    await transport.handleRequest(request, response);
  });
  listener.listen(0, "127.0.0.1", () => console.error(`listening on http://127.0.0.1:${listener.address().port}/mcp`));
} else {
  const { StdioServerTransport } = await load("server/stdio.js");
  await makeServer().connect(new StdioServerTransport());
}
