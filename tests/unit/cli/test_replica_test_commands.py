"""`holdfast replica test`, `tests`, `points` and `settle`: what each asks for and prints."""

import json
from datetime import datetime
from typing import Any

from command_line import run

from holdfast.spec.failover_test import FailoverCheck, FailoverTestCreate, FailoverTestPlan, FailoverVerdict


def test_a_test_asks_for_what_was_said(daemon: Any) -> None:
    done = run(
        daemon, "replica", "test", "web", "--point", "7", "--check", "true", "--wait", "2m",
        "--for", "1h", "--keep",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = FailoverTestCreate(command="true", wait_seconds=120, point=7, for_seconds=3600, keep=True)
    assert daemon.replicas.tests.asked == [wanted]
    assert "passed" in done.stderr
    assert "hello" in done.stderr


def test_a_point_is_a_number_or_a_time(daemon: Any) -> None:
    assert run(daemon, "replica", "test", "web", "--point", "2030-01-02 03:04:05").returncode == 0
    asked = daemon.replicas.tests.asked[-1]
    assert asked.at == datetime(2030, 1, 2, 3, 4, 5).astimezone()
    assert run(daemon, "replica", "test", "web", "--point", "noon").returncode == 2


def test_a_test_that_fails_is_told_by_the_exit_code_too(daemon: Any) -> None:
    daemon.replicas.tests.verdict = FailoverVerdict.FAILED
    done = run(daemon, "replica", "test", "web", "--check", "false", "--format", "json")
    assert done.returncode != 0
    assert json.loads(done.stdout)["verdict"] == "failed"
    assert "exit code 3" in done.stderr


def test_a_test_is_ended_or_scheduled_and_nothing_else_with_it(daemon: Any) -> None:
    assert run(daemon, "replica", "test", "web", "--end").returncode == 0
    assert (
        run(daemon, "replica", "test", "web", "--schedule", "daily 03:00", "--check", "true").returncode == 0
    )
    plan = FailoverTestPlan(schedule="daily 03:00", check=FailoverCheck(command="true"))
    assert run(daemon, "replica", "test", "web", "--schedule", "none").returncode == 0
    assert daemon.replicas.tests.asked == ["end", plan, None]
    assert run(daemon, "replica", "test", "web", "--end", "--keep").returncode == 2


def test_points_and_tests_are_listed_and_a_vm_is_settled(daemon: Any) -> None:
    (point,) = json.loads(run(daemon, "replica", "points", "web", "--format", "json").stdout)
    assert (point["number"], point["open"]) == (7, True)
    (test,) = json.loads(run(daemon, "replica", "tests", "web", "--format", "json").stdout)
    assert (test["replica"], test["verdict"], test["ready_seconds"]) == ("web", "passed", 4.2)
    assert "passed" in run(daemon, "replica", "tests").stdout
    assert run(daemon, "replica", "settle", "web").returncode == 0
