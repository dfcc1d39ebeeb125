"""An MCP server on stdio that repeats its arguments wherever it can, standard library only.

Run as a script: `python leaky_server.py SECRET...`. All that its arguments and the variables `LEAK_*` hold goes to
stderr at once, in several encodings, into `serverInfo`, and onto stdout as garbage. The tool `boom` says it again and
exits with status 3; `refuse` answers with an error that holds it, which is the server's own and passes through.
"""

from __future__ import annotations

import json
import os
import sys
from urllib.parse import quote

SECRETS = [*sys.argv[1:], *(value for name, value in os.environ.items() if name.startswith("LEAK_"))]


def complain() -> None:
    for secret in SECRETS:
        for text in (secret, quote(secret, safe=""), json.dumps(secret), repr(secret)):
            print(f"invalid key {text} given", file=sys.stderr)
    print("the keys:", *SECRETS, file=sys.stderr, flush=True)


def send(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    complain()
    print("garbage:", *SECRETS, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        method, name = request.get("method"), request.get("params", {}).get("name")
        answer: dict[str, object] = {"jsonrpc": "2.0", "id": request.get("id")}
        if method == "initialize":
            info = {"name": " ".join(SECRETS), "version": "1"}
            capabilities = {"tools": {}, "experimental": {"x": {"keys": SECRETS}}}
            version = request["params"]["protocolVersion"]
            answer["result"] = {"protocolVersion": version, "serverInfo": info, "capabilities": capabilities}
        elif method == "tools/list":
            answer["result"] = {
                "tools": [{"name": one, "inputSchema": {"type": "object"}} for one in ("boom", "refuse")]
            }
        elif name == "boom":
            complain()
            sys.exit(3)
        elif name == "refuse":
            answer["error"] = {"code": -32000, "message": f"no: {SECRETS[0]}"}
        else:
            answer["error"] = {"code": -32601, "message": "not served"}
        if "id" in request:
            send(answer)


if __name__ == "__main__":
    main()
