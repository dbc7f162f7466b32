import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from restore_jax.errors import RunError, UsageError
from restore_jax.evaluation import compare
from restore_jax.metrics import defects, fidelity, intervals
from restore_jax.metrics.cost import Cost
from restore_jax.report import comparison_page, comparison_tables
from restore_jax.report.comparison_page import Shown
from tests.support.page import Page

HOSTILE = '<img src=x onerror=alert(1)> & "quoted"'
CATEGORIES = {"zipper": 3, "bottle": 7, "cable": 6}
CONDITIONS = {"device": "cpu", "height": 256, "width": 256, "batch": 4, "rounds": 10}


def rows_of(gain, seed, categories=CATEGORIES):
    """Rows with a PSNR about `gain` above that of a run without; the input is always alike."""
    inputs, own = np.random.default_rng(0), np.random.default_rng(seed)
    rows = []
    for category, count in categories.items():
        for i in range(count):
            base, regions = inputs.normal(20, 2), 1 + i % 3
            noise = own.normal(0, 0.2, 4)
            rows.append({
                "id": f"{category}/test/scratch/{i:03d}",
                "category": category, "defect_type": "scratch",
                "psnr": base + 8 + gain + noise[0], "ssim": 0.8 + 0.02 * gain + 0.01 * noise[1],
                "mae": 0.02, "input_psnr": base, "input_ssim": 0.3,
                "defect_psnr": base + 4 + gain + noise[2], "background_psnr": 29.0,
                "defect_ssim": 0.7, "input_defect_psnr": base - 2,
                "defect_contrast": 0.8 + 0.1 * gain + 0.1 * noise[3],
                "input_defect_contrast": 0.5,
                "regions": float(regions), "erased_regions": float(i % 4 == 0 and gain < 0.5),
                "input_erased_regions": float(regions), "error_ratio": 1.5,
                "masked_frame_psnr": 42.0, "masked_frame_ssim": 0.99, "hallucination": math.nan,
            })  # fmt: skip
    return rows


def run(rows, name="sca_unet", data=None, law=None, **fields):
    summary = {
        "checkpoint": {"step": 4200, "epoch": 20, "which": "best"},
        "data": {"name": "sample", "split": "val", "count": len(rows), "image_size": 32}
        | (data or {}),
        "trained_on": {"name": "sample", "split": "defects"},
        "settings": {
            "data": {"resize": "bilinear", "degradation": {"preset": "kla", "gain": None}},
        },
    }
    summary["settings"]["data"]["degradation"].update(law or {})
    return compare.Run(f"runs/{name}", name, summary, rows, **fields)


A = run(rows_of(0.0, 1), cost=Cost(867_842, 3.390016, 61.23, 60.0, 64.0))
B = run(rows_of(1.0, 2), "rcan", cost=Cost(763_243, 49.55, 803.2, 799.0, 850.0))
C = run(rows_of(-0.4, 3), "unet_small")


@pytest.fixture(scope="module")
def found():
    return compare.compare([A, B, C], CONDITIONS)


def difference(comparison, measure, letter="B"):
    return next(
        one
        for one in comparison["differences"]
        if (one["run"], one["measure"]) == (letter, measure)
    )


def figures(rows, key, category=None):
    return np.array([r[key] for r in rows if category in (None, r["category"])])


def test_means_are_those_of_the_evaluation(found):
    assert [one["letter"] for one in found["runs"]] == ["A", "B", "C"]
    for given, shown in zip((A, B, C), found["runs"], strict=True):
        expected = (
            fidelity.summarise(given.rows),
            defects.summarise_preservation(given.rows),
        )
        for summary in expected:
            assert summary["micro"].items() <= shown["micro"].items()
            assert summary["macro"].items() <= shown["macro"].items()
            for name in CATEGORIES:
                assert summary["categories"][name].items() <= shown["categories"][name].items()
        error = np.abs(1 - figures(given.rows, "defect_contrast"))
        assert shown["micro"]["contrast_error"] == pytest.approx(error.mean())
        assert shown["micro"]["input_contrast_error"] == pytest.approx(0.5)
        assert shown["left_out"] == 0
    assert found["runs"][1]["cost"]["gmac"] == 49.55
    assert found["runs"][2]["cost"] is None
    assert found["data"]["count"] == 16
    assert found["data"]["degradation"] == {"preset": "kla", "gain": None}


def test_differences_are_paired_and_measured_against_the_first_run(found):
    of_b = difference(found, "psnr")
    change = figures(B.rows, "psnr") - figures(A.rows, "psnr")
    by_category = {
        name: figures(B.rows, "psnr", name) - figures(A.rows, "psnr", name)
        for name in CATEGORIES
    }
    assert (of_b["against"], of_b["better"]) == ("A", "higher")
    assert of_b["micro"]["difference"] == pytest.approx(change.mean())
    means = [values.mean() for values in by_category.values()]
    assert of_b["macro"]["difference"] == pytest.approx(np.mean(means))
    assert list(of_b["categories"]) == ["bottle", "cable", "zipper"]
    for name, values in by_category.items():
        shown = of_b["categories"][name]
        assert shown["images"] == len(values)
        assert shown["difference"] == pytest.approx(values.mean())
        by_hand = intervals.paired_difference(np.zeros(len(values)), values)
        assert (shown["low"], shown["high"]) == pytest.approx((by_hand.low, by_hand.high))
    # Unpaired, the spread of the images (2 dB) would hide it all.
    assert of_b["micro"]["high"] - of_b["micro"]["low"] < 0.5


def test_verdicts_know_which_way_is_better_and_need_five_images(found):
    def verdicts(measure, letter="B"):
        group = difference(found, measure, letter)
        return {name: one["verdict"] for name, one in group["categories"].items()} | {
            "micro": group["micro"]["verdict"]
        }

    decided = {"bottle": "better", "cable": "better", "zipper": "few", "micro": "better"}
    assert verdicts("psnr") == decided
    assert verdicts("psnr", "C") == {
        k: v.replace("better", "worse") for k, v in decided.items()
    }
    erased = difference(found, "erasure_rate")
    assert erased["better"] == "lower"
    assert erased["micro"]["difference"] == pytest.approx(
        -figures(A.rows, "erased_regions").sum() / figures(A.rows, "regions").sum()
    )
    assert erased["micro"]["verdict"] == "better"
    contrast = difference(found, "contrast_error")
    assert contrast["micro"]["difference"] == pytest.approx(
        np.mean(
            np.abs(1 - figures(B.rows, "defect_contrast"))
            - np.abs(1 - figures(A.rows, "defect_contrast"))
        )
    )
    assert contrast["micro"]["verdict"] == "better"


def test_a_run_compared_with_itself_does_not_differ():
    same = compare.compare([A, A])
    for one in same["differences"]:
        for delta in (one["micro"], one["macro"], *one["categories"].values()):
            assert (delta["difference"], delta["low"], delta["high"]) == (0, 0, 0)
            assert delta["verdict"] in ("unclear", "few")


def test_only_images_that_all_runs_have_count():
    fewer = dataclasses.replace(B, rows=[r for r in B.rows if r["category"] != "zipper"][1:])
    found = compare.compare([A, fewer])
    assert found["data"]["count"] == 12
    assert [one["left_out"] for one in found["runs"]] == [4, 0]
    assert [one["micro"]["count"] for one in found["runs"]] == [12, 12]
    assert list(found["runs"][0]["categories"]) == ["bottle", "cable"]
    assert "evaluated on 4 more images" in Page(comparison_page.render(found)).text
    alone = dataclasses.replace(B, rows=B.rows[:1])
    delta = difference(compare.compare([A, alone]), "psnr")["macro"]
    assert (delta["images"], delta["low"], delta["verdict"]) == (1, None, "few")


def test_a_run_that_was_trained_on_the_images_is_named():
    runs = [A, dataclasses.replace(B, seen_in_training=True)]
    note = "Trained on some of the evaluated images: B."
    assert note in Page(comparison_page.render(compare.compare(runs))).text
    assert note not in Page(comparison_page.render(compare.compare([A, B]))).text


def test_what_has_no_value_is_left_out_and_never_written():
    rows = [dict(row) for row in rows_of(0.5, 4)]
    for row in rows[:5]:
        row |= dict.fromkeys((*fidelity.DEFECT_FIGURES, *defects.FIGURES), math.nan)
    found = compare.compare([A, dataclasses.replace(B, rows=rows)])
    assert difference(found, "defect_psnr")["micro"]["images"] == 11
    assert difference(found, "erasure_rate")["micro"]["images"] == 11
    assert difference(found, "psnr")["micro"]["images"] == 16
    assert not any(one["measure"] == "hallucination" for one in found["differences"])
    json.dumps(found, allow_nan=False)
    spoiled = [row | {"psnr": math.nan} for row in rows]
    with pytest.raises(RunError, match="psnr is nan"):
        compare.compare([A, dataclasses.replace(B, rows=spoiled)])


def test_good_photographs_count_for_hallucination_alone():
    def good(level):
        return [
            row | {"id": f"good/{i}", "hallucination": level, "regions": math.nan}
            for i, row in enumerate(rows_of(0.0, 5, {"bottle": 5}))
        ]

    runs = [
        dataclasses.replace(one, good_rows=good(level)) for one, level in ((A, 0.1), (B, 0.3))
    ]
    found = compare.compare(runs)
    invented = difference(found, "hallucination")
    assert invented["micro"] == {
        "images": 5, "difference": pytest.approx(0.2), "low": pytest.approx(0.2),
        "high": pytest.approx(0.2), "verdict": "worse",
    }  # fmt: skip
    assert found["runs"][1]["micro"]["hallucination"] == pytest.approx(0.3)
    assert difference(found, "psnr")["micro"]["images"] == found["data"]["count"] == 16


def other_noise(rows):
    return [*rows[:4], rows[4] | {"input_psnr": rows[4]["input_psnr"] + 0.01}, *rows[5:]]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([A], "a comparison takes 2 to 26 runs, got 1"),
        ([A] * 27, "got 27"),
        (
            [A, run(B.rows, "rcan", {"image_size": 64})],
            "runs/rcan: evaluated with data.image_size 64, but runs/sca_unet with 32; evaluate "
            "both with the same --config",
        ),
        ([A, run(B.rows, data={"name": "kla"})], "data.name kla, but"),
        ([A, B, run(B.rows, data={"split": "all"})], "eval.split all, but"),
        ([A, run(B.rows, law={"gain": [1, 2]})], r"data.degradation.gain \[1, 2\], but"),
        (
            [A, run(other_noise(B.rows), "rcan")],
            r"runs/rcan: image bottle/\S+ has an input PSNR of \S+ dB, but \S+ dB in "
            "runs/sca_unet; their degraded images differ",
        ),
        ([A, run([*B.rows, B.rows[3]])], "image bottle/test/scratch/000 occurs twice"),
        (
            [A, run([r | {"id": f"x{i}"} for i, r in enumerate(B.rows)])],
            "has no image in common",
        ),
        ([A, run([])], "has no image in common"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(runs, message):
    with pytest.raises(UsageError, match=message) as refused:
        compare.compare(runs)
    assert "\n" not in str(refused.value)


def test_files_of_degraded_images_have_no_law_to_differ_in():
    runs = [run(A.rows, data={"name": "kla"}), run(B.rows, data={"name": "kla"}, law={"x": 1})]
    assert compare.compare(runs)["data"]["degradation"] is None


def test_images_are_chosen_where_the_runs_differ_most():
    rows = [dict(row) for row in A.rows]
    by_id = {row["id"]: row for row in rows}
    changes = {"bottle/test/scratch/002": 3, "cable/test/scratch/001": -4,
               "bottle/test/scratch/005": 2, "zipper/test/scratch/000": 1}  # fmt: skip
    for name, change in changes.items():
        by_id[name]["psnr"] += change
    runs = [A, dataclasses.replace(B, rows=rows)]
    firsts = ["bottle/test/scratch/002", "cable/test/scratch/001", "zipper/test/scratch/000"]
    assert compare.choose_images(runs, 3) == firsts
    assert compare.choose_images(runs, 2) == firsts  # none of the categories is left out
    assert compare.choose_images(runs, 4) == sorted([*firsts, "bottle/test/scratch/005"])
    assert len(compare.choose_images(runs, 99)) == 16


def shown_images(runs, count=2):
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32, 1), np.float32)
    mask[8:16, 8:16] = 1
    return [
        Shown(
            **{key: runs[0].rows[i][key] for key in ("id", "category", "defect_type")},
            degraded=rng.uniform(0, 1, (32, 32, 3)),
            clean=np.full((32, 32, 3), 0.5),
            restored=[rng.uniform(0, 1, (32, 32, 3)) for _ in runs],
            mask=mask,
            has_mask=i != 3,
            rows=[run.rows[i] for run in runs],
        )
        for i in range(0, 4 * count - 1, 3)
    ]


def hostile():
    def named(rows):
        return [row | {"id": f"{HOSTILE}{row['id']}", "category": HOSTILE} for row in rows]

    runs = [
        dataclasses.replace(
            one, workdir=HOSTILE, name=HOSTILE, rows=named(one.rows), oracle_mask=True
        )
        for one in (A, B)
    ]
    comparison = compare.compare(runs, CONDITIONS | {"device": HOSTILE})
    comparison["data"] |= {"name": HOSTILE, "degradation": {HOSTILE: HOSTILE}}
    return comparison, shown_images(runs)


def every_case():
    masked = (*fidelity.DEFECT_FIGURES, *defects.FIGURES)
    bare = [
        run([row | dict.fromkeys(masked, math.nan) for row in one.rows], one.name)
        for one in (A, B)
    ]
    kla = [
        dataclasses.replace(
            one,
            rows=[
                row | {"kla_psnr": 21.0, "kla_ssim": 0.8, "kla_defect_psnr": 20.0,
                       "kla_defect_ssim": 0.9}
                for row in one.rows
            ],
        )
        for one in (A, B)
    ]  # fmt: skip
    single = [dataclasses.replace(one, rows=one.rows[:1]) for one in (A, B)]
    return {
        "three": (compare.compare([A, B, C], CONDITIONS), shown_images([A, B, C])),
        "hostile": hostile(),
        "no images": (compare.compare([A, B], None), []),
        "itself": (compare.compare([A, A], CONDITIONS), []),
        "no masks": (compare.compare(bare, None), []),
        "one image": (compare.compare(single, None), []),
        "kla": (compare.compare(kla, None), []),
    }


CASES = every_case()


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_whole_html_without_missing_values_or_requests(name):
    content = comparison_page.render(*CASES[name])
    page = Page(content)
    assert not re.search(r"\b(nan|NaN|None|inf|null|undefined)\b", page.text)
    for tag, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href"):
                assert value.startswith(("data:", "#")), (tag, key, value[:80])
            assert not re.search(r"\b(nan|None|inf)\b", (value or "")[:60]), (tag, key, value)
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for tag, a in page.elements if tag in ("a", "use")}
    assert targets <= set(ids)


def test_the_page_says_what_differs(found):
    page = Page(comparison_page.render(found, shown_images([A, B, C])))
    delta = difference(found, "psnr")["micro"]
    before, after = (one["micro"]["psnr"] for one in found["runs"][:2])
    interval = f"+{delta['low']:.2f} to +{delta['high']:.2f}"
    headline = f"+{delta['difference']:.2f} dB {before:.2f} → {after:.2f} {interval} better"
    assert headline in page.text
    assert (
        f"bottle B (7) +{difference(found, 'psnr')['categories']['bottle']['difference']:.2f} ("
        in (page.text)
    )
    assert "867,842 3.390 61.23 60 64" in page.text
    assert "A: runs/sca_unet" in page.text
    assert f"{A.rows[0]['psnr']:.2f} dB" in page.text
    assert "no mask known" in page.text
    assert "with oracle mask" not in page.text
    assert (
        "With oracle mask: A, B got the true"
        in Page(comparison_page.render(*CASES["hostile"])).text
    )


def test_marks_stand_where_the_numbers_are(found):
    content = comparison_page.render(found)
    start = content.index("PSNR, dB (right is better)")
    plot = content[start : content.index("</figure>", start)]
    texts = re.findall(r"<text[^>]*>(.*?)</text>", plot)
    names = [text for text in texts if text[0] not in "BC0+−"]
    assert names == ["bottle", "cable", "zipper", "All categories", "All images"]
    drawn = [
        group[key]
        for key in (*sorted(CATEGORIES), "macro", "micro")
        for group in (
            difference(found, "psnr", letter)["categories"] | difference(found, "psnr", letter)
            for letter in "BC"
        )
    ]
    marks = [float(x) for x in re.findall(r'<use href="#\w+" x="(.*?)"', plot)]
    slope, zero = np.polyfit([delta["difference"] for delta in drawn], marks, 1)
    assert slope > 0
    for mark, delta in zip(marks, drawn, strict=True):
        assert mark == pytest.approx(zero + slope * delta["difference"], abs=0.01)
    for delta in drawn:
        numbers = [f"{delta[key]:+.2f}" for key in ("difference", "low", "high")]
        shown = "{} ({} to {})".format(*numbers).replace("-", "−")
        assert re.sub(r"[+−](0\.00)", r"\1", shown) in texts
    assert [text for text in texts if text[0] in "BC"] == [
        f"{'BC'[i % 2]} ({delta['images']})" for i, delta in enumerate(drawn)
    ]
    verdicts = re.findall(r"font-weight: 700;[^>]*fill: var\(--(better|worse)\)", plot)
    decided = [d["verdict"] for d in drawn if d["verdict"] in ("better", "worse")]
    assert verdicts == decided


def test_the_numbers_of_the_plots_stand_in_a_table(found):
    content = comparison_page.render(found)
    table = content[content.index("Differences of B from A</caption>") :]
    table = table[: table.index("</table>")]
    groups = re.findall(r'<th colspan="(\d)"[^>]*>(.*?)</th>', table)
    assert groups[0] == ("4", "PSNR, dB")
    lines = re.findall(r"<tr>(<th scope=\"row\".*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r'data-value="(.*?)"', line) for line in lines]
    of_b = difference(found, "psnr")
    assert [line[0] for line in cells] == [*sorted(CATEGORIES), "All categories", "All images"]
    for name, line in zip(sorted(CATEGORIES), cells, strict=False):
        delta = of_b["categories"][name]
        expected = [delta[key] for key in ("images", "difference", "low", "high")]
        assert [float(cell) for cell in line[1:5]] == expected


def test_every_measure_has_a_style():
    assert comparison_tables.STYLES.keys() == {measure.key for measure in compare.MEASURES}


def test_files_are_written_whole(found, tmp_path):
    for _ in range(2):
        comparison_page.write_comparison(tmp_path / "new", found, [])
        written = json.loads((tmp_path / "new" / "comparison.json").read_text("utf-8"))
        assert written == json.loads(json.dumps(found))
        content = (tmp_path / "new" / "compare.html").read_text("utf-8")
        assert content == comparison_page.render(found)
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    for name in ("three", "hostile", "itself"):
        comparison_page.write_comparison(folder / name, *CASES[name])
    return folder


@pytest.mark.parametrize(
    ("name", "width", "media"),
    [
        ("three", 1280, ""), ("three", 390, ""), ("hostile", 390, ""), ("itself", 1280, ""),
        ("three", 688, "print"),
    ],
)  # fmt: skip
def test_it_loads_quietly_and_never_scrolls_sideways(chromium, pages, name, width, media):
    chromium.console()
    chromium.open(pages / name / "compare.html", width, media=media)
    chromium.run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert chromium.run("return document.documentElement.scrollWidth") <= width
    assert chromium.run(
        "return Array.from(document.images).every((one) => one.complete && one.naturalWidth)"
    )
    # No name or number of a plot runs into its neighbour or out of the page.
    assert chromium.run("""
        return Array.from(document.querySelectorAll(".chart svg")).every((chart) => {
          const boxes = Array.from(chart.querySelectorAll("text"))
            .map((one) => one.getBoundingClientRect());
          return boxes.every((a, i) => a.right <= innerWidth && a.left >= 0
            && boxes.every((b, j) => i >= j || a.right <= b.left + 1 || b.right <= a.left + 1
              || a.bottom <= b.top + 3 || b.bottom <= a.top + 3));
        });
    """)
    assert [entry["message"] for entry in chromium.console()] == []


TEXT = """
    const ground = (element) => {
      for (let one = element; one; one = one.parentElement) {
        const colour = getComputedStyle(one).backgroundColor;
        if (!/rgba\\(.*, 0\\)|transparent/.test(colour)) return colour;
      }
      return "none";
    };
    const found = {};
    for (const one of document.querySelectorAll("main *")) {
      const own = Array.from(one.childNodes)
        .some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!own || one.closest("title")) continue;
      const style = getComputedStyle(one);
      const drawn = one instanceof SVGElement;
      const name = drawn ? style.fill : one.getAttribute("class") || "";
      found[`${one.tagName}.${name}`] = [drawn ? style.fill : style.color, ground(one)];
    }
    return found;
"""


def luminance(colour):
    parts = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(("scheme", "media"), [("light", ""), ("dark", ""), ("dark", "print")])
def test_all_text_can_be_read(chromium, pages, scheme, media):
    chromium.open(pages / "three" / "compare.html", scheme=scheme, media=media)
    texts = chromium.run(TEXT)
    assert {"SPAN.better", "SPAN.worse"} <= texts.keys()
    # Texts of the plots: plain, muted, better and worse.
    assert len([name for name in texts if name.startswith("text.")]) == 4
    for element, pair in texts.items():
        darker, lighter = sorted(map(luminance, pair))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (element, pair)


def test_keys_sort_the_runs_and_a_click_takes_the_outlines_off(chromium, pages):
    chromium.open(pages / "three" / "compare.html")
    chromium.run("document.querySelector('#runs button[aria-label$=\"images: SSIM\"]').focus()")
    order = """
        return Array.from(document.querySelector("#runs tbody").rows)
          .map((row) => row.cells[0].textContent[0]).join("")
    """
    assert chromium.run(order) == "ABC"
    chromium.press("Enter")
    assert chromium.run(order) == "CAB"
    chromium.press("Enter")
    assert chromium.run(order) == "BAC"
    visible = "return document.querySelector('.outline').checkVisibility()"
    assert chromium.run(visible)
    # An outline lies on its picture, where the defect is.
    assert chromium.run("""
        const [picture, path] = [".picture", ".outline .border"]
          .map((one) => document.querySelector(one).getBoundingClientRect());
        return Math.abs((path.left - picture.left) / picture.width - 7 / 32) < 0.02
          && Math.abs((path.right - picture.left) / picture.width - 17 / 32) < 0.02
    """)
    # It is a thin line, however much the picture is enlarged.
    chromium.run("document.querySelector('#images figure:last-child').scrollIntoView()")
    box = chromium.run("""
        const box = document.querySelector("#images figure:last-child .picture")
          .getBoundingClientRect();
        return [box.left, box.top, box.right, box.bottom].map(Math.round)
    """)
    shot = Image.open(io.BytesIO(chromium.screenshot())).convert("RGB").crop(box)
    middle = np.asarray(shot, int)[round(shot.height * 12 / 32)]
    assert 2 <= np.count_nonzero(middle[:, 2] - middle[:, 0] > 60) <= 6
    chromium.run("document.querySelector('.controls input').click()")
    assert not chromium.run(visible)
