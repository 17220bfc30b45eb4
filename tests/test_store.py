"""The queue's table and its rules, in one process: test_store_processes.py has several, and kills them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import ConfigProblem
from engine.jobs import store
from engine.jobs.entry import ENDED, LOOP, SHORT, UNBORN, Entry, Spec, outcome
from engine.jobs.process import Identity
from engine.jobs.store import Store

ME = Identity.me()
ROOT = Path(__file__).resolve().parent.parent
SAVED = 75


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "queue") as opened:
        yield opened


def add(queue: Store, *names: str, after: tuple[str, ...] = (), retries: int = 2) -> list[int]:
    return queue.add([Spec(name, after=after, retries=retries) for name in names])


def begin(queue: Store, entry_id: int) -> str:
    """Claim it and begin; the attempt's token."""
    token = queue.claim(entry_id, ())
    assert token is not None
    assert queue.began(entry_id, token, ME)
    return token


def end(queue: Store, entry_id: int, exit_code: int, progress: bool = True) -> Entry:
    """A whole attempt."""
    assert queue.ended(entry_id, begin(queue, entry_id), exit_code, "", progress)
    return queue.get(entry_id)


def states(queue: Store) -> str:
    return " ".join(f"{entry.spec.name}:{entry.state}" for entry in queue.entries())


# What comes in


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Spec,
            name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            argv=st.lists(st.text()).map(tuple),
            gpus=st.integers(0, 2**31),
            priority=st.integers(-(2**31), 2**31),
            retries=st.integers(0, 2**31),
            hours=st.floats(0, 1e6),
            executor=st.sampled_from(["local", "slurm", "ray"]),
        ),
        max_size=5,
        unique_by=lambda spec: spec.name,
    )
)
def test_what_is_added_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, specs: list[Spec]) -> None:
    folder = tmp_path_factory.mktemp("queue")
    with Store(folder) as first:
        ids = first.add(specs)
    with Store(folder) as queue:
        assert ids == [*range(1, len(specs) + 1)]
        assert [entry.spec for entry in queue.entries()] == specs
        assert queue.states() == {spec.name: "queued" for spec in specs}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Spec(""), "An entry has no name: give it an exp_name."),
        (lambda: Spec("x", gpus=-1), "x: gpus is -1, but must be 0 or more."),
        (lambda: Spec("x", retries=-1), "x: retries is -1, but must be 0 or more."),
        (lambda: Spec("x", hours=float("nan")), "x: hours is nan, but must be 0 or more."),
        (lambda: Spec("x", hours=float("inf")), "x: hours is inf, but must be 0 or more."),
    ],
)
def test_a_spec_that_cannot_be_says_why(make: Callable[[], Spec], said: str) -> None:
    with pytest.raises(ConfigProblem, match=f"^{said}$"):
        make()


def test_entries_may_come_after_each_other_in_any_order(queue: Store) -> None:
    queue.add([Spec("vote", after=("a", "b")), Spec("b", after=("a",)), Spec("a")])
    assert states(queue) == "vote:queued b:queued a:queued"


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([Spec("new"), Spec("old")], r"old \(entry 1\) is queued: wait for it, cancel it, or take another exp_name."),
        ([Spec("x"), Spec("x")], "x comes more than once: give each entry its own exp_name."),
        (
            [Spec("x", after=("odl",))],
            r"x \(entry 4\) comes after odl, which is not in the queue \(did you mean old\?\).",
        ),
        ([Spec("x", after=("bad",))], r"x \(entry 4\) comes after bad, which is failed: retry that first."),
        ([Spec("x", after=("x",))], "x after x: none of these could ever start."),
        (
            [Spec("x", after=("y",)), Spec("y", after=("z",)), Spec("z", after=("x",))],
            "[xyz]( after [xyz]){3}: none of these could ever start.",
        ),
        # A name means its newest entry, so this would wait for what waits for it.
        ([Spec("over", after=("child",))], "[a-z]+( after (child|over)){2}: none of these could ever start."),
    ],
)
def test_what_cannot_be_added_leaves_nothing_behind(queue: Store, specs: list[Spec], said: str) -> None:
    add(queue, "old", "bad", "over")
    end(queue, 2, 1)
    end(queue, 3, 0)
    if specs[0].name == "over":
        add(queue, "child", after=("over",))
    before = queue.entries(), queue.events()
    with pytest.raises(ConfigProblem, match=f"^{said}$"):
        queue.add(specs)
    assert (queue.entries(), queue.events()) == before


def test_all_that_is_wrong_is_said_at_once(queue: Store) -> None:
    with pytest.raises(ConfigProblem, match=r"comes after p.*\n.*comes after q.*\nx after x"):
        queue.add([Spec("x", after=("p", "q", "x"))])


def test_a_name_is_free_again_when_its_entry_has_ended(queue: Store) -> None:
    add(queue, "x")
    end(queue, 1, 0)
    assert add(queue, "x") == [2]
    assert queue.states() == {"x": "queued"}
    assert queue.newest(["x"])["x"].id == 2


def test_entries_are_chosen_by_id_state_and_name(queue: Store) -> None:
    add(queue, "a", "b", "c")
    begin(queue, 2)
    assert [entry.id for entry in queue.entries(states=["queued"])] == [1, 3]
    assert [entry.id for entry in queue.entries(ids=[2, 3], states=["queued"])] == [3]
    assert [entry.id for entry in queue.entries(names=["b", "a", "?"])] == [1, 2]
    assert queue.entries(ids=[]) == []
    with pytest.raises(ConfigProblem, match=r"^entry 9 is not in the queue: `ls` shows what is.$"):
        queue.get(9)


# How attempts end


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [
        (0, "done", ""),
        (1, "failed", "exit code 1"),
        (2, "failed", "exit code 2, a setting is wrong"),
        (75, "queued", "exit code 75, stopped and saved; retry 1 of 2"),
        (130, "queued", "exit code 130, interrupted and saved; retry 1 of 2"),
        (-9, "queued", "exit code -9; retry 1 of 2"),
        (137, "queued", "exit code 137; retry 1 of 2"),
        (9, "queued", "exit code 9; retry 1 of 2"),
    ],
)
def test_an_exit_code_decides(queue: Store, code: int, state: str, reason: str) -> None:
    add(queue, "x")
    entry = end(queue, 1, code)
    assert (entry.state, entry.reason, entry.exit_code, entry.held) == (state, reason, code, False)
    assert {"queued": "again"}.get(state, state) == outcome(code)
    assert (entry.token, entry.runner, entry.devices) == ("", None, ())
    assert (entry.ended > 0) == (entry.state in ENDED)


def test_a_reason_says_more_than_the_exit_code(queue: Store) -> None:
    add(queue, "x")
    assert queue.ended(1, begin(queue, 1), 1, "CUDA out of memory", False)
    assert queue.get(1).reason == "CUDA out of memory"


def test_retries_are_used_up(queue: Store) -> None:
    add(queue, "stopped", "gone", "once")
    add(queue, "never", retries=0)
    for attempt in (1, 2, 3):
        assert end(queue, 1, SAVED).attempt == attempt
        assert queue.give_back(2, begin(queue, 2), "its runner was killed", counts=True, progress=True)
    assert states(queue) == "stopped:failed gone:lost once:queued never:queued"
    assert queue.get(1).reason == "exit code 75, stopped and saved; retries left: none of 2"
    assert queue.get(2).reason == "its runner was killed; retries left: none of 2"
    assert end(queue, 4, SAVED).state == "failed"


def test_short_attempts_without_progress_are_a_crash_loop(queue: Store) -> None:
    queue.add([Spec("x", retries=9)])
    for number in range(1, LOOP):
        assert not end(queue, 1, -11, progress=False).held
        assert queue.get(1).short == number
    entry = end(queue, 1, -11, progress=False)
    assert (entry.state, entry.held, entry.spent) == ("queued", True, LOOP - 1)
    assert entry.reason == "crash loop: 3 short attempts in a row without progress; the last one: exit code -11"
    assert queue.claim(1, ()) is None
    queue.release([1])
    assert end(queue, 1, -11, progress=False).held is False


@pytest.mark.parametrize("progress", [True, False])
def test_progress_or_time_is_no_crash_loop(queue: Store, monkeypatch: pytest.MonkeyPatch, progress: bool) -> None:
    queue.add([Spec("x", retries=2 * LOOP)])
    clock = [1e9]
    monkeypatch.setattr(store, "time", SimpleNamespace(time=lambda: clock[0]))
    for _ in range(2 * LOOP):
        token = begin(queue, 1)
        clock[0] += 1 if progress else SHORT
        assert queue.give_back(1, token, "killed", counts=True, progress=progress)
        assert (queue.get(1).short, queue.get(1).held) == (0, False)


def test_what_is_given_back_without_blame_costs_no_retry(queue: Store) -> None:
    add(queue, "x", retries=0)
    for _ in range(2 * UNBORN):
        assert queue.give_back(1, begin(queue, 1), "the machine was restarted", counts=False)
    assert (queue.get(1).state, queue.get(1).spent, queue.get(1).held) == ("queued", 0, False)


def test_a_runner_that_begins_at_the_last_moment_keeps_its_attempt(queue: Store) -> None:
    """The scheduler has read that it had not begun, and gives the entry back a moment later."""
    add(queue, "late", "never")
    late, never = queue.claim(1, ()), queue.claim(2, ())
    assert late
    assert never
    assert queue.began(1, late, ME)
    before = queue.get(1), queue.events()
    assert not queue.give_back(1, late, "its runner never began", counts=False, unless_begun=True)
    assert (queue.get(1), queue.events()) == before
    assert queue.give_back(2, never, "its runner never began", counts=False, unless_begun=True)
    assert not queue.began(2, never, ME)


def test_a_runner_that_never_begins_is_not_started_for_ever(queue: Store) -> None:
    add(queue, "x")
    for number in range(1, UNBORN + 1):
        token = queue.claim(1, ())
        assert token
        assert queue.give_back(1, token, "no process", counts=False)
        assert queue.get(1).held == (number == UNBORN)
    assert queue.get(1).reason == "its runner did not begin 10 times in a row; the last time: no process"
    queue.release([1])
    assert queue.claim(1, ())


def test_a_cluster_may_send_back_what_gets_on(queue: Store) -> None:
    queue.add([Spec("x", executor="slurm")])  # its runner is elsewhere, so none has begun as far as the table knows
    for number in range(2 * UNBORN):
        token = queue.claim(1, ())
        assert token
        assert queue.give_back(1, token, "preempted", counts=False, progress=number % 2 == 0)
    assert (queue.get(1).unborn, queue.get(1).held) == (1, False)


def test_an_attempt_starts_when_it_is_claimed_and_again_when_it_begins(
    queue: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(queue, "x")
    clock = [1e9]
    monkeypatch.setattr(store, "time", SimpleNamespace(time=lambda: clock[0]))
    token = queue.claim(1, ())
    assert token
    assert queue.get(1).started == 1e9
    clock[0] += 60
    assert queue.began(1, token, ME)
    assert queue.get(1).started == 1e9 + 60


def test_fail_ends_an_entry_with_retries_left(queue: Store) -> None:
    add(queue, "x", "y")
    assert queue.fail(1, begin(queue, 1), "the time limit of 1 h is over")
    assert queue.fail(2, begin(queue, 2), "its machine is gone", state="lost")
    assert states(queue) == "x:failed y:lost"


# Who may do what


def test_only_one_runner_begins_an_attempt(queue: Store) -> None:
    add(queue, "x")
    token = queue.claim(1, (0, 2))
    assert token
    assert queue.claim(1, (1,)) is None
    assert queue.began(1, token, ME)
    assert not queue.began(1, token, ME)
    assert (queue.get(1).runner, queue.get(1).devices) == (ME, (0, 2))


def test_an_old_token_is_good_for_nothing(queue: Store) -> None:
    add(queue, "x")
    old = begin(queue, 1)
    assert queue.give_back(1, old, "its runner was killed", counts=True)
    new = queue.claim(1, ())
    before = queue.get(1), queue.events()
    for token in (old, "", "?"):
        assert not queue.began(1, token, ME)
        assert not queue.ended(1, token, 0, "", True)
        assert not queue.give_back(1, token, "", counts=True)
        assert not queue.fail(1, token, "")
        assert not queue.external(1, token, "")
    assert (queue.get(1), queue.events()) == before
    assert queue.get(1).token == new != old


def test_what_may_not_be_claimed(queue: Store) -> None:
    add(queue, "held", "plain", "done")
    add(queue, "child", after=("plain",))
    queue.hold([1])
    end(queue, 3, 0)
    assert [queue.claim(each, ()) for each in (1, 3, 4, 99)] == [None] * 4
    queue.pause()
    queue.pause()
    assert queue.paused
    assert queue.claim(2, ()) is None
    queue.unpause()
    assert not queue.paused
    assert end(queue, 2, 0).state == "done"
    assert queue.claim(4, ())
    assert [event.reason for event in queue.events(ids=[0])] == ["paused", "resumed"]


def test_a_cluster_waits_for_parents_itself(queue: Store) -> None:
    queue.add([Spec("train", executor="slurm"), Spec("vote", executor="slurm", after=("train",))])
    queue.add([Spec("here", after=("train",)), Spec("there", after=("here",))])
    assert queue.claim(2, ()) is None
    token = queue.claim(1, ())
    assert token
    assert queue.external(1, token, "4711")
    assert queue.get(1).external == "4711"
    assert queue.claim(3, ()) is None
    assert queue.claim(2, ())
    queue.ended(1, token, 0, "", True)
    begin(queue, 3)
    assert queue.claim(4, ()) is None


# What users do


def test_cancelling_what_is_queued_or_about_to_begin(queue: Store) -> None:
    add(queue, "waiting", "claimed", "over")
    token = queue.claim(2, ())
    assert token
    end(queue, 3, 0)
    assert [entry.id for entry in queue.cancel([1, 2, 3])] == [1, 2]
    assert states(queue) == "waiting:cancelled claimed:cancelled over:done"
    assert not queue.began(2, token, ME)
    with pytest.raises(ConfigProblem, match=r"^entry 9 is not in the queue"):
        queue.cancel([9])


@pytest.mark.parametrize(
    ("end_of", "state"),
    [
        (lambda queue, token: queue.ended(1, token, SAVED, "", True), "cancelled"),
        (lambda queue, token: queue.ended(1, token, 1, "", True), "cancelled"),
        (lambda queue, token: queue.ended(1, token, 0, "", True), "done"),
        (lambda queue, token: queue.give_back(1, token, "", counts=True), "cancelled"),
        (lambda queue, token: queue.give_back(1, token, "", counts=False), "cancelled"),
        (lambda queue, token: queue.fail(1, token, ""), "cancelled"),
    ],
)
def test_cancelling_what_runs(queue: Store, end_of: Callable[[Store, str], bool], state: str) -> None:
    add(queue, "x")
    token = begin(queue, 1)
    (entry,) = queue.cancel([1], "cancelled by ana")
    assert (entry.state, entry.cancelling) == ("running", True)
    assert queue.cancel([1]) == []
    assert end_of(queue, token)
    assert queue.get(1).state == state
    assert queue.get(1).reason == ("" if state == "done" else "cancelled by ana")


def test_cancelling_on_a_cluster_is_asking_even_before_its_id_is_known(queue: Store) -> None:
    queue.add([Spec("x", executor="ray")])
    queue.claim(1, ())
    assert queue.cancel([1])[0].cancelling


def test_holding_and_releasing(queue: Store) -> None:
    add(queue, "x", "y")
    begin(queue, 2)
    queue.hold([1], "for later")
    queue.hold([1], "again")
    assert (queue.get(1).held, queue.get(1).reason) == (True, "for later")
    queue.release([1])
    queue.release([1])
    assert (queue.get(1).held, queue.get(1).reason) == (False, "")
    for act in (queue.hold, queue.release):
        with pytest.raises(ConfigProblem, match=r"^y \(entry 2\) is running: only what is queued can be (held|rel)"):
            act([1, 2])
    assert not queue.get(1).held
    assert [event.reason for event in queue.events([1])] == ["added", "for later", "released"]


def test_priority(queue: Store) -> None:
    add(queue, "x", "y")
    end(queue, 2, 1)
    queue.set_priority([1], -3)
    assert queue.get(1).spec.priority == -3
    with pytest.raises(ConfigProblem, match=r"^y \(entry 2\) is failed: a priority is for what is queued or running.$"):
        queue.set_priority([2], 1)


def test_removing(queue: Store) -> None:
    add(queue, "a", "b")
    add(queue, "child", after=("a",))
    end(queue, 1, 0)
    with pytest.raises(ConfigProblem, match=r"^b \(entry 2\) is queued: only what has ended can be removed: cancel it"):
        queue.remove([1, 2])
    with pytest.raises(ConfigProblem, match=r"^Queued entries come after a \(entry 1\): cancel those first.$"):
        queue.remove([1])
    queue.cancel([3])
    queue.remove([1, 3])
    assert states(queue) == "b:queued"
    assert add(queue, "c") == [4]


def test_skipped_are_all_that_come_after_a_failure(queue: Store) -> None:
    queue.add([Spec("deep", after=("vote",)), Spec("vote", after=("a", "b")), Spec("a"), Spec("b"), Spec("c")])
    assert queue.skip_children() == []
    end(queue, 3, 1)
    assert [entry.id for entry in queue.skip_children()] == [1, 2]
    assert states(queue) == "deep:skipped vote:skipped a:failed b:queued c:queued"
    assert [queue.get(each).reason for each in (1, 2)] == ["vote was skipped", "a failed"]
    assert queue.skip_children() == []


@pytest.mark.parametrize("state", ["cancelled", "lost"])
def test_other_ends_skip_as_well(queue: Store, state: str) -> None:
    add(queue, "a", retries=0)
    add(queue, "child", after=("a",))
    if state == "lost":
        queue.give_back(1, begin(queue, 1), "", counts=True, progress=True)
    else:
        queue.cancel([1])
    assert [entry.reason for entry in queue.skip_children()] == [f"a was {state}"]


def test_retrying_takes_along_what_was_skipped(queue: Store) -> None:
    add(queue, "a", "other")
    add(queue, "child", after=("a",))
    add(queue, "deep", after=("child",))
    add(queue, "far", after=("other",))
    for each in (1, 2):
        end(queue, each, 1)
    queue.skip_children()
    with pytest.raises(ConfigProblem, match=r"^child \(entry 3\) comes after a, which is failed: retry that first.$"):
        queue.retry([3])
    assert [entry.id for entry in queue.retry([1])] == [1, 3, 4]
    assert states(queue) == "a:queued other:failed child:queued deep:queued far:skipped"
    entry = queue.get(1)
    assert (entry.attempt, entry.spent, entry.exit_code, entry.started, entry.ended) == (0, 0, None, 0.0, 0.0)


def test_what_cannot_be_retried(queue: Store) -> None:
    add(queue, "a", "b")
    end(queue, 1, 0)
    add(queue, "a")
    with pytest.raises(ConfigProblem, match=r"^b \(entry 2\) is queued: only what has ended can be run again.$"):
        queue.retry([1, 2])
    with pytest.raises(ConfigProblem, match=r"^a \(entry 1\) was added again as entry 3: use that one.$"):
        queue.retry([1])
    add(queue, "child", after=("b",))
    end(queue, 2, 0)
    end(queue, 4, 1)
    queue.remove([2])
    with pytest.raises(ConfigProblem, match=r"^child \(entry 4\) comes after b, which is not in the queue"):
        queue.retry([4])
    assert states(queue) == "a:done a:queued child:failed"


def test_retrying_closes_no_circle(queue: Store) -> None:
    add(queue, "a")
    add(queue, "b", after=("a",))
    end(queue, 1, 0)
    end(queue, 2, 0)
    add(queue, "a", after=("b",))
    with pytest.raises(ConfigProblem, match="none of these could ever start"):
        queue.retry([2])
    assert queue.get(2).state == "done"


# What others see


def test_events_tell_the_whole_story(queue: Store) -> None:
    add(queue, "x")
    token = queue.claim(1, (0, 3))
    assert token
    queue.began(1, token, ME)
    queue.ended(1, token, 0, "", True)
    queue.remove([1])
    found = queue.events()
    assert [(event.number, event.name, event.before, event.after) for event in found] == [
        (1, "x", "", "queued"),
        (2, "x", "queued", "running"),
        (3, "x", "running", "running"),
        (4, "x", "running", "done"),
        (5, "x", "done", ""),
    ]
    assert [event.reason for event in found][:3] == [
        "added",
        "attempt 1 on GPU 0, 3",
        f"began as process {ME.pid} on {ME.host}",
    ]
    assert [event.number for event in queue.events(since=3)] == [4, 5]
    assert queue.events(ids=[7]) == []


def test_a_change_by_others_is_seen_once(queue: Store) -> None:
    add(queue, "mine")
    assert not queue.changed()
    with Store(queue.folder) as other:
        add(other, "theirs")
        assert not other.changed()
    assert queue.changed()
    assert not queue.changed()


def test_the_last_scheduler_is_known(queue: Store) -> None:
    assert queue.scheduler() is None
    other = Identity(1, 2.5, "boot", "host")
    for each in (other, ME):
        queue.beat(each)
        assert queue.scheduler() == each


def test_an_error_in_mid_step_undoes_it(queue: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(queue, "x")
    monkeypatch.setattr(Store, "_move", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        queue.cancel([1])
    assert states(queue) == "x:queued"


def test_no_slow_imports() -> None:
    code = "import sys, engine.jobs.store; print(*{'torch', 'numpy', 'cv2'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
