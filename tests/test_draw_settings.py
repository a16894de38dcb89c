"""Random settings of every command; ``campaigns/draw_settings.py`` draws more of them and runs them all."""

import time

import pytest
from campaigns.draw_settings import PACKAGES, Sandbox, commands, draws, refusal
from conftest import REPOSITORY

EVERY, PARSED, SECONDS = 900, 150, 15


def test_every_script_with_a_command_line_is_drawn():
    """Found here by what a reader sees at the end of a script, there by what it calls."""
    ends = {
        file.relative_to(REPOSITORY).as_posix(): file.read_text().partition('if __name__ == "__main__":')[2]
        for package in PACKAGES
        for file in (REPOSITORY / package).rglob("*.py")
    }
    others = {"dino_oct/command.py", "dino_oct/data/phantom_worker.py", "dino_oct/data/volumes/unpacking.py"}
    assert {command.script for command in commands()} == {script for script, end in ends.items() if end} - others


def test_every_setting_is_drawn_in_turn():
    everything = {(command.script, setting.name) for command in commands() for setting in command.settings}
    drawn = {(draw.command.script, setting.name) for draw in draws(EVERY, 0) for setting, _ in draw.settings}
    assert everything == drawn


def test_random_settings_are_accepted_or_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outer" / "inner")
    names = ("RUN", "FIT", "OUT", "SCANS", "SCAN", "JUNK")
    places = {name: str(tmp_path / "outer" / "inner" / name.lower()) for name in names}
    refused = sum(refusal(draw, places) is not None for draw in draws(PARSED, 0))
    assert 0.2 * PARSED < refused < 0.8 * PARSED


@pytest.mark.timeout(600)
def test_random_settings_run_to_an_end(tmp_path):
    """As many as there is time for."""
    sandbox = Sandbox(tmp_path, limit=120)
    sandbox.prepare()
    begun, verdicts = time.monotonic(), []
    for draw in draws(10_000, seed=0):
        verdict, outcome = sandbox.judge(draw)
        assert verdict != "fault", f"{draw}: {outcome.fault}\n{outcome.text}"
        verdicts.append(verdict)
        if time.monotonic() - begun > SECONDS:
            break
    assert {"done", "refused"} <= set(verdicts)
