"""Child programs of every temper: `python -I -S -E zoo.py TEMPER MARK [ARGS]`.

Each prints `ready` once set up. MARK is in the command line of every process here and of all they fork, so that a test
finds survivors without the code under test.
"""

import os
import signal
import sys
import time

ME = [sys.executable, "-I", "-S", "-E", __file__]
MAX_LIFE = 60  # s: processes of the zoo outlive a broken test only briefly


def say(text: str = "ready") -> None:
    os.write(1, text.encode() + b"\n")


def read_to_end() -> None:
    while os.read(0, 65536):
        pass


def sleep_on() -> None:
    deadline = time.monotonic() + MAX_LIFE
    while time.monotonic() < deadline:
        time.sleep(1)


def detach(then, *, keep_pipes=False) -> None:
    """Double fork with setsid; returns in the caller when the daemon is set up."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            if not keep_pipes:
                null = os.open("/dev/null", os.O_RDWR)
                for fd in (0, 1, 2):
                    os.dup2(null, fd)
            os.write(write, b"x")
            os.close(write)
            os.close(read)
            then()
            os._exit(0)
        os._exit(0)
    os.wait()
    os.close(write)
    os.read(read, 1)
    os.close(read)


def echo() -> None:
    say()
    while data := os.read(0, 65536):
        os.write(1, data)


def ignores_eof() -> None:
    say()
    sleep_on()


def ignores_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say()
    sleep_on()


def grandchild_pipes() -> None:
    if os.fork() == 0:
        sleep_on()
        os._exit(0)
    say()
    read_to_end()


def daemon() -> None:
    detach(sleep_on)
    say()
    read_to_end()


def stubborn_daemon() -> None:
    def stay() -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        sleep_on()

    detach(stay, keep_pipes=True)
    say()
    read_to_end()


def scrubbed_daemon() -> None:
    """Its environment is empty, its parents are dead, its session is its own."""
    mark = sys.argv[2]
    detach(lambda: os.execve(sys.executable, [*ME, "ignores_term", mark], {}))
    say()
    read_to_end()


def shell() -> None:
    """A shell that spawns a shell that spawns, none of which passes signals on."""
    mark = sys.argv[2]
    inner = f"{sys.executable} -I -S -E {__file__} echo {mark} < /dev/null; sleep 60 & wait # {mark}"
    os.execv("/bin/sh", ["sh", "-c", f"echo ready; sh -c '{inner}'; true # {mark}", mark])


def stopped() -> None:
    say()
    os.kill(os.getpid(), signal.SIGSTOP)
    read_to_end()


def flusher() -> None:
    say()
    read_to_end()
    block = b"x" * 65535 + b"\n"
    for _ in range(50 * 16):
        os.write(1, block)
    os.write(2, b"flushed\n")


def forker() -> None:
    """Forks for three seconds on end, every other one into a session of its own."""
    say()
    deadline = time.monotonic() + 3
    count = 0
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while time.monotonic() < deadline:
        count += 1
        if os.fork() == 0:
            if count % 2:
                os.setsid()
            time.sleep(0.3)
            os._exit(0)
        time.sleep(0.02)
        if count % 10 == 0:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
    sleep_on()


def hopper() -> None:
    """A process that forks its successor in a new session after 20 ms, and exits.

    This continues for three seconds.
    """
    say()

    def hop() -> None:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            time.sleep(0.02)
            if os.fork():
                os._exit(0)
            os.setsid()

    detach(hop)
    read_to_end()


def briefly() -> None:
    """Leaves orphans that end soon after: a daemon with a tree id, and one without."""
    detach(lambda: time.sleep(float(sys.argv[3])))
    detach(lambda: os.execve("/bin/sleep", ["sleep", sys.argv[3]], {}))
    say()
    read_to_end()


def exits() -> None:
    sys.exit(int(sys.argv[3]))


def limits() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    read = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
    time.sleep(0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    say(f"{soft} {hard} {read[:-1]}")
    read_to_end()


TEMPERS = [
    "echo", "ignores_eof", "ignores_term", "grandchild_pipes", "daemon", "stubborn_daemon", "scrubbed_daemon", "shell",
    "stopped", "flusher", "forker", "hopper",
]  # fmt: skip

if __name__ == "__main__":
    globals()[sys.argv[1]]()
