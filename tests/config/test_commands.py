"""`${cmd:...}` in a config file: concurrent, without a shell, within a deadline, cached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import accumulate
from pathlib import Path

import pytest

from gateway.config import load_config, parse_config
from gateway.config.commands import CommandFailed, run_commands
from gateway.config.files import FileReader
from gateway.config.shown import secrets_of_config
from gateway.errors import ConfigError
from gateway.reload.overlay import Overlay
from gateway.reload.source import ConfigSource

ROOT = str(Path(__file__).parents[2])
ENVIRON = {"HOME": "/h", "PATH": os.environ["PATH"], "FROM": "outside"}


def script(tmp_path, body, name="tool"):
    path = tmp_path / name
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def reader(tmp_path):
    return FileReader(tmp_path, "/h", ENVIRON)


def config(tmp_path, *texts):
    path = tmp_path / "c.json"
    env = {f"V{number}": text for number, text in enumerate(texts)}
    path.write_text(json.dumps({"mcpServers": {"a": {"command": "x", "env": env}}}), encoding="utf-8")
    return path


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_command_output_is_a_secret(tmp_path):
    script(tmp_path, "print('s3cr3t-' + sys.argv[1])")
    path = config(tmp_path, "Bearer ${cmd:./tool 'one two'}", "${cmd:./tool x}")
    found = load_config(path, environ=ENVIRON)
    assert found.servers["a"].env == {"V0": "Bearer s3cr3t-one two", "V1": "s3cr3t-x"}
    assert "s3cr3t-one two" in str(secrets_of_config(found))


def test_no_shell_is_used(tmp_path):
    script(tmp_path, "print(sys.argv[1:])")
    assert reader(tmp_path).run("./tool $FROM `id` ; | > f *") == "['$FROM', '`id`', ';', '|', '>', 'f', '*']"
    assert not (tmp_path / "f").exists()


def test_a_command_has_the_environment_and_no_stdin(tmp_path):
    script(tmp_path, "print(os.environ['FROM'], repr(sys.stdin.read()))")
    assert reader(tmp_path).run("./tool") == "outside ''"


def test_a_command_runs_once_per_config_read(tmp_path):
    script(
        tmp_path,
        f"open({str(tmp_path / 'runs')!r}, 'a').write('.'); print(len(open({str(tmp_path / 'runs')!r}).read()))",
    )
    source = ConfigSource(config(tmp_path, "${cmd:./tool}", "${cmd:./tool}"), environ=ENVIRON)
    assert source.open().servers["a"].env == {"V0": "1", "V1": "1"}
    assert source.read().config.servers["a"].env == {"V0": "2", "V1": "2"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit(3)", "failed with exit status 3"),
        ("sys.stderr.write('s3cr3t'); sys.exit(1)", "exit status 1"),
        ("os.kill(os.getpid(), 9)", "exit status -9"),
        ("sys.stdout.buffer.write(bytes([255]))", "not UTF-8"),
        ("print('x' * 70_000); time.sleep(60)", "more than 64 KiB"),
    ],
)
def test_a_failed_commands_output_is_not_repeated(tmp_path, body, said):
    script(tmp_path, body)
    with pytest.raises(ConfigError) as caught:
        load_config(config(tmp_path, "${cmd:./tool s3cr3t-argument}"), environ=ENVIRON)
    (problem,) = caught.value.problems
    assert said in problem
    assert "s3cr3t" not in problem


@pytest.mark.parametrize(
    ("command", "said"),
    [("no-such-program-anywhere x", "no such file"), ("", "names no command"), ("x 'y", "no closing quotation")],
)
def test_an_invalid_command_is_described(tmp_path, command, said):
    with pytest.raises(ConfigError, match=said):
        load_config(config(tmp_path, f"${{cmd:{command}}}"), environ=ENVIRON)


@pytest.mark.parametrize("body", ["time.sleep(60)", "os.close(1); time.sleep(60)"])
def test_a_hanging_command_is_killed_with_its_children(tmp_path, body):
    pids = tmp_path / "pids"
    script(tmp_path, f"child = os.fork(); open({str(pids)!r}, 'a').write(f'{{os.getpid()}} '); os.close(2)\n{body}")
    failed = run_commands(["./tool"], tmp_path, ENVIRON, timeout=0.5)["./tool"]
    assert isinstance(failed, CommandFailed)
    assert "has not ended within 0.5 s" in str(failed)
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids.read_text(encoding="utf-8").split())):
        assert time.monotonic() < deadline


def test_no_command_outlives_the_program(tmp_path):
    tool = script(tmp_path, "open('pid', 'w').write(str(os.getpid())); os.rename('pid', 'running'); time.sleep(60)")
    body = f"""
import os, threading, time
from pathlib import Path
from gateway.config.commands import run_commands

threading.Thread(target=run_commands, args=([{str(tool)!r}], Path("."), os.environ), daemon=True).start()
while not os.path.exists("running"):
    time.sleep(0.01)
"""
    subprocess.run(
        [sys.executable, "-c", body], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ROOT}, check=True, timeout=30
    )
    pid = int((tmp_path / "running").read_text(encoding="utf-8"))
    deadline = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid)


def test_only_a_file_may_name_commands():
    with pytest.raises(ConfigError, match=r"\$\{cmd:...\}, which works only in a config file"):
        parse_config({"mcpServers": {"a": {"command": "${cmd:id}"}}}, environ=ENVIRON)


# -- concurrently ------------------------------------------------------------------------------------------------------

MEET = """
folder = os.path.dirname(os.path.abspath(sys.argv[0]))
open(os.path.join(folder, 'here-' + sys.argv[1]), 'w').close()
while len([name for name in os.listdir(folder) if name.startswith('here-')]) < int(sys.argv[2]):
    time.sleep(0.01)
print((sys.argv[3:] or ['met'])[0])
"""
"""Ends only while as many run at the same time as its second argument says."""


def test_commands_run_concurrently(tmp_path):
    script(tmp_path, MEET)
    commands = [f"./tool {number} 4" for number in range(4)]
    assert run_commands(commands, tmp_path, ENVIRON) == dict.fromkeys(commands, "met")


def test_the_number_of_running_commands_is_bounded(tmp_path):
    note = "fd = os.open('noted', os.O_WRONLY | os.O_APPEND | os.O_CREAT); os.write(fd, b'+'); time.sleep(0.02)"
    script(tmp_path, f"os.chdir(sys.argv[1]); {note}; os.write(fd, b'-')")
    run_commands([f"./tool {tmp_path} {number}" for number in range(7)], tmp_path, ENVIRON, max_running=3)
    noted = (tmp_path / "noted").read_text(encoding="utf-8")
    assert len(noted) == 14
    assert max(accumulate(1 if sign == "+" else -1 for sign in noted)) in {2, 3}


def test_one_failure_does_not_affect_the_others(tmp_path):
    script(tmp_path, "time.sleep(60)", "hangs")
    script(tmp_path, "print('x' * 70_000)", "talks")
    script(tmp_path, "print('value')")
    found = run_commands(["./hangs", "./missing", "./talks", "", "./tool"], tmp_path, ENVIRON, timeout=2)
    assert {command: isinstance(text, CommandFailed) for command, text in found.items()} == {
        "./hangs": True,
        "./missing": True,
        "./talks": True,
        "": True,
        "./tool": False,
    }
    assert found["./tool"] == "value"


def test_all_commands_of_a_config_run_together(tmp_path):
    script(tmp_path, MEET)
    (tmp_path / "env").write_text("X=1", encoding="utf-8")
    path = tmp_path / "c.json"
    servers = {
        "a": {"command": "x", "env": {"A": "${cmd:./tool 1 4}", "B": "${cmd:./tool 2 4}"}, "env_file": "env"},
        "b": {"url": "http://h/", "headers": {"Authorization": "${cmd:./tool 3 4}"}},
    }
    digest = f"sha256:{'0' * 64}"
    access = {"keys": [{"name": "one", "hash": f"${{cmd:./tool 4 4 {digest}}}"}]}
    path.write_text(json.dumps({"mcpServers": servers, "access": access}), encoding="utf-8")
    found = load_config(path, environ=ENVIRON)
    assert found.servers["a"].env == {"X": "1", "A": "met", "B": "met"}
    assert found.servers["b"].headers == {"Authorization": "met"}


# -- disabled servers --------------------------------------------------------------------------------------------------

NOTED = "open(sys.argv[1], 'a').write('.'); print(sys.argv[2])"


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "${cmd:COMMAND}"},
        {"url": "${cmd:COMMAND}"},
        {"command": "x", "args": ["${cmd:COMMAND}"]},
        {"command": "x", "env": {"A": "${cmd:COMMAND}"}},
        {"command": "x", "cwd": "${cmd:COMMAND}"},
        {"command": "x", "env_file": "${cmd:COMMAND}"},
        {"command": "x", "call_timeout": "${cmd:COMMAND}"},
        {"url": "http://h/", "headers": {"A": "Bearer ${cmd:COMMAND}"}},
    ],
)
@pytest.mark.parametrize("switch", [{"disabled": True}, {"enabled": False}, {"disabled": "${FLAG}"}])
def test_a_disabled_servers_commands_do_not_run(tmp_path, entry, switch):
    noted = tmp_path / "noted"
    script(tmp_path, NOTED)
    path = tmp_path / "c.json"
    text = json.dumps({"mcpServers": {"a": entry | switch}}).replace("COMMAND", f"./tool {noted} 1")
    path.write_text(text, encoding="utf-8")
    found = load_config(path, environ=ENVIRON | {"FLAG": "true"})
    assert found.servers["a"].disabled
    assert not found.warnings
    assert not noted.exists()


def test_enabling_a_server_runs_its_commands(tmp_path):
    noted = tmp_path / "noted"
    script(tmp_path, NOTED)
    path = tmp_path / "c.json"
    entry = {"command": "x", "env": {"A": f"${{cmd:./tool {noted} long-value}}"}, "disabled": True}
    path.write_text(json.dumps({"mcpServers": {"a": entry}}), encoding="utf-8")
    source = ConfigSource(path, environ=ENVIRON)
    assert source.open().servers["a"].env == {}
    enabled = Overlay().switch(source.base, "a", disabled=False)
    for _ in range(2):  # cached until the next reload
        server = enabled.compose(source.base, ENVIRON).servers["a"]
        assert server.env == {"A": "long-value"}
        assert server.masked == {"long-value": f"${{cmd:./tool {noted} long-value}}"}
        assert noted.read_text(encoding="utf-8") == "."
