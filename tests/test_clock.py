"""The clock of the loop: deadlines survive a stop of the process."""

from __future__ import annotations

import pytest

from gateway.clock import GRACE, MAX_LAG, AwakeClock


class Machine:
    """A loop that waits for I/O, on a machine whose time the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = AwakeClock(lambda: self.now)

    def wait(self, deadline: float, seconds: float) -> float:
        """Wait for I/O until `seconds` have passed; return the clock's time then."""
        self.clock.deadline_to_sleep_time(deadline)
        self.now += seconds
        return self.clock.current_time()


@pytest.mark.parametrize("seconds", [0.0, 3.0, 10.0, 10.0 + 0.9 * MAX_LAG])
def test_awake_it_is_the_monotonic_time(seconds: float) -> None:
    machine = Machine()
    assert machine.clock.deadline_to_sleep_time(1010.0) == pytest.approx(10.0)
    assert machine.wait(1010.0, seconds) == machine.now


@pytest.mark.parametrize(("left", "kept"), [(0.5, 0.5), (GRACE, GRACE), (60.0, GRACE)])
@pytest.mark.parametrize("stopped", [1.1 * MAX_LAG, 300.0, 1e6])
def test_a_stop_leaves_a_grace_before_the_deadline(left: float, kept: float, stopped: float) -> None:
    machine = Machine()
    deadline = machine.now + left
    assert machine.wait(deadline, left + stopped) == pytest.approx(deadline - kept)
    assert machine.clock.deadline_to_sleep_time(deadline) == pytest.approx(kept)
    assert machine.wait(deadline, kept) == pytest.approx(deadline)  # it expires in the end


@pytest.mark.parametrize("left", [0.5, GRACE, 60.0])
@pytest.mark.parametrize("late", [1.1 * MAX_LAG, 300.0])
def test_a_loop_that_is_always_late_reaches_its_deadlines(left: float, late: float) -> None:
    machine = Machine()
    for _ in range(3):
        seen = machine.clock.current_time()
        deadline = seen + left
        for _ in range(2):
            assert seen < deadline
            wait = machine.clock.deadline_to_sleep_time(deadline)
            seen = machine.wait(deadline, wait + late)
        assert deadline <= seen <= deadline + 1.1 * MAX_LAG


def test_a_stop_within_a_step_is_left_out() -> None:
    machine = Machine()
    machine.now += 300.0
    assert machine.clock.deadline_to_sleep_time(1010.0) == pytest.approx(10.0)
    assert machine.clock.current_time() == pytest.approx(1000.0)


@pytest.mark.parametrize("deadline", [float("-inf"), float("inf"), 0.0])
def test_extreme_deadlines_never_stop_it(deadline: float) -> None:
    machine = Machine()
    assert machine.wait(deadline, 0.5) in {machine.now, machine.now - 0.5}
    before = machine.clock.current_time()
    machine.now += 2.0
    assert machine.clock.current_time() == pytest.approx(before + 2.0)


def test_it_never_goes_back() -> None:
    machine = Machine()
    seen = [machine.clock.current_time()]
    for left, seconds in [(1.0, 50.0), (0.1, 0.1), (7.0, 700.0), (2.0, 0.0), (0.0, 90.0)]:
        seen.append(machine.wait(seen[-1] + left, seconds))
    assert seen == sorted(seen)
