"""An MCP server on stdio whose tools have pages (MCP Apps); standard library only.

Run as a script, with any option of `rich_server.py`, on which it is built; `--name NAME` is part of its answers. To a
client that has declared `io.modelcontextprotocol/ui` with HTML it lists, beside the tools of the rich server:
`show`, whose page is `ui://apps/page` (every server of this kind has one of this name) · `refresh`, only for apps ·
`think`, only for models · `only_NAME`. Each answers "NAME tool"; `ask_NAME` is `ask` of the rich server. `told` answers
with the capabilities that the client has declared, with the request or in `initialize`. All others are listed `show`
without a page, and `told`.
"""

from __future__ import annotations

from echo_server import META, schema, text_result
from rich_server import RichServer, make_rich_parser

UI = "io.modelcontextprotocol/ui"
HTML = "text/html;profile=mcp-app"
PAGE = "ui://apps/page"


class AppsServer(RichServer):
    def __init__(self, options):
        self.introduced = {}
        super().__init__(options)
        self.methods |= {"resources/list": self.list_resources, "resources/read": self.read_resource}

    def declared(self, params):
        return params.get("_meta", {}).get(META + "clientCapabilities", self.introduced)

    def initialize(self, message, params):
        self.introduced = params["capabilities"]
        return self.with_extension(super().initialize(message, params))

    def discover(self, message, params):
        return self.with_extension(super().discover(message, params))

    def with_extension(self, result):
        extensions = {UI: {"by": self.options.name}, "x.example/other": {}}
        result["capabilities"] |= {"resources": {}, "extensions": extensions}
        return result

    def list_tools(self, message, params):
        shows = HTML in self.declared(params).get("extensions", {}).get(UI, {}).get("mimeTypes", [])
        result = super().list_tools(message, params)
        if not shows:
            result["tools"] = [
                {name: value for name, value in tool.items() if name != "_meta"}
                for tool in result["tools"]
                if tool["name"] in {"show", "told"}
            ]
        return result

    def make_tools(self):
        metas = {
            "show": {"ui": {"resourceUri": PAGE, "prefers": None}, "ui/resourceUri": PAGE},
            "refresh": {"ui": {"visibility": ["app"], "resourceUri": PAGE}},
            "think": {"ui": {"visibility": ["model"]}},
            f"only_{self.options.name}": {"ui": {"visibility": ["app", "model"]}},
        }
        tools = super().make_tools()
        for name, meta in metas.items():
            tools[name] = (self.tool_named, {"name": name, "inputSchema": schema(), "_meta": meta})
        ask = f"ask_{self.options.name}"
        tools[ask] = (self.tool_ask, {"name": ask, "inputSchema": schema()})
        tools["told"] = (self.tool_told, {"name": "told", "inputSchema": schema()})
        return tools

    def tool_named(self, _message, params, _arguments):
        return text_result(f"{self.options.name} {params['name']}")

    def tool_told(self, _message, params, _arguments):
        return {"content": [], "structuredContent": self.declared(params)}

    def list_resources(self, _message, _params):
        return {"resources": [{"uri": PAGE, "name": "page", "mimeType": HTML}]}

    def read_resource(self, _message, params):
        contents = {"uri": params["uri"], "mimeType": HTML, "text": f"<p>{self.options.name}</p>"}
        return {"contents": [contents | {"_meta": {"ui": {"csp": {}, "domain": "a.example"}}}]}


if __name__ == "__main__":
    parser = make_rich_parser()
    parser.description = __doc__
    AppsServer(parser.parse_args()).run()
