"""A stdio MCP server that plays a table of rules: bug reports become rows.

Run as a script: `python player.py RULES [LOG]`, where RULES is a JSON array. For each message the first rule that fits
is played; without one the server behaves well: legacy, every version, one tool `t` whose text is its arguments. Each
start and each message is appended to the file LOG as one JSON line (`read_log`).

A rule is an object. Which messages it fits (all conditions must hold):
  method     the JSON-RPC method; left out: any
  times      only the first so many messages that fit the rest, counted over all starts where there is a LOG
  unless     protocol versions: it does not fit an `initialize` that names one of them
What happens then, in this order:
  say        a list of messages, one per line: an object, in which "$id" is the id of the request, or a string, written
             as it is, in which `$id` is replaced likewise; neither: the request gets no answer
  behave     true: the well-behaved answer follows
  then       "exit N", "signal N", "close" (stdout, and live on), "deaf" (read nothing more)
Use `server(rules, log)` for the config entry. `http_player.py` plays the same rules over streamable HTTP and SSE.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
INFO = {"name": "player", "version": "1"}
TOOL = {"name": "t", "description": "d", "inputSchema": {"type": "object"}}


def answer(message: dict[str, Any], info: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The answer of a well-behaved legacy server; None for what needs none."""
    result: dict[str, Any]
    if "id" not in message or "method" not in message:
        return None
    params = message.get("params") or {}
    match message["method"]:
        case "initialize":
            asked = params["protocolVersion"]
            version = asked if asked in VERSIONS else VERSIONS[0]
            result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info or INFO}
        case "tools/list":
            result = {"tools": [TOOL]}
        case "tools/call":
            result = {"content": [{"type": "text", "text": json.dumps(params.get("arguments", {}))}]}
        case "ping":
            result = {}
        case _:
            error = {"code": -32601, "message": "Method not found"}
            return {"jsonrpc": "2.0", "id": message["id"], "error": error}
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


def fits(rule: dict[str, Any], message: dict[str, Any]) -> bool:
    """Whether a rule's conditions other than `times` hold for a message."""
    if "method" in rule and rule["method"] != message.get("method"):
        return False
    return (message.get("params") or {}).get("protocolVersion") not in rule.get("unless", ())


def spell(said: Any, message: dict[str, Any]) -> str:
    """One item of `say` as text, with the request's id in it."""
    request_id = json.dumps(message.get("id"))
    if isinstance(said, str):
        return said.replace("$id", request_id)
    return json.dumps(said).replace('"$id"', request_id)


def choose(rules: list[dict[str, Any]], message: dict[str, Any], played: list[int]) -> dict[str, Any] | None:
    """The first rule that fits; `played` counts how often each was."""
    for number, rule in enumerate(rules):
        if fits(rule, message) and played[number] < rule.get("times", sys.maxsize):
            played[number] += 1
            return rule
    return None


def server(rules: list[dict[str, Any]], log: Path | None = None, **fields: Any) -> dict[str, Any]:
    """The config entry of a stdio server that plays these rules."""
    args = [__file__, json.dumps(rules), *([] if log is None else [str(log)])]
    return {"command": sys.executable, "args": args, **fields}


def read_log(log: Path) -> list[str]:
    """Return the methods sent to a server over all starts, and each "start".

    `initialize` is listed with its version.
    """
    if not log.exists():
        return []
    return [name(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]


def name(message: dict[str, Any]) -> str:
    """A message in one or two words."""
    if message.get("method") == "initialize":
        return f"initialize {message['params']['protocolVersion']}"
    return message.get("method", "response")


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.flush()


def _end(then: str) -> None:
    verb, _, number = then.partition(" ")
    match verb:
        case "exit":
            os._exit(int(number))
        case "signal":
            os.kill(os.getpid(), int(number))
        case "close":
            sys.stdout.flush()
            os.close(1)
        case "deaf":
            while True:
                signal.pause()
        case _:
            time.sleep(0)


def main() -> None:
    rules: list[dict[str, Any]] = json.loads(sys.argv[1])
    log = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    played = [0] * len(rules)
    if log is not None:
        if log.exists():
            for line in log.read_text(encoding="utf-8").splitlines():
                choose(rules, json.loads(line), played)
        with log.open("a", encoding="utf-8") as file:
            file.write('{"method":"start"}\n')
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(message) + "\n")
        rule = choose(rules, message, played)
        for said in () if rule is None else rule.get("say", ()):
            _write(spell(said, message))
        if (rule is None or rule.get("behave")) and (usual := answer(message)) is not None:
            _write(json.dumps(usual))
        if rule is not None and "then" in rule:
            _end(rule["then"])


if __name__ == "__main__":
    main()
