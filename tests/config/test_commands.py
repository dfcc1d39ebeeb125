"""`${cmd:...}` in a config file: run without a shell, within a deadline, once per read."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from gateway.config import load_config, parse_config
from gateway.config.files import FileReader, UnreadableFile
from gateway.config.shown import secrets_of_config
from gateway.errors import ConfigError
from gateway.reload.source import ConfigSource

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
    with pytest.raises(UnreadableFile, match=r"has not ended within 0\.5 s"):
        reader(tmp_path).run("./tool", timeout=0.5)
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids.read_text(encoding="utf-8").split())):
        assert time.monotonic() < deadline


def test_only_a_file_may_name_commands():
    with pytest.raises(ConfigError, match=r"\$\{cmd:...\}, which works only in a config file"):
        parse_config({"mcpServers": {"a": {"command": "${cmd:id}"}}}, environ=ENVIRON)
