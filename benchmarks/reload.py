"""Question: can the config change at any moment under load, without affecting other calls?

Method: one gateway over HTTP before four stdlib echoes; clients of both eras, half and half, call them continuously,
each text being unique. Meanwhile the config is replaced `--reloads` times, at random moments (fixed seed): by the file
and SIGHUP, by the file and `POST /reload`, or by `POST /servers/NAME/restart`. `keep` never changes, `change` changes
each time, `come` is there every other time, `many` is one to three further servers. Each answer must be the one to its
request, and the only one; a call to a server that is absent at that moment may get the error for that. `keep` must be
the same process at the end, never restarted; and the gateway's resources then are compared with those after the first
few reloads. Exits with status 1 if anything was wrong, whatever the options.
"""

from __future__ import annotations

import http.client
import json
import signal
import time
from random import Random

import trio

from benchmarks.memory import read_status
from benchmarks.processes import backend, config_file, config_of, gateway_command, serving
from benchmarks.resources import hold, settle
from benchmarks.soak_client import BREAKAGES, WITHIN, WORDS, Client, Tally
from benchmarks.table import Claim, Figure, render

WARM = 20  # reloads before the first measurement: the loop's threads and the allocator have their final size then
LONGEST_PAUSE = 0.05  # seconds between two reloads, at most
LAST_RELOAD = 30.0  # seconds in which the last one must take effect
GROWTH = 20  # MB of memory that may stay
DEFAULT_SEED = 20260728
GONE = -32602  # the error code for an unknown name
MISTAKES = ("misdirected", "lost", "doubled", "unexpected")
TOKEN = "a-token-for-the-benchmarks"


def add_arguments(parser):
    parser.add_argument("--reloads", type=int, help="how many (1000; quick: 30)")
    parser.add_argument("--clients", type=int, help="clients at once (8; quick: 4)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of moments and ways (%(default)s)")


def run(options):
    reloads = options.reloads or (30 if options.quick else 1000)
    clients = options.clients or (4 if options.quick else 8)
    warm = min(WARM, reloads // 3)
    tally = Tally()
    with config_file(make_config(0)) as path:
        # Its own watch off: only requested reloads happen.
        command = [*gateway_command(path, "streamable-http"), "--no-watch", "--admin-token", TOKEN]
        with serving(command) as gateway:
            gateway.wait_ready(4)
            changes = Changes(gateway, path, Random(options.seed), tally, make_config)
            pid = gateway.health()["backends"]["keep"]["pid"]
            traffic(gateway, clients, changes, warm, tally)
            before, memory = rest(gateway), read_status(gateway.pid)["VmRSS"]
            seconds = traffic(gateway, clients, changes, reloads - warm, tally)
            after, grown = rest(gateway, before), read_status(gateway.pid)["VmRSS"] - memory
            keep = gateway.health()["backends"]["keep"]
            tally.mistakes["restarted"] = keep["restarts"] + (keep["pid"] != pid)
    claims = make_claims(tally, before, after, size=f"{reloads} reloads, {clients} clients")
    claims += [
        Claim("RSS: growth after the first few reloads", Figure.of([grown]), "MB", 1e-6, most=GROWTH),
        Claim("reloads a second", Figure.of([(reloads - warm) / seconds]), "1/s"),
    ]
    rows = [[name, count] for name, count in sorted(tally.done.items())]
    data = {"seed": options.seed, "done": tally.done, "wrong": tally.reported, "before": before, "after": after}
    text = render([f"done, with seed {options.seed}", "times"], rows)
    return claims, ("\n".join([text, *(["", *tally.reported] if tally.reported else [])]), data)


def fatal(claims):
    """Return whether any promise was broken; none of them is about speed."""
    return not all(claim.reached for claim in claims)


def make_config(number):
    """Return the config of one reload; number 0 is that of the end."""
    commands = {"keep": backend(), "change": backend("echo", "--name", f"change-{number}")}
    if number % 2 == 0:
        commands["come"] = backend()
    commands |= {f"many{index}": backend() for index in range(1 + number % 3)}
    config = config_of(commands)
    for server in config["mcpServers"].values():
        server["shutdown_grace"] = 2
    return config


class Changes:
    """Replaces the config, repeatedly."""

    def __init__(self, gateway, path, random, tally, make_config, *, longest_pause=LONGEST_PAUSE):
        self.gateway, self.path, self.random, self.tally = gateway, path, random, tally
        self.make_config, self.longest_pause = make_config, longest_pause
        self.number = 0

    async def make(self, count):
        for left in range(count, 0, -1):
            await trio.sleep(self.random.uniform(0, self.longest_pause))
            self.number = 0 if left == 1 else self.number + 1
            ways = [self.by_signal, self.by_api, self.by_api, self.by_restart]
            await (self.random.choice(ways) if left > 1 else self.by_api)()
            self.tally.done["reloads"] += 1

    def write(self):
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.make_config(self.number)), encoding="utf-8")
        fresh.replace(self.path)

    async def by_signal(self):
        """Reload by signal, which reports no end; the next reload waits for its turn."""
        self.write()
        self.gateway.process.send_signal(signal.SIGHUP)
        self.tally.done["reloads by signal"] += 1

    async def by_api(self):
        self.write()
        await self.ask("/reload")

    async def by_restart(self):
        await self.ask("/servers/change/restart")

    async def ask(self, path):
        status, answer = await trio.to_thread.run_sync(self.post, path)
        if status != 200 or answer.get("not_ready"):
            self.tally.fail("unexpected", f"{path}: {status} {answer}")

    def post(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=LAST_RELOAD)
        try:
            headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
            connection.request("POST", path, "{}", headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


class Caller(Client):
    """Calls servers at random, one call after the other, in one era."""

    def __init__(self, name, url, seed, tally, *, era):
        super().__init__(name, url, seed, tally)
        self.era = era

    async def run(self, over):
        if self.era == "legacy":
            with trio.fail_after(WITHIN):
                await self.http.initialize()
        while not over.is_set():
            await self.step({self.step_keep: 4, self.step_change: 3, self.step_come: 2, self.step_many: 2}, self.random)

    async def step_keep(self, random):
        await self.call("keep", random)

    async def step_change(self, random):
        await self.call("change", random)

    async def step_come(self, random):
        await self.call("come", random)

    async def step_many(self, random):
        await self.call(f"many{random.randint(0, 2)}", random)

    async def call(self, server, random):
        nonce, tool = self.nonce(), f"{server}.{random.choice(('echo', 'echo', 'sleep'))}"
        arguments = {"text": nonce} | ({"seconds": random.uniform(0, 0.1)} if tool.endswith("sleep") else {})
        answer = await self.request(tool, arguments)
        if answer is None:
            return
        if "error" in answer and self.may_be_gone(server, answer["error"]):
            self.tally.done["calls to absent servers"] += 1
        else:
            self.judge(answer, nonce, tool)

    async def request(self, tool, arguments):
        """Return the one answer to a call; None if there is not exactly one."""
        params = {"name": tool, "arguments": arguments}
        if self.era == "legacy":
            self.http.last_id += 1
            message = {"jsonrpc": "2.0", "id": self.http.last_id, "method": "tools/call", "params": params}
            response = await self.http.post(message, within=WITHIN)
        else:
            message, headers = self.http.modern_request("tools/call", params)
            response = await self.http.send("POST", json.dumps(message).encode(), headers=headers, within=WITHIN)
        answers = [one for one in response.messages() if "method" not in one]
        if [one["id"] for one in answers] != [message["id"]]:
            self.fail("doubled" if len(answers) > 1 else "lost", f"{tool}: {answers}")
            return None
        return answers[0]

    @staticmethod
    def may_be_gone(server, error):
        """Check that only some are ever removed, and only with this error."""
        removed = server == "come" or server in {"many1", "many2"}
        return removed and error["code"] == GONE and "Unknown tool" in error["message"]


def traffic(gateway, clients, changes, count, tally):
    """Have clients call during `reloads` replacements of the config; return the seconds that this took."""
    url = f"http://127.0.0.1:{gateway.port}/mcp"
    began = time.monotonic()

    async def main():
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            for number in range(clients):
                era = ("legacy", "modern")[number % 2]
                nursery.start_soon(Caller(f"{count}-{number}", url, DEFAULT_SEED, tally, era=era).run, over)
            try:
                await changes.make(count)
            except BREAKAGES as exc:
                tally.fail("unexpected", f"a reload: {exc!r}")
            over.set()

    trio.run(main)
    return time.monotonic() - began


def rest(gateway, wanted=None):
    """Return the gateway's resources once replaced backends have ended.

    Waits until they meet the target, or a time limit.
    """
    if wanted is not None:
        return settle(gateway, wanted)[0]
    processes = len(make_config(0)["mcpServers"]) + 1  # and the sentinel
    settle(gateway, {"processes": processes, "calls in flight": 0})
    return hold(gateway)


def make_claims(tally, before, after, *, size):
    calls = sum(count for name, count in tally.done.items() if name.startswith(("legacy ", "modern ")))
    claims = [Claim(f"calls, {size}", Figure.of([calls]), least=1)]
    claims += [Claim(WORDS[mistake], Figure.of([tally.mistakes[mistake]]), most=0) for mistake in MISTAKES]
    claims.append(Claim("unchanged servers that were restarted", Figure.of([tally.mistakes["restarted"]]), most=0))
    for name, count in after.items():
        claims.append(Claim(f"left behind: {name}", Figure.of([max(0, count - before[name])]), most=0))
    return claims
