// One conversation of a client on the official TypeScript SDK 2.x: `node ts2_client.mjs MODULES JOB`.
//
// MODULES is the folder of node modules that holds the SDK; JOB and what is printed are those of sdk2_client.py.
import { pathToFileURL } from "node:url";

const [modules, text] = process.argv.slice(2);
const job = JSON.parse(text);
const load = (path) => import(pathToFileURL(`${modules}/@modelcontextprotocol/client/dist/${path}`));

const { Client, StreamableHTTPClientTransport } = await load("index.mjs");
const { StdioClientTransport } = await load("stdio.mjs");

const transport = job.url
  ? new StreamableHTTPClientTransport(new URL(job.url))
  : new StdioClientTransport({ command: job.command, args: job.args, env: process.env });
const mode = /^\d/.test(job.mode) ? { pin: job.mode } : job.mode;
const client = new Client({ name: "interop", version: "1.0.0" }, { versionNegotiation: { mode } });
await client.connect(transport);
const { tools } = await client.listTools();
const results = [];
for (const [name, args] of job.calls) {
  results.push(await client.callTool({ name, arguments: args }));
}
const version = client.getNegotiatedProtocolVersion() ?? null;
await client.close();
console.log(JSON.stringify({ version, tools, results }));
