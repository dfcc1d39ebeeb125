"""An MCP server on stdio that offers everything the protocol has, standard library only.

Run as a script: `python rich_server.py [--scheme S] [--shared] [--version V] [--odd-schemas]`, and any option of
`echo_server.py`, on which it is built and whose tools it has too (`--era legacy|modern|both`, `--name`, `--page-size`
...). What a legacy server asks with a request it asks in the modern era with `input_required`; the results are the
same in both, so that a test can compare them. `--name NAME` (default: rich) is part of all its URIs.

Resources: `memo://NAME/one`, `memo://NAME/two`; with `--shared` also `memo://shared/doc`, which every server of this
kind lists; not listed, but read: `memo://NAME/hidden`. Reading gives the text "NAME read URI"; anything else that no
template fits is not found (-32002, in the modern era -32602, with `data.uri`).
Templates: `memo://NAME/item/{id}`, with `--shared` also `memo://shared/item/{id}`. `--scheme S` replaces `memo`.
Prompts: `greet` {name} -> text · `linked` {uri} -> a link and an embedded resource · `asks` -> asks for the roots.
Completion: `values` are ["NAME", the ref's name or uri, the argument's value, the context as JSON].
Subscriptions: `resources/subscribe` and `unsubscribe`; in the modern era `resourceSubscriptions` of a listen.

Tools, besides those of the echo server:
`links` {uris, embedded?} -> one `resource_link` (or embedded resource) for each · `content` {result} -> the result as
given, member by member · `page` has `_meta.ui.resourceUri` (`ui://NAME/page`, with --shared `ui://shared/page`) ·
`ask` {requests: {key: {method, params}}, rounds?} -> asks all at once, rounds times; structuredContent is `{"answers":
{key: result or {"error": ...}}}` of the last round · `url_needed` {url, id} -> -32042 until `granted` {id} was called
(modern: a URL input request) · `log` {level, data, n?} -> n log messages, if the level was asked for ·
`touch` {uri} -> `notifications/resources/updated` to subscribers · `subscribed` -> `{"uris": [...]}` ·
`change` {feature} -> list_changed · `seen` -> `{"messages": [...]}`: all requests and notifications so far (without
`seen` itself), as received · `job` {text?, polls?, interval?, ask?, error?, isError?}: only as a task. Legacy:
`execution.taskSupport` is `required`; modern: the client must declare the tasks extension. The task works for `polls`
(2) `tasks/get`, then wants what `ask` (as in `ask`) says, then ends with text, or with the error · `maybe_job`: the
same, plain or as a task.

`--by-era`: each list has one entry more, its first with `_legacy` or `_modern` behind the name, by the request's era.
`--version V`: the newest legacy version that is negotiated. `--odd-schemas`: tools `list_out` and `any_out` whose
`outputSchema` is not an object schema, with `structuredContent` to match.
"""

from __future__ import annotations

import json
import threading

from echo_server import LEGACY, META, VERSION_KEY, RpcError, Server, encode, make_parser, schema, text_result

RELATED = META + "related-task"
TASKS = META + "tasks"
ASK_WITHIN = 30  # seconds that this server waits for an answer to a request of its own
LEVELS = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
TERMINAL = {"completed", "failed", "cancelled"}


def is_modern(params):
    return VERSION_KEY in params.get("_meta", {})


def extensions(params):
    return params.get("_meta", {}).get(META + "clientCapabilities", {}).get("extensions", {})


class Task:
    """A job that continues behind `tasks/get`; both eras."""

    def __init__(self, task_id, arguments):
        self.id, self.arguments = task_id, arguments
        self.status = "working"
        self.left = arguments.get("polls", 2)
        self.answers = None if arguments.get("ask") else {}

    def poll(self):
        if self.status == "working":
            if self.left > 0:
                self.left -= 1
            else:
                self.advance()

    def advance(self):
        if self.status in TERMINAL:
            return
        wrong = self.arguments.get("error") or self.arguments.get("isError")
        self.status = "input_required" if self.answers is None else "failed" if wrong else "completed"

    def result(self):
        result = text_result(self.arguments.get("text", "done"))
        if self.answers:
            result["structuredContent"] = {"answers": self.answers}
        if self.arguments.get("isError"):
            result["isError"] = True
        return result

    def state(self, ttl, interval):
        return {
            "taskId": self.id,
            "status": self.status,
            "createdAt": "2026-01-01T00:00:00Z",
            "lastUpdatedAt": "2026-01-01T00:00:00Z",
            ttl: 60_000,
            interval: self.arguments.get("interval", 20),
        }


class RichServer(Server):
    """Prompts, resources, completion, subscriptions, logging, asks and tasks."""

    def __init__(self, options):
        super().__init__(options)
        self.level = None
        self.seen, self.granted = [], set()
        self.uris = []  # subscribed, legacy
        self.watching = {}  # listen id -> the filter that was acknowledged
        self.tasks, self.answers = {}, {}
        self.last_ask = 0
        self.methods |= {
            "prompts/list": self.list_prompts,
            "prompts/get": self.get_prompt,
            "resources/list": self.list_resources,
            "resources/templates/list": self.list_templates,
            "resources/read": self.read_resource,
            "resources/subscribe": self.subscribe,
            "resources/unsubscribe": self.unsubscribe,
            "completion/complete": self.complete,
            "logging/setLevel": self.set_level,
            "tasks/get": self.get_task,
            "tasks/result": self.task_result,
            "tasks/cancel": self.cancel_task,
            "tasks/update": self.update_task,
        }

    def uri(self, path, *, shared=False):
        return f"{self.options.scheme}://{'shared' if shared else self.options.name}/{path}"

    # -- the wire ------------------------------------------------------------------------------------------------

    def handle_line(self, line):
        try:
            message = json.loads(line)
        except ValueError:
            message = {}
        method, params = message.get("method"), message.get("params") or {}
        if method is None and message.get("id") in self.answers:
            event, answers = self.answers.pop(message["id"])
            answers.append(message)
            event.set()
            return
        if method and params.get("name") != "seen":
            self.seen.append(message)
        super().handle_line(line)

    def handle_notification(self, method, params):
        super().handle_notification(method, params)
        if method == "notifications/cancelled":
            self.watching.pop(params.get("requestId"), None)

    def make_ask(self, method, params):
        """A request to the client, and what will hold its answer; only on a thread."""
        self.last_ask += 1
        event, answers = self.answers[f"ask-{self.last_ask}"] = threading.Event(), []
        request = {"jsonrpc": "2.0", "id": f"ask-{self.last_ask}", "method": method, "params": params}
        return request, event, answers

    def ask_all(self, requests, meta=None):
        asked = {}
        for key, wanted in requests.items():
            params = dict(wanted.get("params", {}))
            if meta:
                params["_meta"] = {**params.get("_meta", {}), **meta}
            asked[key] = self.make_ask(wanted["method"], params)
        self.send_all([request for request, _, _ in asked.values()])
        return {key: self.take(event, answers) for key, (_, event, answers) in asked.items()}

    def take(self, event, answers):
        if not event.wait(ASK_WITHIN):
            return {"error": {"code": 0, "message": "no answer in time"}}
        return answers[0]["result"] if "result" in answers[0] else {"error": answers[0]["error"]}

    def asking(self, message, params, requests, make, rounds=1):
        """Ask, `rounds` times, then answer with `make(answers)`; in both eras."""
        if is_modern(params):
            state = params.get("requestState")
            done = 0 if state is None else int(state.removeprefix("round \u00e9 "))
            if done < rounds:
                return {
                    "resultType": "input_required",
                    "inputRequests": requests,
                    "requestState": f"round \u00e9 {done + 1}",
                }
            return make(params.get("inputResponses", {}))

        def run():
            answers = {}
            for _ in range(rounds):
                answers = self.ask_all(requests)
            self.answer(message["id"], make(answers))

        self.on_thread(run)
        return None

    # -- who it is -----------------------------------------------------------------------------------------------

    def capabilities(self):
        return {
            "tools": {"listChanged": True},
            "prompts": {"listChanged": True},
            "resources": {"listChanged": True, "subscribe": True},
            "completions": {},
            "logging": {},
        }

    def initialize(self, message, params):
        result = super().initialize(message, params)
        newest = self.options.version
        result["protocolVersion"] = min(result["protocolVersion"], newest)
        result["capabilities"] = self.capabilities()
        if newest == LEGACY[-1]:
            result["capabilities"]["tasks"] = {"cancel": {}, "requests": {"tools": {"call": {}}}}
        return result | {"instructions": f"How to use {self.options.name}."}

    def discover(self, message, params):
        capabilities = self.capabilities() | {"extensions": {TASKS: {}}}
        instructions = f"How to use {self.options.name}."
        return super().discover(message, params) | {"capabilities": capabilities, "instructions": instructions}

    # -- lists ---------------------------------------------------------------------------------------------------

    def by_era(self, params, entries):
        if not self.options.by_era or not entries:
            return entries
        key = next(key for key in ("uriTemplate", "uri", "name") if key in entries[0])
        return [*entries, entries[0] | {key: f"{entries[0][key]}_{'modern' if is_modern(params) else 'legacy'}"}]

    def list_tools(self, message, params):
        result = super().list_tools(message, params)
        return result | {"tools": self.by_era(params, result["tools"])}

    def listed(self, params, member, entries):
        result = {member: entries if member == "contents" else self.by_era(params, entries)}
        return result | {"ttlMs": 5000, "cacheScope": "public"} if is_modern(params) else result

    def list_prompts(self, _message, params):
        arguments = [{"name": "name", "required": False}, {"name": "uri", "required": False}]
        entry = {"arguments": arguments, "icons": [], "x-extra": None}
        names = ("greet", "linked", "asks")
        return self.listed(params, "prompts", [{"name": name, "title": name.title(), **entry} for name in names])

    def list_resources(self, _message, params):
        uris = [self.uri("one"), self.uri("two")] + [self.uri("doc", shared=True)] * self.options.shared
        entry = {"mimeType": "text/plain", "x-extra": None}
        return self.listed(params, "resources", [{"uri": u, "name": u.rsplit("/", 1)[1], **entry} for u in uris])

    def list_templates(self, _message, params):
        uris = [self.uri("item/{id}")] + [self.uri("item/{id}", shared=True)] * self.options.shared
        entries = [{"uriTemplate": uri, "name": "item", "x-extra": None} for uri in uris]
        return self.listed(params, "resourceTemplates", entries)

    # -- prompts, resources, completion -----------------------------------------------------------------------------

    def get_prompt(self, message, params):
        name, arguments = params.get("name"), params.get("arguments") or {}

        def prompt(*blocks):
            return {"messages": [{"role": "user", "content": block} for block in blocks]}

        if name == "greet":
            text = f"Hello {arguments.get('name', 'you')}, says {self.options.name}."
            return prompt({"type": "text", "text": text}) | {"description": "A greeting."}
        if name == "linked":
            uri = arguments.get("uri", self.uri("one"))
            return prompt(
                {"type": "resource_link", "uri": uri, "name": "linked"},
                {"type": "resource", "resource": {"uri": uri, "text": "embedded"}},
            )
        if name == "asks":
            requests = {"roots": {"method": "roots/list", "params": {}}}
            return self.asking(
                message, params, requests, lambda answers: prompt({"type": "text", "text": encode(answers)})
            )
        raise RpcError(-32602, f"Unknown prompt: {name}")

    def has_resource(self, uri):
        own = [self.uri(path) for path in ("one", "two", "hidden")] + [f"ui://{self.options.name}/page"]
        shared = [self.uri("doc", shared=True), "ui://shared/page"] if self.options.shared else []
        items = (self.uri("item/"), self.uri("item/", shared=True) if self.options.shared else self.uri("item/"))
        return uri in own + shared or uri.startswith(items)

    def read_resource(self, _message, params):
        uri = params.get("uri", "")
        if not self.has_resource(uri):
            code = -32602 if is_modern(params) else -32002
            raise RpcError(code, f"Resource not found: {uri}", {"uri": uri})
        contents = [{"uri": uri, "mimeType": "text/plain", "text": f"{self.options.name} read {uri}"}]
        return self.listed(params, "contents", contents)

    def complete(self, _message, params):
        ref = params["ref"]
        context = encode(params.get("context", {}))
        values = [self.options.name, ref.get("name") or ref.get("uri"), params["argument"]["value"], context]
        return {"completion": {"values": values, "total": len(values), "hasMore": False}}

    # -- subscriptions and levels -----------------------------------------------------------------------------------

    def subscribe(self, _message, params):
        self.uris.append(params["uri"])
        return {}

    def unsubscribe(self, _message, params):
        if params["uri"] in self.uris:
            self.uris.remove(params["uri"])
        return {}

    def listen(self, message, params):
        wanted = params.get("notifications", {})
        honoured = {key: value for key, value in wanted.items() if key.endswith("ListChanged") and value}
        uris = [uri for uri in wanted.get("resourceSubscriptions", []) if self.has_resource(uri)]
        if uris:
            honoured["resourceSubscriptions"] = uris
        self.watching[message["id"]] = honoured
        subscription = {"_meta": {META + "subscriptionId": message["id"]}, "notifications": honoured}
        self.notify("notifications/subscriptions/acknowledged", subscription)

    def set_level(self, _message, params):
        self.level = params["level"]
        return {}

    def tool_log(self, _message, params, arguments):
        level = arguments.get("level", "info")
        asked = params.get("_meta", {}).get(META + "logLevel") if is_modern(params) else self.level or "debug"
        if asked is not None and LEVELS.index(level) >= LEVELS.index(asked):
            for i in range(arguments.get("n", 1)):
                data = arguments.get("data", f"line {i + 1}")
                self.notify("notifications/message", {"level": level, "logger": "rich", "data": data})
        return text_result("logged")

    def tool_touch(self, _message, _params, arguments):
        uri = arguments["uri"]
        if uri in self.uris:
            self.notify("notifications/resources/updated", {"uri": uri})
        for listen, honoured in self.watching.items():
            if uri in honoured.get("resourceSubscriptions", []):
                tag = {META + "subscriptionId": listen}
                self.notify("notifications/resources/updated", {"uri": uri, "_meta": tag})
        return text_result("touched")

    def tool_subscribed(self, _message, _params, _arguments):
        modern = [uri for honoured in self.watching.values() for uri in honoured.get("resourceSubscriptions", [])]
        return {"content": [], "structuredContent": {"uris": self.uris + modern}}

    def tool_change(self, _message, _params, arguments):
        feature = arguments.get("feature", "prompts")
        method = f"notifications/{feature}/list_changed"
        if self.options.era != "modern":
            self.send({"jsonrpc": "2.0", "method": method})
        for listen, honoured in self.watching.items():
            if f"{feature}ListChanged" in honoured:
                self.notify(method, {"_meta": {META + "subscriptionId": listen}})
        return text_result("changed")

    # -- tools ---------------------------------------------------------------------------------------------------

    def make_tools(self):
        tools = super().make_tools()
        ui = f"ui://{'shared' if self.options.shared else self.options.name}/page"
        support = "required" if self.options.era != "modern" else None
        added = {
            "links": (self.tool_links, {}),
            "content": (self.tool_content, {}),
            "page": (self.tool_echo, {"_meta": {"ui": {"resourceUri": ui, "x": None}, "other": 1}}),
            "ask": (self.tool_ask, {}),
            "url_needed": (self.tool_url_needed, {}),
            "granted": (self.tool_granted, {}),
            "log": (self.tool_log, {}),
            "touch": (self.tool_touch, {}),
            "subscribed": (self.tool_subscribed, {}),
            "change": (self.tool_change, {}),
            "seen": (self.tool_seen, {}),
            "job": (self.tool_job, {"execution": {"taskSupport": "required"}} if support else {}),
            "maybe_job": (self.tool_job, {"execution": {"taskSupport": "optional"}} if support else {}),
        }
        if self.options.odd_schemas:
            added["list_out"] = (
                lambda _message, _params, _arguments: {"content": [], "structuredContent": [1, {"two": None}]},
                {"outputSchema": {"type": "array", "items": {}}},
            )
            added["any_out"] = (
                lambda _message, _params, arguments: {"content": [], "structuredContent": arguments.get("value")},
                {"outputSchema": {"anyOf": [{"type": "object"}, {"type": "null"}]}},
            )
        for name, (function, extra) in added.items():
            entry = {"name": name, "description": f"The {name} tool.", "inputSchema": schema(), **extra}
            tools[name] = (function, entry)
        return tools

    def tool_links(self, _message, _params, arguments):
        blocks = [
            {"type": "resource", "resource": {"uri": uri, "text": "embedded"}}
            if arguments.get("embedded")
            else {"type": "resource_link", "uri": uri, "name": "a link"}
            for uri in arguments.get("uris", [])
        ]
        return {"content": blocks}

    def tool_content(self, _message, _params, arguments):
        return dict(arguments["result"])

    def tool_seen(self, _message, _params, _arguments):
        return {"content": [], "structuredContent": {"messages": list(self.seen)}}

    def tool_ask(self, message, params, arguments):
        def make(answers):
            return {"content": [], "structuredContent": {"answers": answers}}

        return self.asking(message, params, arguments["requests"], make, arguments.get("rounds", 1))

    def tool_url_needed(self, _message, params, arguments):
        wanted = arguments.get("id", "e-1")
        if wanted in self.granted or params.get("inputResponses", {}).get(wanted, {}).get("action") == "accept":
            return text_result("granted")
        elicitation = {"mode": "url", "message": "Please visit.", "url": arguments.get("url", "https://example.com/")}
        if is_modern(params):
            requests = {wanted: {"method": "elicitation/create", "params": elicitation}}
            return {"resultType": "input_required", "inputRequests": requests}
        data = {"elicitations": [elicitation | {"elicitationId": wanted}]}
        raise RpcError(-32042, "This request needs a visit.", data)

    def tool_granted(self, _message, _params, arguments):
        self.granted.add(arguments.get("id", "e-1"))
        self.notify("notifications/elicitation/complete", {"elicitationId": arguments.get("id", "e-1")})
        return text_result("granted")

    # -- tasks ---------------------------------------------------------------------------------------------------

    def tool_job(self, _message, params, arguments):
        task = Task(f"task-{len(self.tasks) + 1}", arguments)
        required = params["name"] == "job"
        if is_modern(params):
            if TASKS not in extensions(params):
                if required:
                    needed = {"requiredCapabilities": {"extensions": {TASKS: {}}}}
                    raise RpcError(-32021, "Missing required client capability", needed)
                return task.result()
            self.tasks[task.id] = task
            return {"resultType": "task", **task.state("ttlMs", "pollIntervalMs")}
        if "task" not in params:
            if required:
                raise RpcError(-32601, "This tool must be called as a task")
            return task.result()
        self.tasks[task.id] = task
        return {"task": task.state("ttl", "pollInterval")}

    def task_of(self, params):
        task = self.tasks.get(params.get("taskId"))
        if task is None:
            raise RpcError(-32602, "Unknown task")
        return task

    def get_task(self, _message, params):
        task = self.task_of(params)
        task.poll()
        if not is_modern(params):
            return task.state("ttl", "pollInterval")
        if task.status == "failed" and not task.arguments.get("error"):
            task.status = "completed"  # in this era isError does not fail the task
        state = task.state("ttlMs", "pollIntervalMs")
        match task.status:
            case "input_required":
                state["inputRequests"] = task.arguments["ask"]
            case "completed":
                state["result"] = {"resultType": "complete", **task.result()}
            case "failed":
                state["error"] = task.arguments["error"]
        return state

    def task_result(self, message, params):
        if is_modern(params):
            raise RpcError(-32601, "Method not found")
        task = self.task_of(params)
        related = {RELATED: {"taskId": task.id}}

        def run():
            if task.answers is None:
                task.answers = self.ask_all(task.arguments["ask"], related)
            task.left = 0
            task.advance()
            error = task.arguments.get("error")
            if error:
                self.answer_error(message["id"], error["code"], error["message"], error.get("data"))
            elif task.status == "cancelled":
                self.answer_error(message["id"], -32603, "The task was cancelled")
            else:
                self.answer(message["id"], task.result() | {"_meta": related})

        self.on_thread(run)

    def cancel_task(self, _message, params):
        task = self.task_of(params)
        if task.status in TERMINAL:
            raise RpcError(-32602, "The task has ended")
        task.status = "cancelled"
        return {} if is_modern(params) else task.state("ttl", "pollInterval")

    def update_task(self, _message, params):
        if not is_modern(params):
            raise RpcError(-32601, "Method not found")
        task = self.task_of(params)
        task.answers = params["inputResponses"]
        if task.status == "input_required":
            task.status = "working"
        return {}


def make_rich_parser():
    parser = make_parser()
    parser.description = __doc__
    parser.set_defaults(name="rich")
    parser.add_argument("--scheme", default="memo", help="of its URIs")
    parser.add_argument("--shared", action="store_true", help="list memo://shared/doc and a template, too")
    parser.add_argument("--version", choices=LEGACY, default=LEGACY[-1], help="the newest legacy version it speaks")
    parser.add_argument("--by-era", action="store_true", help="list one entry more, another one in each era")
    parser.add_argument("--odd-schemas", action="store_true", help="tools with a non-object outputSchema")
    return parser


if __name__ == "__main__":
    RichServer(make_rich_parser().parse_args()).run()
