"""Tables of tasks, methods, fields and runs: nothing is swallowed, and 80 columns are enough."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from gcp_jax import algorithms, console, envs
from gcp_jax.config import ConfigError
from gcp_jax.experiments import reference
from gcp_jax.launch import status
from gcp_jax.launch.cli import listing

SECTIONS = [
    *(reference.algorithm_section(name) for name in algorithms.names()),
    *reference.env_sections("reach"),
]
WIDTHS = (80, 120, 200)


def on_console(width):
    made = console.make_console()
    return Console(
        file=io.StringIO(), width=width, markup=made._markup, emoji=made._emoji, highlight=False
    )


def shown_on(target):
    text = target.file.getvalue()
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= target.width
    return text


def words_of(text):
    return " ".join(text.replace("│", " ").split())


def test_text_is_printed_as_it_is(capsys):
    text = 'pip install "gcp-jax[robots]" [/x] [bold] brax:ant:100:'
    console.make_console(stderr=False).print(text)
    assert capsys.readouterr().out.strip() == text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title[:12])
def test_every_field_has_its_flag_its_default_and_what_it_is(section, width):
    target = on_console(width)
    content = listing._print_sections(target, [section])
    assert content == {row.name: row.default for row in section.rows}
    text = shown_on(target)
    for row in section.rows:
        flag = f"--config.{section.prefix}{row.name}"
        assert flag in text
        if width == 200:  # a line a field
            [line] = [line for line in text.splitlines() if line.startswith(f"{flag} ")]
            assert row.doc[:60] in line and str(row.default) in line and row.allowed in line
        elif width == 80:
            assert row.doc in words_of(text)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_tasks_fits(width, monkeypatch):
    made = envs.make

    def make(name):
        if name == "push_t":
            raise ImportError('its model is elsewhere: pip install "gcp-jax[robots]"')
        return made(name)

    monkeypatch.setattr(envs, "names", lambda: ("reach", "push_t"))
    monkeypatch.setattr(envs, "make", make)
    monkeypatch.setattr(listing, "MEASURED", listing.MEASURED.with_name("none.json"))
    target = on_console(width)
    assert set(listing.print_envs(target)) == {"reach", "push_t"}
    text = words_of(shown_on(target))
    assert "24 × 100 ms" in text and "within 0.1 of the goal" in text
    assert '"gcp-jax[robots]"' in text.replace("- ", "-")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_packaged_policies_fits(width):
    target = on_console(width)
    cards = listing.print_policies(target)
    text = words_of(shown_on(target))
    for name, card in cards.items():
        score = card["scores"][card["method"]]
        assert name in text and f"{100 * score['success']:.1f} %" in text
    assert text.endswith("try it: gcp-jax evaluate POLICY")


def test_a_card_shows_every_fact_of_it(capsys):
    target = on_console(200)
    card = listing.print_card(target, "peg_insert/clone")
    text = words_of(target.file.getvalue())
    for name, value in {**card, **card["demonstrations"], **card["versions"]}.items():
        assert f"{name}:" in text and (isinstance(value, dict) or f"{name}: {value}" in text)
    with pytest.raises(ConfigError, match="called 'peg_insert'; did you mean 'peg_insert/"):
        listing.print_card(target, "peg_insert")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_runs_fits(width):
    run = status.RunStatus(
        id="0123456789",
        values={"algorithm.critic_lr": 1e-3},
        state="failed",
        env_steps=20_480,
        total_env_steps=61_440,
        score="45.3 % [39.1, 51.6]",
        base_score="35.5 % [29.1, 41.6]",
        seconds_left=750.0,
        seconds_spent=3.0,
        error="ValueError: [train] does not exist",
    )
    target = on_console(width)
    target.print(status.status_table([run], 2, width=width))
    text = words_of(shown_on(target))
    for part in ("0123456789", "failed", "20,480/61,440", "45.3 %", "35.5 %", "0:12:30", "[train]"):
        assert part in text
    assert ("[39.1, 51.6]" in text) == (width >= status.WIDE)
