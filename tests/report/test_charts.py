import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from restore_jax.report import charts
from restore_jax.report.charts import Interval

HOSTILE = """$\\frac{x}$ <b x='y'> & "q" #010200"""


def parts_of(svg):
    """The left, right, top and bottom of what is drawn under each title, in its order."""
    found = []
    for group in ElementTree.fromstring(svg).iter("g"):
        title, path = group.find("title"), group.find("path")
        if title is not None and path is not None:
            points = np.array(re.findall(r"[ML] (\S+) (\S+)", path.get("d")), float)
            sides = [points[:, i].min() for i in (0, 1)], [points[:, i].max() for i in (0, 1)]
            (left, top), (right, bottom) = sides
            found.append((title.text, left, right, top, bottom))
    return found


def marks_of(svg):
    """Where the marks of a forest plot stand, by their title."""
    return {
        group.find("title").text: float(use.get("x"))
        for group in ElementTree.fromstring(svg).iter("g")
        if group.find("title") is not None
        for use in group.iter("use")
    }


def texts_of(svg):
    return [one.text for one in ElementTree.fromstring(svg).iter("text")]


def forest(*intervals, names="ab"):
    size = len(intervals) // len(names)
    groups = [intervals[i * size : (i + 1) * size] for i in range(len(names))]
    return charts.forest("PSNR", list(zip(names, groups, strict=True)))


def every_chart(name):
    return [
        charts.bars("PSNR", [(name, 10.0, 30.0), ("b", None, -1.0)], 2),
        charts.histogram("PSNR, dB", {"input": [1.0, 2.0]}, [0, 1, 2, 3], [(1.5, "half")]),
        forest(*[Interval("B", "6", 1.0, 0.5, 2.0, "better", name)] * 2, names=[name, "b"]),
    ]


def test_bars_are_in_proportion():
    bars = parts_of(charts.bars("PSNR", [("a", 10.0, 30.0), ("b", None, -1.0)], 2))
    assert [bar[0] for bar in bars] == [
        "a, input: 10.00", "a, restored: 30.00", "b, input: n/a", "b, restored: −1.00",
    ]  # fmt: skip
    lengths = [right - left for _, left, right, _, _ in bars]
    assert lengths == [pytest.approx(lengths[1] / 3), lengths[1], 0, 0]
    assert lengths[1] > 200


def test_the_numbers_stand_beside_the_bars():
    texts = texts_of(charts.bars("SSIM", [("a", 0.25, 0.5)], 4, 1.0))
    assert texts[-3:] == ["a", "0.2500", "0.5000"]
    assert [float(tick) for tick in texts[:-3]] == [0, 0.25, 0.5, 0.75, 1]


def test_names_too_long_for_a_chart_keep_both_ends():
    name = "a" * 60 + "_01"
    svg = charts.bars("PSNR", [(name, 1.0, 2.0)], 2)
    shown = next(text for text in texts_of(svg) if text.startswith("aaa"))
    assert len(shown) < 50
    assert shown.endswith("_01")
    assert f"<title>{name}</title>" in svg


def test_a_histogram_counts_every_image():
    rng = np.random.default_rng(0)
    values = [*rng.normal(0.7, 0.5, 200).tolist(), math.nan, 0.5, -9.0, 9.0]
    edges = [round(-0.5 + 0.1 * i, 1) for i in range(26)]
    svg = charts.histogram("Contrast", {"restored": values}, edges)
    bars = parts_of(svg)
    shown = [int(bar[0].split(": ")[1]) for bar in bars]
    finite = np.clip([v for v in values if v == v], -0.5, 1.99)
    expected, _ = np.histogram(finite, np.array(edges) - 1e-9)
    assert shown == [n for n in expected if n]
    assert sum(shown) == 203
    heights = np.array([bottom - top for *_, top, bottom in bars])
    assert heights / heights.max() == pytest.approx(np.array(shown) / max(shown), abs=1e-3)
    assert len({bottom for *_, bottom in bars}) == 1
    assert texts_of(svg)[:6] == ["−0.5", "0.0", "0.5", "1.0", "1.5", "2.0"]


def test_two_histograms_stand_side_by_side_in_a_bar():
    both = {"input": [0.5] * 3, "restored": [0.5] * 6}
    (first, *a), (second, *b) = parts_of(charts.histogram("PSNR", both, [0, 1, 2]))
    assert (first, second) == ("0.00 to 1.00, input: 3", "0.00 to 1.00, restored: 6")
    assert a[1] <= b[0] + 1e-3
    assert 2 * (a[3] - a[2]) == pytest.approx(b[3] - b[2])


@pytest.mark.parametrize("values", [[21.3], [20.0, 20.0], [13.2, 31.7], [0.0, 60.0], [-3, 2.0]])
def test_bins_hold_all_values(values):
    edges = charts.bin_edges(values)
    assert edges[0] <= min(values)
    assert max(values) <= edges[-1]
    assert len(edges) <= 25
    assert np.ptp(np.diff(edges)) < 1e-9
    assert edges[1] - edges[0] >= 0.2


def test_marks_and_lines_of_a_forest_stand_at_their_values():
    intervals = [
        Interval("B", "6", 1.0, 0.5, 2.0, "better", "one"),
        Interval("C", "5", -0.5, -1.0, 0.25, "unclear", "two"),
        Interval("B", "2", 0.0, None, None, "few", "three"),
        Interval("C", "0", None, None, None, "few", "n/a"),
    ]
    svg = forest(*intervals)
    marks = marks_of(svg)
    assert list(marks) == ["a, B: one", "a, C: two", "b, B: three"]
    zero = marks["b, B: three"]
    scale = marks["a, B: one"] - zero
    assert scale > 20
    assert marks["a, C: two"] == pytest.approx(zero - 0.5 * scale, abs=0.01)
    # The lines from bound to bound are of the marks' colour, thick where something is decided.
    lines = re.findall(
        r'd="M (\S+) \S+ ?\nL (\S+) \S+ ?\n"[^>]*stroke: var\(--(better|muted)\)', svg
    )
    assert [one[2] for one in lines] == ["better", "muted"]
    ends = [[(float(end) - zero) / scale for end in one[:2]] for one in lines]
    assert ends == [pytest.approx([0.5, 2.0], abs=0.001), pytest.approx([-1, 0.25], abs=0.001)]
    assert [t for t in texts_of(svg) if t[0] in "abBC"] == [
        "a", "B (6)", "C (5)", "b", "B (2)", "C (0)",
    ]  # fmt: skip


def test_differences_that_are_all_zero_have_an_axis():
    svg = forest(*[Interval("B", "6", 0.0, 0.0, 0.0, "unclear", "0.00")] * 2)
    assert texts_of(svg)[:5] == ["−1", "−0.5", "0", "+0.5", "+1"]
    assert len(set(marks_of(svg).values())) == 1


@pytest.mark.parametrize("which", [0, 2])
def test_names_are_text_whatever_they_are(which):
    svg = every_chart(HOSTILE)[which]
    assert HOSTILE in texts_of(svg) or f"{HOSTILE} (6)" in texts_of(svg)
    assert {one.tag for one in ElementTree.fromstring(svg).iter()} <= {
        "svg", "g", "path", "text", "title", "defs", "use", "clipPath", "rect",
    }  # fmt: skip
    # Letters that matplotlib's font lacks are the browser's; bytes that are no text have none.
    assert any("日本" in text for text in texts_of(every_chart("日本")[which]))
    assert any("caf?" in text for text in texts_of(every_chart("caf\udce9")[which]))


def test_charts_are_the_same_each_time_and_their_parts_are_not_mistaken_for_each_other():
    shown = every_chart("a")
    assert shown == every_chart("a")
    ids = [name for svg in shown for name in re.findall(r' id="(.*?)"', svg)]
    assert ids
    assert len(ids) == len(set(ids))
    for svg in shown:
        used = re.findall(r'href="#(.*?)"|url\(#(.*?)\)', svg)
        assert {a or b for a, b in used} == set(re.findall(r' id="(.*?)"', svg))


def test_charts_have_a_name_and_the_colours_of_the_page():
    for svg in every_chart("a"):
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert "PSNR" in root.get("aria-label")
        colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)
        assert {c for c in colours if not c.startswith("var(--")} <= {"none"}
        assert "<style" not in svg
        assert "http" not in svg
