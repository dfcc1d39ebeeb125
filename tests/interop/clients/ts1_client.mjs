// One conversation of a client on the official TypeScript SDK 1.x: `node ts1_client.mjs MODULES JOB`.
//
// MODULES is the folder of node modules that holds the SDK; JOB and what is printed are those of sdk1_client.py.
import { pathToFileURL } from "node:url";

const [modules, text] = process.argv.slice(2);
const job = JSON.parse(text);
const load = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/sdk/dist/esm/${path}`));

const { Client } = await load("client/index.js");
const { StdioClientTransport } = await load("client/stdio.js");
const { StreamableHTTPClientTransport } = await load("client/streamableHttp.js");

const transport = job.url
  ? new StreamableHTTPClientTransport(new URL(job.url))
  : new StdioClientTransport({ command: job.command, args: job.args, env: process.env });
const client = new Client({ name: "interop", version: "1.0.0" });
await client.connect(transport);
const { tools } = await client.listTools();
const results = [];
for (const [name, args] of job.calls) {
  results.push(await client.callTool({ name, arguments: args }));
}
// On stdio the transport knows no version of its own; what the client was told is what it keeps.
const version = transport.protocolVersion ?? transport._protocolVersion ?? null;
await client.close();
console.log(JSON.stringify({ version, tools, results }));
