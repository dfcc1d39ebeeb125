"""A replacement for the model of real agents.

`fake_model.py ENDING ARGUMENTS` prints its port. It calls the tool whose name ends so and repeats the result, in the
formats of three APIs: Anthropic's messages, and OpenAI's responses and chat completions, all streamed.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENDING, ARGUMENTS = sys.argv[1:]
USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "prompt_tokens": 1, "completion_tokens": 1}


def find_tool(body):
    """The names of the tool to call and of its namespace, if any."""
    for tool in body.get("tools", ()):
        for one in tool.get("tools") or [tool.get("function", tool)]:
            if str(one.get("name", "")).endswith(ENDING):
                return one["name"], tool["name"] if tool.get("type") == "namespace" else None
    return None, None


def say(text):
    return f"the tool said: {text}"


def messages(body):
    """Anthropic, POST /v1/messages."""
    blocks = [block for one in body["messages"] if isinstance(one["content"], list) for block in one["content"]]
    result = next((block for block in blocks if block.get("type") == "tool_result"), None)
    name, _ = find_tool(body)
    if name is not None and result is None:
        block, stop = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}, "tool_use"
        delta = {"type": "input_json_delta", "partial_json": ARGUMENTS}
    else:
        block, stop = {"type": "text", "text": ""}, "end_turn"
        delta = {"type": "text_delta", "text": say(json.dumps(result))}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": []}
    yield {"type": "message_start", "message": message | {"stop_reason": None, "stop_sequence": None, "usage": USAGE}}
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": USAGE}
    yield {"type": "message_stop"}


def responses(body):
    """OpenAI, POST /v1/responses."""
    result = next((item for item in body["input"] if item.get("type") == "function_call_output"), None)
    name, namespace = find_tool(body)
    if name is not None and result is None:
        item = {"type": "function_call", "call_id": "call_1", "name": name, "arguments": ARGUMENTS}
        item |= {"namespace": namespace} if namespace else {}
    else:
        content = [{"type": "output_text", "text": say(json.dumps(result)), "annotations": []}]
        item = {"type": "message", "role": "assistant", "id": "msg_1", "content": content}
    yield {"type": "response.created", "response": {"id": "resp_1"}}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": {"id": "resp_1", "usage": USAGE}}


def completions(body):
    """OpenAI and compatible ones, POST /v1/chat/completions."""
    result = next((one for one in body["messages"] if one["role"] == "tool"), None)
    name, _ = find_tool(body)
    if name is not None and result is None:
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ARGUMENTS}}
        delta, stop = {"tool_calls": [call]}, "tool_calls"
    else:
        delta, stop = {"content": say(json.dumps(result))}, "stop"
    chunk = {"id": "chat_1", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
    yield chunk | {"choices": [{"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None}]}
    yield chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": stop}], "usage": USAGE}


FORMATS = {"/messages": messages, "/responses": responses, "/completions": completions}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(404, "application/json", b"{}")

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.partition("?")[0]
        form = next((form for end, form in FORMATS.items() if path.endswith(end)), None)
        if form is None:
            self.answer(404, "application/json", b"{}")
            return
        events = [*form(body)]
        named = "event: {type}\n" if "type" in events[0] else ""
        text = "".join(f"{named.format_map(event)}data: {json.dumps(event)}\n\n" for event in events)
        self.answer(200, "text/event-stream", text.encode() + (b"data: [DONE]\n\n" if form is completions else b""))

    def answer(self, status, kind, data):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
