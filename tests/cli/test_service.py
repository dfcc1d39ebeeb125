"""`service`: units that systemd accepts, an agent for launchd, and the commands of both."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main, service
from tests.support.gateway_process import START_WITHIN

UNITS = ("mcp-gateway.socket", "mcp-gateway.service")


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("GH_TOKEN", "s3cr3t")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    servers = {"x": {"command": "x", "env": {"T": "${GH_TOKEN}", "L": "${LANG:-C}"}}}
    (tmp_path / "ours.json").write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")

    def run(*args):
        status = main(["service", *args])
        out, err = capsys.readouterr()
        assert "s3cr3t" not in out + err
        return status, out, err

    return run


@pytest.fixture
def called(tmp_path):
    """Service managers that note their arguments, and fail if these contain what is in `refused`."""
    (tmp_path / "refused").write_text("nothing", encoding="utf-8")
    for name in ("systemctl", "launchctl"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        note = "args = ' '.join(sys.argv[1:])\nprint(args, file=open('calls', 'a'))"
        end = "sys.exit(open('refused').read() in args)"
        path.write_text(f"#!{sys.executable}\nimport sys\n{note}\n{end}\n", encoding="utf-8")
        path.chmod(0o755)

    def read():
        path = tmp_path / "calls"
        lines = path.read_text(encoding="utf-8").splitlines()
        path.unlink()
        return lines

    return read


def folder(tmp_path):
    return tmp_path / ".config" / "systemd" / "user"


def test_systemd_runs_the_gateway_until_it_is_removed(cli, tmp_path, called):
    status, out, err = cli("install", "--config", "ours.json", "--port", "9000", "--yes")
    assert status == 0
    assert "does not get GH_TOKEN from this shell" in err
    assert "http://127.0.0.1:9000/mcp" in err
    assert called() == ["--user daemon-reload", f"--user enable --now {' '.join(UNITS)}"]
    texts = [(folder(tmp_path) / unit).read_text(encoding="utf-8") for unit in UNITS]
    assert "ListenStream=127.0.0.1:9000\n" in texts[0]
    assert f"serve --config {tmp_path / 'ours.json'} --transport http\n" in texts[1]
    assert all(text in out for text in texts)
    assert cli("status")[0] == 0
    assert called() == [f"--user --no-pager status {' '.join(UNITS)}"]
    assert cli("install", "--config", "ours.json", "--yes")[0] == 0
    assert called()[0] == f"--user disable --now {' '.join(UNITS)}"
    assert cli("uninstall", "--yes")[0] == 0
    assert called() == [f"--user disable --now {' '.join(UNITS)}", "--user daemon-reload"]
    assert os.listdir(folder(tmp_path)) == []
    assert cli("uninstall")[0] == 0
    status, out, _ = cli("status")
    assert (status, "no service is installed" in out) == (1, True)


def test_launchd_runs_it_on_macos(cli, tmp_path, called, monkeypatch):
    monkeypatch.setattr(service, "sys", type("Mac", (), {"platform": "darwin"}))
    assert cli("install", "--config", "ours.json", "--port", "9000", "--yes")[0] == 0
    path = tmp_path / "Library" / "LaunchAgents" / "mcp-gateway.plist"
    agent = plistlib.loads(path.read_bytes())
    assert agent["ProgramArguments"][-4:] == ["--transport", "http", "--port", "9000"]
    domain = f"gui/{os.getuid()}"
    assert called() == [f"bootstrap {domain} {path}"]
    (tmp_path / "refused").write_text("bootout", encoding="utf-8")  # it has ended by itself
    assert cli("install", "--config", "ours.json", "--yes")[0] == 0
    assert called() == [f"bootout {domain}/mcp-gateway", f"bootstrap {domain} {path}"]
    assert cli("uninstall", "--yes")[0] == 0
    assert not path.exists()


def test_print_shows_the_units_and_writes_nothing(cli, tmp_path):
    status, out, err = cli("install", "--config", "ours.json", "--print")
    assert (status, err) == (0, "")
    assert "ListenStream=127.0.0.1:8080\n" in out
    assert not folder(tmp_path).exists()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("install", "--config", "ours.json", "--yes"), 1, "no systemctl"),
        (("install",), 2, "no config file"),
        (("install", "--config", "absent.json"), 2, "no such file"),
        (("start",), 2, "is not one of install, uninstall, status"),
    ],
)
def test_a_service_that_cannot_run_is_not_written(cli, tmp_path, words, status, said):
    found, _, err = cli(*words)
    assert (found, said in err) == (status, True), err
    assert not folder(tmp_path).exists()


@pytest.mark.parametrize(
    ("platform", "name"), [("linux", "\udcff.json"), ("darwin", "\udcff.json"), ("darwin", "\1.json")]
)
def test_a_path_that_no_file_can_hold_is_refused(cli, tmp_path, monkeypatch, platform, name):
    (tmp_path / name).write_bytes((tmp_path / "ours.json").read_bytes())
    monkeypatch.setattr(sys, "platform", platform)
    status, _, err = cli("install", "--config", name, "--print")
    assert (status, "cannot have" in err) == (1, True), err


def test_nothing_is_written_without_consent(cli, tmp_path, called):
    status, _, err = cli("install", "--config", "ours.json")
    assert (status, "--yes writes without asking" in err) == (1, True)
    assert not folder(tmp_path).exists()


def test_a_managers_refusal_is_reported(cli, tmp_path, called):
    (tmp_path / "refused").write_text("daemon-reload", encoding="utf-8")
    status, _, err = cli("install", "--config", "ours.json", "--yes")
    assert (status, "daemon-reload: exit status 1" in err, "run this again" in err) == (1, True, True)


NAMES = [
    "plain.json",
    "my config.json",
    'a"b\\c.json',
    "50%$HOME.json",
    "müsli.json",
    "two\nlines.json",
    "return\rFoo=.json",
]


@pytest.mark.parametrize("name", NAMES)
def test_systemd_reads_the_command_as_written(name):
    command = ["/bin/echo", "serve", "--config", f"/home/ada/{name}"]
    unit = service.systemd(command, 8080, {"HOME": "/home/ada"}).files[Path("/home/ada/.config/systemd/user", UNITS[1])]
    (line,) = re.findall(r"ExecStart=(.*)", unit.decode())
    assert words_of(line) == command


@pytest.mark.real("servers")
def test_systemd_accepts_the_units(tmp_path):
    analyze = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not on PATH")
    program = tmp_path / "a $HOME%h" / "echo"
    program.parent.mkdir()
    program.symlink_to("/bin/echo")
    manager = service.systemd([str(program), *NAMES], 8080, {"XDG_CONFIG_HOME": str(tmp_path)})
    for path, data in manager.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "run").mkdir(mode=0o700)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    command = [analyze, "verify", "--user", "--man=no", "--generators=no", *map(str, manager.files)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=START_WITHIN, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def words_of(line):
    """The words that systemd makes of a command line (systemd.service, "Command lines")."""
    words = re.findall(r'"((?:\\.|[^"\\])*)"|(\S+)', line)
    plain = (
        re.sub(r"\\(.)", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), quoted) if quoted else bare
        for quoted, bare in words
    )
    return [word.replace("%%", "%").replace("$$", "$") for word in plain]
