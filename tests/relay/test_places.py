"""The directory of the sockets: the same for clients that pass on different variables."""

from __future__ import annotations

import os

from gateway.relay.places import make_directory


def test_the_runtime_directory_is_found_without_its_variable(tmp_path):
    runtime, state = tmp_path / str(os.getuid()), str(tmp_path / "state")
    assert make_directory({}, state, str(tmp_path)) == os.path.join(state, "relays")
    runtime.mkdir(0o700)
    named = make_directory({"XDG_RUNTIME_DIR": str(runtime)}, state, str(tmp_path))
    assert make_directory({}, state, str(tmp_path)) == named
    assert named.startswith(str(runtime))
