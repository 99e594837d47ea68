"""The display says what is happening, on a terminal and in a log, and never stops a run."""

import io
import re
import time

import pytest

from gcp_jax.run import progress
from gcp_jax.run.progress import Progress

ROWS = [
    {"stage": stage, "seed": seed, "eval/successes": successes, "eval/episodes": 100}
    for stage, seed, successes in [
        ("base", 0, 40),
        ("base", 1, 50),
        ("finetune", 0, 90),
        ("finetune", 1, 95),
    ]
]


class Terminal(io.StringIO):
    """A stream that looks like a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def lines(stream):
    return stream.getvalue().splitlines()


def test_a_log_gets_plain_lines_that_name_compilation_and_end_with_the_state(clock):
    stream = io.StringIO()
    with Progress(1_000_000, "finetune", stream=stream) as shown:
        with shown.compiling("training segment"):
            clock[0] += 14.2
        clock[0] += 60
        shown.update(
            250_000, evaluated=0.8125, training=0.76, env_steps_per_s=52_310.4, updates_per_s=310
        )
    assert lines(stream) == [
        "[finetune] compiling the training segment …",
        "[finetune] compiled the training segment in 14.2 s",
        (
            "[finetune] 25 % · 250,000/1,000,000 env steps · 0:01:14 elapsed · 0:03:00 left · "
            "success 81.2 % (training 76.0 %) · 52,310 env steps/s · 310 updates/s"
        ),
    ]
    assert shown.compile_seconds == pytest.approx(14.2)


def test_time_left_follows_from_the_speed_since_the_resume(clock):
    stream = io.StringIO()
    with Progress(100, "pretrain", unit="updates", start=50, stream=stream) as shown:
        clock[0] += 10
        shown.update(60)
    assert (
        "60 % · 60/100 updates · 0:00:10 elapsed · 0:00:40 left · success – (training –)"
        in lines(stream)[0]
    )


def test_a_rate_of_training_episodes_says_of_how_many():
    stream = io.StringIO()
    with Progress(10, "finetune", stream=stream) as shown:
        shown.update(1, training=0.06, training_episodes=1064)
        shown.update(2)
    assert "success – (training 6.0 % of 1,064 episodes)" in lines(stream)[-1]


def test_values_not_given_keep_the_last_one():
    stream = io.StringIO()
    with Progress(10, "finetune", stream=stream) as shown:
        shown.update(1, evaluated=0.5)
        shown.update(2, training=float("nan"))
    assert "success 50.0 % (training –)" in lines(stream)[-1]


def test_a_log_gets_lines_at_the_asked_pace_even_while_compiling():
    stream = io.StringIO()
    with (
        Progress(10, "finetune", every=0.05, stream=stream) as shown,
        shown.compiling("evaluation"),
    ):
        time.sleep(0.28)
    ticks = [
        line
        for line in lines(stream)
        if re.search(r"left · compiling the evaluation … \d\.\d s", line)
    ]
    assert 1 <= len(ticks) <= 5


def test_a_log_holds_no_control_codes_and_a_terminal_shows_a_bar():
    plain, bar = io.StringIO(), Terminal()
    for stream in (plain, bar):
        with Progress(10, "finetune", stream=stream) as shown, shown.compiling("training segment"):
            shown.update(5)
    assert "\x1b" not in plain.getvalue()
    assert "\x1b" in bar.getvalue()
    assert "━" in bar.getvalue()
    assert "50 % · 5/10 env steps" in bar.getvalue()


def test_it_is_shown_on_standard_error(capsys):
    with Progress(10, "finetune") as shown:
        shown.update(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert "100 % · 10/10 env steps" in err


class Broken(io.StringIO):
    """A pipe whose reader is gone."""

    def __init__(self, is_terminal):
        super().__init__()
        self.isatty = lambda: is_terminal

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_broken_stream_does_not_stop_the_run(is_terminal):
    with Progress(10, "finetune", every=0.01, stream=Broken(is_terminal)) as shown:
        with shown.compiling("training segment"):
            time.sleep(0.03)
        shown.update(10)
    assert shown.compile_seconds > 0


def test_a_value_that_cannot_be_shown_does_not_stop_the_run():
    for stream in (io.StringIO(), Terminal()):
        with Progress(10, "finetune", every=0.01, stream=stream) as shown:
            shown.update(5, evaluated="high")
            time.sleep(0.03)


def test_an_error_of_the_run_passes_through_and_compilation_is_still_timed(clock):
    progressing = Progress(10, "finetune", stream=io.StringIO())
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        progressing,
        progressing.compiling("training segment"),
    ):
        clock[0] += 3
        raise RuntimeError("out of memory")
    assert progressing.compile_seconds == 3


def test_a_total_must_be_positive():
    with pytest.raises(ValueError, match="total is 0 updates; it must be positive"):
        Progress(0, "pretrain", unit="updates")


def test_the_table_is_aligned_text_in_a_log():
    stream = io.StringIO()
    progress.print_scores(ROWS, stream)
    header, *body = lines(stream)
    assert header.split("  ")[0] == "success"
    assert [line.split("  ")[0].strip() for line in body] == ["seed 0", "seed 1", "pooled"]
    assert {line.index("[") for line in body} == {body[0].index("[")}
    assert "92.5 %" in body[-1]


def test_a_task_without_success_is_shown_by_its_return():
    stream = io.StringIO()
    with Progress(10, "finetune", score_name="return", stream=stream) as shown:
        shown.update(1, evaluated=2310.44, training=900.0)
    assert "return 2,310.4 (training 900.0)" in lines(stream)[-1]
    stream = io.StringIO()
    row = {
        "stage": "base",
        "seed": 0,
        "eval/return": 900.0,
        "eval/return_std": 40.0,
        "eval/episodes": 16,
    }
    progress.print_scores([row], stream)
    header, *_, last = lines(stream)
    assert re.split(r"  +", header) == ["return", "before [95 %]", "after [95 %]", "change [95 %]"]
    assert "900 [879, 921]" in last


def test_the_table_is_drawn_on_a_terminal():
    stream = Terminal()
    progress.print_scores(ROWS, stream)
    assert all(text in stream.getvalue() for text in ("┃", "pooled", "40.0 % [30.9, 49.8]"))
