"""Pages of pictures: every picture whole, where its row and column are."""

import itertools

import numpy as np
from PIL import Image

from evaluation.pages.tiles import Tile, draw_page

COLOURS = [(220, 20, 20), (20, 200, 20), (20, 20, 220), (200, 200, 20), (200, 20, 200), (20, 200, 200)]


def test_every_picture_is_shown_whole_in_its_row_and_column(tmp_path):
    pictures = [np.full((90, 130, 3), colour, np.uint8) for colour in COLOURS]
    rows = [(f"model {i}", [Tile(picture, "one line\nanother") for picture in pictures[3 * i :][:3]]) for i in (0, 1)]
    draw_page(rows, "a title", "a foot", tmp_path / "page.png")
    page = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    boxes = []
    for colour in COLOURS:
        shown = (page == colour).all(axis=2)
        assert shown.sum() == 90 * 130
        places = np.argwhere(shown)
        boxes.append((places[0], places[-1]))
        assert tuple(places[-1] - places[0]) == (89, 129)
    for row in (boxes[:3], boxes[3:]):
        assert len({start[0] for start, _ in row}) == 1
        assert all(left_end[1] < start[1] for (_, left_end), (start, _) in itertools.pairwise(row))
    assert boxes[0][1][0] < boxes[3][0][0]
