"""Connecting to the gateway of a place, which is started if necessary.

A lock determines the relay that starts it: its holder binds the socket, listens and forks, so that all other relays can
then connect and wait in the backlog until the gateway accepts. The gateway inherits only that socket, its log, the
variables that its config names, and those that its children always get: it belongs to no client.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import sys
import time

from gateway.relay.places import GATEWAYS_VARIABLE, STATE_VARIABLE, RelayError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.relay.places import Place

START_TIMEOUT = 60.0
"""Seconds for a gateway to start and accept, including imports and reading its config."""
PROMPT_TIMEOUT = 0.05
"""Seconds in which a gateway that runs answers; one that takes longer is still starting, or busy."""
LOCK_TIMEOUT = 30.0
"""Seconds to wait for another relay that is starting a gateway, which takes some milliseconds."""
LOCK_INTERVAL = 0.01
"""Seconds between two tries to get the lock, or a place in the queue of a gateway's socket."""
ATTEMPTS = 3
"""Gateways that may end before they accept: one may be stopping, or a config may be wrong."""
BACKLOG = 128
"""Relays that may wait while the gateway starts."""
MAX_LOG_BYTES = 1024 * 1024
"""A larger log is renamed to `.old` when a gateway starts."""
SHOWN_LOG_BYTES = 4_096
"""Length of the shown end of the log of a gateway that did not start."""
MAX_GREETING = 4_096
LISTEN_FD = 3
"""The descriptor of the socket in the gateway, as in sd_listen_fds(3)."""
MAX_FDS = 1 << 16
"""Descriptors that a client may have left open; without a limit, macOS reports more than `closerange` accepts."""
INHERITED = (
    "HOME LANG LC_ALL LC_CTYPE LOGNAME PATH SHELL TERM TMPDIR TZ USER XDG_RUNTIME_DIR XDG_STATE_HOME"
    " ALL_PROXY HTTPS_PROXY HTTP_PROXY NO_PROXY all_proxy http_proxy https_proxy no_proxy"
    " CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS REQUESTS_CA_BUNDLE SSL_CERT_DIR SSL_CERT_FILE"
    " LD_LIBRARY_PATH PYTHONHOME PYTHONPATH " + GATEWAYS_VARIABLE
).split()
"""Variables that the gateway gets without being named in its config: those that children of any gateway get, and those
that select this interpreter and the state directory."""


def open_gateway(
    place: Place,
    hello: Mapping[str, object],
    environ: Mapping[str, str],
    meanwhile: Callable[[socket.socket], None] | None = None,
) -> socket.socket:
    """Connect to the gateway, starting it if necessary, and send this client's introduction.

    Args:
        place: the gateway's config and files.
        hello: the introduction.
        environ: the environment of this client.
        meanwhile: called at most once, with the connection to a gateway that is still starting.

    Raises:
        RelayError: it cannot be started or reached, or refuses this client.
    """
    line = json.dumps(hello).encode() + b"\n"
    logged = _size(place.log)
    for _ in range(ATTEMPTS):
        running = _connect(place)
        sock = running or _start(place, environ)
        try:
            greeting = _greet(sock, line, 0.0 if running is None else PROMPT_TIMEOUT, meanwhile)
        except BaseException:
            sock.close()
            raise
        if greeting is not None:
            if "error" in greeting:
                sock.close()
                raise RelayError(str(greeting["error"]))
            sock.setblocking(False)
            return sock
        sock.close()  # it was about to stop, or failed to start
        meanwhile = None
    said = b""
    size = _size(place.log)
    if size < logged:  # it has been renamed since
        logged = 0
    try:
        with open(place.log, "rb") as file:
            file.seek(max(logged, size - SHOWN_LOG_BYTES))
            said = file.read(SHOWN_LOG_BYTES)
    except OSError:
        pass
    text = f"the gateway failed to start; the end of its log, {place.log}:\n{said.decode(errors='replace').strip()}"
    raise RelayError(text)


def _connect(place: Place) -> socket.socket | None:
    """Return a connection, None where no gateway listens; wait while `BACKLOG` others do."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(START_TIMEOUT)
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            sock.connect(place.socket)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        except OSError as exc:
            if not isinstance(exc, BlockingIOError) or time.monotonic() > deadline:
                sock.close()
                text = f"{place.socket}: {(exc.strerror or str(exc)).lower()}"
                raise RelayError(text) from None
            time.sleep(LOCK_INTERVAL)
    try:
        uid = peer_uid(sock)
    except OSError:  # macOS: the gateway has closed the connection meanwhile
        sock.close()
        return None
    if uid != os.getuid():
        sock.close()
        text = f"{place.socket} belongs to a process of another user (uid {uid}); it is not used"
        raise RelayError(text)
    return sock


def peer_uid(sock: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket."""
    if sys.platform == "linux":
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
    else:
        found = sock.getsockopt(0, 1, 128)  # LOCAL_PEERCRED of the BSDs and macOS; struct xucred: version, uid, ...
    return int.from_bytes(found[4:8], sys.byteorder)


def _start(place: Place, environ: Mapping[str, str]) -> socket.socket:
    """Start the gateway, unless another relay has done so meanwhile; return a connection to it."""
    lock = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    text = f"another process has held {place.lock} for {LOCK_TIMEOUT:g} s; end it"
                    raise RelayError(text) from None
                time.sleep(LOCK_INTERVAL)
        sock = _connect(place)
        if sock is not None:
            return sock
        _launch(place, environ)
        sock = _connect(place)
        if sock is None:
            text = f"no gateway could be started; see {place.log}"
            raise RelayError(text)
        return sock
    finally:
        os.close(lock)


def _launch(place: Place, environ: Mapping[str, str]) -> None:
    """Bind the socket, and fork the gateway that inherits it."""
    kept = {name: environ[name] for name in INHERITED if name in environ}
    env = kept | place.variables | {STATE_VARIABLE: place.state}
    command = [sys.executable, "-P", "-m", "gateway", "serve", place.config, "--transport", "connect"]
    if _size(place.log) > MAX_LOG_BYTES:
        os.replace(place.log, place.log + ".old")
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        try:
            os.unlink(place.socket)  # left by a killed gateway: nothing listens there, and we hold the lock
        except FileNotFoundError:
            pass
        listener.bind(place.socket)
        listener.listen(BACKLOG)
        os.umask(before)
        # Fork twice, since a client may kill its whole process tree: the gateway must not be in it.
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                if os.fork() == 0:
                    _become(command, env, listener.fileno(), log, os.path.dirname(place.config))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    except OSError as exc:
        text = f"{place.socket}: {(exc.strerror or str(exc)).lower()}"
        raise RelayError(text) from None
    finally:
        os.umask(before)
        listener.close()
        os.close(log)


def _become(command: list[str], env: dict[str, str], listener: int, log: int, folder: str) -> None:
    """Replace this process by the gateway."""
    import signal

    listener, log = (
        fcntl.fcntl(listener, fcntl.F_DUPFD, 10),
        fcntl.fcntl(log, fcntl.F_DUPFD, 10),
    )  # free the descriptor number
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, place in ((null, 0), (log, 1), (log, 2), (listener, LISTEN_FD)):
        os.dup2(fd, place)
    os.closerange(LISTEN_FD + 1, min(os.sysconf("SC_OPEN_MAX"), MAX_FDS))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.chdir(folder)
        os.execve(command[0], command, env)  # ruff: ignore[start-process-with-no-shell] - a command of our own
    except OSError as exc:
        os.write(2, f"{command[0]}: {exc}\n".encode(errors="backslashreplace"))


def _greet(
    sock: socket.socket, hello: bytes, prompt: float, meanwhile: Callable[[socket.socket], None] | None
) -> dict[str, object] | None:
    """Send this client's introduction; return the response, None if the gateway ends instead."""
    reply = b""
    try:
        sock.sendall(hello)
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if meanwhile is not None and not poll.poll(prompt * 1000):
            meanwhile(sock)
        while not reply.endswith(b"\n") and len(reply) < MAX_GREETING:
            part = sock.recv(MAX_GREETING)
            if not part:
                return None
            reply += part
    except TimeoutError:
        text = f"the gateway has not answered within {START_TIMEOUT:g} s"
        raise RelayError(text) from None
    except OSError:
        return None
    return json.loads(reply)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
