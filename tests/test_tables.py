"""Tables of results on a terminal."""

import io
import sys

from dino_oct.scores.text import table

HEADER = ["k", "", "accuracy %", "balanced %", "AUROC %"]
ROWS = [
    [k, name, f"{k}1.0 [60.0, 70.0]", f"{k}2.0 [61.0, 71.0]", f"{k}3.0 [62.0, 72.0]"]
    for k in ("5", "10")
    for name in ("model", "random weights")
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", Terminal())


def test_a_narrow_terminal_gets_all_numbers_each_beside_the_name_of_its_row(monkeypatch):
    on_a_terminal(monkeypatch, 60)
    blocks = [block.splitlines() for block in table(HEADER, ROWS).split("\n\n")]
    assert max(len(line) for block in blocks for line in block) <= 60
    assert len(blocks) == 2
    for block in blocks:
        assert [line.split()[0] for line in block[2:]] == ["5", "5", "10", "10"]
        assert all(row[1] in line for row, line in zip(ROWS, block[2:], strict=True))
    for i, row in enumerate(ROWS):
        assert all(sum(cell in block[i + 2] for block in blocks) == 1 for cell in row[2:])


def test_a_file_and_a_wide_terminal_get_one_table(monkeypatch):
    in_a_file = table(HEADER, ROWS)
    assert len(in_a_file.splitlines()) == 2 + len(ROWS)
    on_a_terminal(monkeypatch, 200)
    assert table(HEADER, ROWS) == in_a_file


def test_a_column_that_does_not_fit_stays_whole(monkeypatch):
    on_a_terminal(monkeypatch, 60)
    lines = table(["name", "why"], [["a", "x" * 90]]).splitlines()
    assert [len(line) for line in lines] == [9, 96, 96]
