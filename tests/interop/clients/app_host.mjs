// A host of MCP Apps without a browser: `node app_host.mjs MODULES JOB`.
//
// MODULES is the folder of node modules with the SDK and @modelcontextprotocol/ext-apps. JOB is JSON: `url`, or `command`
// and `args`; `mode`; `shows`: [tool, the name that its app calls]. Each tool is called, its page is read, and an `App` of
// the SDK, where the page's script would be, calls through an `AppBridge`. Prints one entry for each: `page` {uri, type,
// text: the first characters}, `context`: the tool's name as the app is told, `result` of the app's call or `error`.
import { pathToFileURL } from "node:url";

const [modules, text] = process.argv.slice(2);
const job = JSON.parse(text);
const load = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/${path}`));

const { Client, InMemoryTransport, StreamableHTTPClientTransport } = await load("client/dist/index.mjs");
const { StdioClientTransport } = await load("client/dist/stdio.mjs");
const { AppBridge, RESOURCE_MIME_TYPE, getToolUiResourceUri } = await load("ext-apps/dist/src/app-bridge.js");
const { App } = await load("ext-apps/dist/src/app.js");

const info = { name: "interop", version: "1.0.0" };
const transport = job.url
  ? new StreamableHTTPClientTransport(new URL(job.url))
  : new StdioClientTransport({ command: job.command, args: job.args, env: process.env });
const extensions = { "io.modelcontextprotocol/ui": { mimeTypes: [RESOURCE_MIME_TYPE] } };
const client = new Client(info, { capabilities: { extensions }, versionNegotiation: { mode: job.mode } });
await client.connect(transport);
const { tools } = await client.listTools();

const found = [];
for (const [name, called] of job.shows) {
  const tool = tools.find((one) => one.name === name);
  await client.callTool({ name, arguments: {} });
  const uri = getToolUiResourceUri(tool);
  const [page] = (await client.readResource({ uri })).contents;
  const bridge = new AppBridge(client, info, { serverTools: {}, serverResources: {} }, { hostContext: { toolInfo: { tool } } });
  const app = new App(info, {}, { autoResize: false });
  const [host, view] = InMemoryTransport.createLinkedPair();
  await bridge.connect(host);
  await app.connect(view);
  const entry = { page: { uri, type: page.mimeType, text: page.text.slice(0, 40), same: page.uri === uri } };
  entry.context = app.getHostContext().toolInfo.tool.name;
  try {
    entry.result = await app.callServerTool({ name: called, arguments: {} });
  } catch (error) {
    entry.error = String(error.message);
  }
  found.push(entry);
  await app.close();
}
const visibility = Object.fromEntries(tools.map((tool) => [tool.name, tool._meta?.ui?.visibility ?? null]));
await client.close();
console.log(JSON.stringify({ visibility, found }));
