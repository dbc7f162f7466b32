import base64
import dataclasses
import html
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from restore_jax.metrics import fidelity
from restore_jax.report import evaluation_page, forms, image_panels
from tests.support.page import Page

HOSTILE = '<img src=x onerror=alert(1)> & "quoted"'
RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def row(category, number, **figures):
    return {
        "id": f"{category}/test/scratch/{number:03d}",
        "category": category,
        "defect_type": "scratch",
        "psnr": 28.0 + number, "ssim": 0.8, "mae": 0.02,
        "input_psnr": 20.0, "input_ssim": 0.3,
        "defect_psnr": 24.0, "background_psnr": 29.0, "defect_ssim": 0.7,
        "input_defect_psnr": 18.0, "defect_contrast": 0.9, "input_defect_contrast": 0.6,
    } | figures  # fmt: skip


def without_masks(rows):
    return [one | dict.fromkeys(fidelity.DEFECT_FIGURES, math.nan) for one in rows]


def flat(colour, size=32):
    return np.full((size, size, 3), colour, np.float32)


def example(rank, figures, size=32, **changes):
    mask = np.zeros((size, size, 1), np.float32)
    mask[8:16, 8:16] = 1
    fields = {
        "rank": rank,
        "category": figures["category"],
        "defect_type": figures["defect_type"],
        "id": figures["id"],
        "degraded": flat(RED, size),
        "restored": flat(BLUE, size),
        "clean": flat(0.5, size),
        "mask": mask,
        "has_mask": True,
        "row": figures,
    }
    return evaluation_page.Example(**(fields | changes))


def make(rows, examples=None, **fields):
    if examples is None:
        by_category = {one["category"]: one for one in rows}
        examples = [
            example(rank, one | {"id": f"{one['id']}-{rank}"})
            for one in by_category.values()
            for rank in ("worst", "best", "median")
        ]
    summary = {
        "checkpoint": {"step": 4200, "epoch": 20, "which": "best"},
        "data": {"name": "sample", "split": "val", "count": len(rows), "image_size": 32},
        **fidelity.summarise(rows),
    }
    summary["data"] |= fields.pop("data", {})
    summary["settings"] = {"data": {"split": fields.pop("division", "defects")}}
    summary["trained_on"] = {"name": summary["data"]["name"], "split": "defects"}
    summary["trained_on"] |= fields.pop("trained_on", {})
    for group in ("micro", "macro"):
        summary[group] = summary[group] | fields.pop(group, {})
    config = {
        "name": "sca_unet",
        "model": {"name": "sca_unet", "widths": (16, 32)},
        "data": {
            "split": "defects",
            "degradation": {"preset": "kla", "gain": None},
            "root": "",
        },
    }
    return evaluation_page.Report(
        "A run", summary, rows, examples, **({"config": config} | fields)
    )


ROWS = [
    row("carpet", 0), row("carpet", 1, psnr=19.5, defect_contrast=0.2),
    row(HOSTILE, 2, defect_contrast=0.85), row("zipper", 3),
    row("bottle", 4, psnr=26.0, defect_contrast=0.8),
]  # fmt: skip
ROWS += without_masks([row("zipper_good", 5, psnr=33.0)])

DETECTED = {
    version: {"image_auroc": 0.9, "pixel_auroc": 0.8, "aupro": None, "f1": math.nan}
    for version in ("clean", "degraded", "restored", "recovery")
}


def hostile_report():
    """A report of everything, with names that try to become markup."""
    tree = {"x": {HOSTILE: HOSTILE, "unset": None, "pair": (1, None)}, "eval": {"split": "val"}}
    examples = [
        example(rank, one, defect_type=HOSTILE)
        for one, rank in zip(ROWS[1:], ("best", "median", "worst", "best"), strict=False)
    ]
    return dataclasses.replace(
        make(ROWS, examples, config=tree, data={"name": HOSTILE}, micro={"kla_psnr": 21.0}),
        title=f"</title><script>alert(1)</script>{HOSTILE}",
        detectability={"macro": DETECTED, "categories": {HOSTILE: DETECTED}},
    )


LONG = [row(f"a_very_long_category_name_of_a_part_{i}", i) for i in range(15)]
EVERY_CASE = {
    "full": make(ROWS),
    "hostile": hostile_report(),
    "no examples": make(ROWS, []),
    "no masks": make(without_masks(ROWS[:2])),
    "no rows": dataclasses.replace(make(ROWS), rows=[], config={}),
    "one image": make(ROWS[:1], [example(rank, ROWS[0]) for rank in ("best", "worst")]),
    "long names": make(LONG, [example("best", one) for one in LONG]),
    "nothing detected": make(ROWS, detectability={"macro": {"clean": None}, "categories": {}}),
}


@pytest.mark.parametrize("name", EVERY_CASE)
def test_every_case_is_whole_html_without_missing_values_or_requests(name):
    text = evaluation_page.render(EVERY_CASE[name])
    page = Page(text)
    assert not re.search(r"\b(nan|None|inf|null|undefined)\b", page.text, re.IGNORECASE)
    for tag, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "srcset", "action", "data", "poster"):
                assert value.startswith(("data:", "#")), (tag, key, value[:80])
            if key == "data-value":
                assert value.lower() not in ("nan", "none", "inf", "-inf")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for t, a in page.elements if t in ("a", "use")}
    assert targets <= set(ids)


def test_hostile_names_stay_text():
    page = Page(evaluation_page.render(hostile_report()))
    assert len(page.all("script")) == 1
    assert all(attributes["src"].startswith("data:") for attributes in page.all("img"))
    assert page.text.count(HOSTILE) > 8
    assert "</title><script>alert(1)</script>" in page.text
    assert any(HOSTILE in attributes["alt"] for attributes in page.all("img"))


def test_a_name_that_is_not_unicode_can_be_written(tmp_path):
    rows = [row("caf\udce9", 0)]
    evaluation_page.write_report(tmp_path / "new" / "report.html", make(rows))
    assert "caf?" in Page((tmp_path / "new" / "report.html").read_text("utf-8")).text


def test_the_same_report_is_the_same_file(tmp_path):
    for _ in range(2):
        evaluation_page.write_report(tmp_path / "report.html", make(ROWS))
        assert (tmp_path / "report.html").read_text("utf-8") == evaluation_page.render(
            make(ROWS)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (1.005, {}, "1.00"), (-1.26, {"digits": 1}, "−1.3"), (2.0, {"sign": True}, "+2.00"),
        (-0.001, {"sign": True}, "0.00"), (0.0, {"digits": 0}, "0"), (12, {"digits": 0}, "12"),
        (None, {}, "n/a"), (math.nan, {"sign": True}, "n/a"), (math.inf, {}, "n/a"),
        (np.float32(0.5), {}, "0.50"),
    ],
)  # fmt: skip
def test_numbers_have_one_form(value, options, expected):
    assert forms.number(value, **options) == expected


def test_shares_are_per_cent():
    assert forms.percent(0.0345) == "3.5 %"
    assert forms.percent(-0.1, sign=True) == "−10.0 %"
    assert forms.percent(None) == "n/a"


def test_the_headline_compares_with_the_input():
    extra = {
        "input_defect_contrast": 0.9, "regions": 8, "erased_regions": 2,
        "erasure_rate": 0.25, "input_erasure_rate": 0.5,
    }  # fmt: skip
    text = Page(evaluation_page.render(make(ROWS, micro=extra))).text
    mean = np.mean([one["psnr"] for one in ROWS])
    assert f"PSNR {mean:.2f} dB input 20.00; +{mean - 20:.2f}" in text
    assert "Erasure rate 25.0 % input 50.0 %; −25.0 points" in text
    assert "Contrast kept 0.73 input 0.90; −0.17" in text
    assert "Images with a lower PSNR than their input: 1 of 6." in text
    assert "less than half of a defect’s contrast: 1 of 5 with a measurable defect." in text
    assert "Defect regions erased: 2 of 8." in text
    assert "Images to look at first: 1 of 1" in text


def test_a_gain_is_marked_as_better_or_worse():
    extra = {"erasure_rate": 0.2, "input_erasure_rate": 0.1, "input_defect_contrast": 0.5}
    shown = evaluation_page.render(make([row("a", 0, defect_contrast=1.6)], micro=extra))
    changes = re.findall(r'<span class="(better|worse)">(.*?)</span>', shown)
    assert changes == [
        ("better", "+8.00"), ("better", "+0.5000"), ("better", "+6.00"),
        ("worse", "+1.10"),  # exaggerated by 0.6 is further from 1 than faded by 0.5
        ("worse", "+10.0 points"),
    ]  # fmt: skip


def test_the_table_holds_the_figures_and_pins_the_means():
    summary = make(ROWS).summary
    text = evaluation_page.render(make(ROWS))
    table = text[text.index("Means over the images of each") :]
    body, foot = re.findall(r"<tbody>(.*?)</tbody>\s*<tfoot>(.*?)</tfoot>", table, re.DOTALL)[0]
    lines = [re.findall(r'data-value="(.*?)"', line) for line in body.strip().splitlines()]
    names = sorted(summary["categories"])
    assert [html.unescape(line[0]) for line in lines] == names
    for name, line in zip(names, lines, strict=True):
        means = summary["categories"][name]
        assert int(float(line[1])) == means["count"]
        assert float(line[3]) == means["input_psnr"]
        assert float(line[4]) == means["psnr"]
        assert float(line[5]) == pytest.approx(means["psnr"] - means["input_psnr"])
    assert lines[-1][8:] == [""] * 6  # zipper_good has no defect
    assert foot.index("(micro)") < foot.index("(macro)")
    micro, macro = (re.findall(r'data-value="(.*?)"', line) for line in foot.split("<tr>")[1:])
    assert float(micro[4]) == summary["micro"]["psnr"]
    assert float(macro[4]) == summary["macro"]["psnr"]


def test_figures_it_does_not_know_get_a_column():
    extra = {"sharpness_gain": 1.25, "masked_frame_psnr": 43.0, "note": "text"}
    text = Page(evaluation_page.render(make(ROWS, micro=extra, macro=extra))).text
    assert "sharpness gain" in text
    assert "masked frame PSNR, dB" in text
    assert "1.2500" in text


def test_categories_stand_in_alphabetical_order_in_both_charts():
    rows = [row(name, i) for i, name in enumerate(("zipper", "carpet", "bottle"))]
    summary = make(rows).summary
    summary["categories"] = dict(reversed(summary["categories"].items()))
    shown = evaluation_page.render(dataclasses.replace(make(rows), summary=summary))
    shown = shown[shown.index('id="charts"') :]
    names = re.findall(r"<title>(\w+), input: ", shown)
    assert names == ["bottle", "carpet", "zipper"] * 2


def decoded(address):
    kind, content = address.split(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(content)))


def test_small_photographs_are_exact_and_large_ones_reduced():
    rng = np.random.default_rng(0)
    small = rng.uniform(-0.1, 1.1, (20, 30, 3)).astype(np.float32)
    kind, picture = decoded(image_panels.embed_photograph(small))
    assert kind == "data:image/webp"
    expected = np.round(np.clip(small, 0, 1) * 255)
    assert np.array_equal(np.asarray(picture.convert("RGB")), expected)
    large = np.linspace(0, 1, 600 * 300 * 3, dtype=np.float32).reshape(300, 600, 3)
    _, picture = decoded(image_panels.embed_photograph(large))
    assert picture.size == (384, 192)
    by_halves = np.asarray(picture.convert("L"), np.float64).reshape(2, 96, 384).mean((1, 2))
    assert by_halves == pytest.approx([0.25 * 255, 0.75 * 255], abs=2)
    assert len(image_panels.embed_photograph(rng.uniform(0, 1, (256, 256, 3)))) < 130_000


@pytest.mark.parametrize(
    ("size", "zoom"), [((16, 16), 16), ((64, 100), 2), ((200, 90), 1), ((1000, 20), 1)]
)
def test_small_images_are_enlarged_by_whole_pixels(size, zoom):
    assert image_panels.display_zoom(*size) == zoom


def test_the_error_map_is_lighter_where_the_error_is_greater():
    clean = flat(0.5, 40)
    restored = clean.copy()
    restored[:20] += 0.1
    restored[30:, :20] += np.array([0.3, 0.0, 0.0], np.float32)
    error = image_panels.squared_error(restored, clean)
    by_hand = [[0.01, 0.01], [0.0, 0.0], [0.03, 0.0]]
    assert error[[0, 25, 35]][:, [0, 39]] == pytest.approx(np.array(by_hand), abs=1e-6)
    address, top = image_panels.embed_error_map(error)
    assert top == pytest.approx(0.03)
    light = np.asarray(decoded(address)[1].convert("L"), int)
    assert light.shape == (40, 40)
    assert light[25, 0] < 5 < light[0, 0] < light[35, 0]
    assert light[35, 0] > 230
    address, top = image_panels.embed_error_map(np.zeros((12, 12)))
    assert top == 0
    assert np.asarray(decoded(address)[1].convert("L")).max() < 5


def test_a_single_wrong_pixel_still_shows():
    error = np.zeros((64, 64))
    error[3, 4] = 0.2
    address, top = image_panels.embed_error_map(error)
    assert top == 0.2
    assert np.asarray(decoded(address)[1].convert("L"))[3, 4] > 230


def edges_of(path):
    return sorted(re.findall(r"M(\d+) (\d+)([hv])(\d+)", path))


def test_the_outline_runs_around_the_defect():
    mask = np.zeros((8, 9, 1), np.float32)
    mask[3, 2] = 1
    # One pixel grown by one each way: columns 1 to 3, rows 2 to 4.
    expected = [("1", "2", "h", "3"), ("1", "2", "v", "3"), ("1", "5", "h", "3"),
                ("4", "2", "v", "3")]  # fmt: skip
    assert edges_of(image_panels.outline_path(mask)) == expected
    assert image_panels.outline_path(np.zeros((8, 9, 1))) == ""


def test_the_outline_of_a_large_mask_keeps_its_smallest_defect():
    mask = np.zeros((1000, 700, 1), np.float32)
    mask[601, 301] = 1
    numbers = [
        [int(n) for n in (x, y)] for x, y, _, _ in edges_of(image_panels.outline_path(mask))
    ]
    left, top = np.min(numbers, 0)
    right, bottom = np.max(numbers, 0)
    assert left <= 301 < right <= left + 36
    assert top <= 601 < bottom <= top + 36


def test_the_error_at_the_defect_is_compared_with_the_rest():
    one = example("worst", ROWS[0])
    restored = one.clean + 0.1
    restored[8:16, 8:16] += 0.1
    text = Page(
        evaluation_page.render(make(ROWS, [dataclasses.replace(one, restored=restored)]))
    ).text
    assert "Error at defect 4.00 × the rest" in text  # 0.2² / 0.1²
    unknown = dataclasses.replace(one, has_mask=False)
    page = Page(evaluation_page.render(make(ROWS, [unknown])))
    assert "Error at defect n/a" in page.text
    assert "Clean, no mask known" in page.text
    assert not any("outline" in a.get("class", "") for a in page.all("svg"))


def test_examples_go_by_category_and_rank_and_a_repeated_image_is_shown_once():
    text = evaluation_page.render(make(ROWS))
    assert re.findall(r"<h4>(.*?)</h4>", text) == ["Best", "Median", "Worst"] * 5
    once = evaluation_page.render(
        make(ROWS, [example(rank, ROWS[0]) for rank in ("worst", "best")])
    )
    assert re.findall(r"<h4>(.*?)</h4>", once) == ["Best, worst"]
    assert (
        "0.20, under half"
        in Page(evaluation_page.render(make(ROWS, [example("worst", ROWS[1])]))).text
    )


def test_it_says_what_was_evaluated():
    text = Page(evaluation_page.render(make(ROWS))).text
    assert "6 images of sample (val) at 32 × 32 px" in text
    assert "best checkpoint, step 4200, epoch 20" in text
    assert "sca_unet: widths (16, 32)" in text
    assert "preset kla, unchanged" in text
    assert "data.degradation.gain not set" in text
    assert "data.root empty" in text
    assert "oracle" not in text.lower()
    config = {"data": {"split": "good", "degradation": {"preset": "mild", "gain": [1, 1.5]}}}
    changed = make(
        ROWS,
        config=config,
        data={"name": "mvtec_ad", "split": "train", "image_size": 0},
        trained_on={"split": "good"},
    )
    text = Page(evaluation_page.render(dataclasses.replace(changed, oracle_mask=True))).text
    assert "at their native size" in text
    assert "preset mild, except gain (1, 1.5)" in text
    assert "defect-free photographs only" in text
    assert "contains images that the model was trained on" in text
    assert "With oracle mask." in text
    for name in ("kla", "shots"):
        text = Page(evaluation_page.render(make(ROWS, data={"name": name}))).text
        assert "already contain degraded images" in text


def test_it_says_which_measures_these_are():
    text = Page(evaluation_page.render(make(ROWS))).text
    for part in ("11 × 11", "σ 1.5", "per RGB channel", "Micro", "Macro", "Masked frame"):
        assert part in text
    assert "256 × 256 by area averaging" not in text
    kla = make(ROWS, macro={"kla_psnr": 22.5, "kla_ssim": 0.9})
    text = Page(evaluation_page.render(kla)).text
    assert "256 × 256 by area averaging" in text
    assert "22.50" in text


def test_a_claim_about_detection_says_what_training_saw():
    found = {"macro": DETECTED, "categories": {"carpet": DETECTED}}
    text = Page(evaluation_page.render(make(ROWS, detectability=found))).text
    assert "pixel AUROC 0.800 0.800 0.800 80.0 %" in text
    assert "and this one has" not in text
    trained = make(ROWS, detectability=found, data={"name": "mvtec_ad"})
    assert "and this one has" in Page(evaluation_page.render(trained)).text
    assert (
        "Detectability"
        not in Page(evaluation_page.render(make(ROWS))).text.split("What the")[0]
    )


@pytest.mark.parametrize(
    ("name", "trained_on", "division", "seen"),
    [
        ("mvtec_ad", "defects", "defects", False),
        ("mvtec_ad", "defects", "good", True),
        ("mvtec_ad", "all", "defects", True),
        ("mvtec_ad", "good", "all", True),
        ("mvtec_ad", "good", "defects", False),
        ("kla", "defects", "test", False),
        ("sample", "defects", "good", False),
    ],
)
def test_it_says_where_the_model_was_trained_on_the_images(name, trained_on, division, seen):
    trained = {"name": "kla" if name == "kla" else "mvtec_ad", "split": trained_on}
    changed = make(ROWS, data={"name": name}, trained_on=trained, division=division)
    text = Page(evaluation_page.render(changed)).text
    assert ("may do worse on others" in text) == seen
    assert f"Trained on {trained['name']}" in text
    # Whatever the evaluation's own division is.
    assert ("defect-free photographs only" in text) == (trained_on == "good")


@pytest.mark.parametrize(("undegraded", "told"), [(0, False), (3, False), (4, True)])
def test_it_says_where_most_images_are_not_degraded(undegraded, told):
    rows = [one | {"input_psnr": 100.0} for one in ROWS[:undegraded]] + ROWS[undegraded:]
    text = Page(evaluation_page.render(make(rows))).text
    assert ("Images that are not degraded (input PSNR 100 dB): 4 of 6." in text) == told


def test_counts_read_well_of_a_single_image():
    only = row("a", 0, defect_contrast=0.2, input_psnr=100.0)
    extra = {"regions": 1, "erased_regions": 1}
    text = Page(evaluation_page.render(make([only], micro=extra))).text
    assert "Images that are not degraded (input PSNR 100 dB): 1 of 1." in text
    assert "Images with a lower PSNR than their input: 1 of 1." in text
    assert not re.search(r"\b1 (images|regions|of 1 \w+s)\b", text)


def test_inventions_on_good_images_are_told_in_grey_levels():
    text = Page(
        evaluation_page.render(make(ROWS, micro={"good_count": 12, "hallucination": 0.1}))
    ).text
    assert "On 12 images without defects" in text
    assert "more than 25.5 grey levels" in text
    none = make(ROWS, micro={"good_count": 0, "hallucination": None})
    assert "images without defects, one" not in Page(evaluation_page.render(none)).text


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    found = {"macro": DETECTED, "categories": {"carpet": DETECTED}}
    for name, made in {
        "full": make(ROWS, detectability=found, oracle_mask=True),
        "hostile": hostile_report(),
        "long": EVERY_CASE["long names"],
    }.items():
        evaluation_page.write_report(folder / f"{name}.html", made)
    return folder


def severe(chromium):
    return [entry["message"] for entry in chromium.console()]


@pytest.mark.parametrize(
    ("name", "width"), [("full", 390), ("full", 1280), ("hostile", 390), ("long", 390)]
)
def test_it_loads_quietly_and_never_scrolls_sideways(chromium, page, name, width):
    chromium.console()
    chromium.open(page / f"{name}.html", width)
    chromium.run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert chromium.run("return document.documentElement.scrollWidth") <= width
    assert chromium.run("return innerWidth") == width
    assert chromium.run(
        "return Array.from(document.images).every((one) => one.complete && one.naturalWidth)"
    )
    if width == 390:
        # The tables are wider than that, and move inside their boxes.
        assert chromium.run(
            "return Array.from(document.querySelectorAll('.scroll'))"
            ".some((box) => box.scrollWidth > box.clientWidth)"
        )
    assert severe(chromium) == []


NAMES = """
    return Array.from(document.querySelectorAll("#categories tbody")[0].rows)
      .map((row) => row.cells[0].textContent)
"""
HEADINGS = """
    return Array.from(document.querySelectorAll("#categories table")[0].querySelectorAll("th"))
      .map((heading) => heading.getAttribute("aria-sort")).filter(Boolean)
"""
BUTTON = "document.querySelector('#categories button[aria-label=\"%s\"]')"


def test_a_click_sorts_the_table(chromium, page):
    chromium.open(page / "full.html")
    at_first = chromium.run(NAMES)
    assert at_first == sorted(at_first)
    assert chromium.run(HEADINGS) == []
    centre = "return [Math.round(box.x + box.width / 2), Math.round(box.y + box.height / 2)];"
    chromium.run(f"{BUTTON % 'PSNR, dB: restored'}.scrollIntoView({{block: 'center'}})")
    # A category without a defect has no contrast, and stays at the end.
    ascending = ["carpet", "bottle", HOSTILE, "zipper", "zipper_good"]
    for button, descending in (
        ("PSNR, dB: restored", ascending[::-1]),
        ("Contrast kept: restored", [*ascending[-2::-1], "zipper_good"]),
    ):
        place = f"const box = {BUTTON % button}.getBoundingClientRect();"
        point = chromium.run(place + centre)
        chromium.drag(point, point)
        assert chromium.run(NAMES) == ascending
        assert chromium.run(HEADINGS) == ["ascending"]
        chromium.drag(point, point)
        assert chromium.run(HEADINGS) == ["descending"]
        assert chromium.run(NAMES) == descending
    assert chromium.run(
        "return document.querySelector('#categories tfoot').rows[0].cells[0].textContent"
    ).endswith("(micro)")
    assert severe(chromium) == []


def test_keys_sort_the_table(chromium, page):
    chromium.open(page / "full.html")
    at_first = chromium.run(NAMES)
    chromium.run(f"{BUTTON % 'Category'}.focus()")
    chromium.press("Enter", " ")
    assert chromium.run(HEADINGS) == ["descending"]
    assert chromium.run(NAMES) == at_first[::-1]
    # Three headings on: images, images with a defect, PSNR of the input.
    chromium.press("Tab", "Tab", "Tab", " ")
    assert chromium.run("return document.activeElement.ariaLabel") == "PSNR, dB: input"
    assert chromium.run(HEADINGS) == ["ascending"]
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert chromium.run(outline) == "solid"


def colours_along(chromium, selector):
    """The colours of the slider's picture at tenths of its width, "r" or "b"."""
    x, y, width, height = chromium.run(
        "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [box.x, box.y, box.width, box.height]",
        selector,
    )
    shot = Image.open(io.BytesIO(chromium.screenshot())).convert("RGB")
    points = [(x + width * (i + 0.5) / 10, y + height / 8) for i in range(10)]
    return "".join(
        "r" if shot.getpixel((round(x), round(y)))[0] > 128 else "b" for x, y in points
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_the_slider_moves_by_key_and_by_drag(chromium, page, width):
    chromium.open(page / "full.html", width)
    chromium.run("document.querySelector('.compare').scrollIntoView({block: 'center'})")
    assert colours_along(chromium, ".compare") == "rrrrrbbbbb"
    chromium.run("document.querySelector('.compare input').focus()")
    chromium.press(*["Right"] * 20)
    assert colours_along(chromium, ".compare") == "rrrrrrrbbb"
    chromium.press(*["Left"] * 40)
    assert colours_along(chromium, ".compare") == "rrrbbbbbbb"
    assert "30 %" in chromium.run("return document.activeElement.ariaValueText")
    x, y, side = chromium.run(
        "const box = document.querySelector('.compare').getBoundingClientRect();"
        "return [Math.round(box.x), Math.round(box.y + box.height / 2), box.width]"
    )
    chromium.drag((x + round(side * 0.3), y), (x + round(side * 0.8), y))
    assert colours_along(chromium, ".compare") == "rrrrrrrrbb"
    assert side == 256  # 32 px enlarged eight times, also on a phone
    assert severe(chromium) == []


COLOURS = """
    const solid = (element) => {
      for (let one = element; one; one = one.parentElement) {
        const colour = getComputedStyle(one).backgroundColor;
        if (!/rgba\\(.*, 0\\)|transparent/.test(colour)) return colour;
      }
      return "none";
    };
    for (const one of document.querySelectorAll("details")) one.open = true;
    const found = {};
    for (const element of document.querySelectorAll("body *")) {
      const own = Array.from(element.childNodes)
        .some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!own || element.closest("script, title")) continue;
      const style = getComputedStyle(element);
      const inSvg = element instanceof SVGElement;
      const kind = inSvg ? style.fill : element.getAttribute("class") || "";
      const name = element.tagName + "." + kind;
      found[name] = [inSvg ? style.fill : style.color, solid(element)];
    }
    return found;
"""


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("media", ["", "print"])
def test_all_text_can_be_read(chromium, page, scheme, media):
    chromium.open(page / "full.html", scheme=scheme, media=media)
    found = chromium.run(COLOURS)
    assert len(found) > 25
    for element, pair in found.items():
        darker, lighter = sorted(map(luminance, pair))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (element, pair)
    ground = luminance(found["H1."][1])
    assert ground > 0.9 if scheme == "light" or media == "print" else ground < 0.1


def test_on_a_phone_categories_are_closed_and_a_link_opens_its_own(chromium, page):
    chromium.open(page / "full.html", 390)
    is_open = "return Array.from(document.querySelectorAll('.category')).map((one) => one.open)"
    assert chromium.run(is_open) == [True, False, False, False, False]
    chromium.run("document.querySelectorAll('#categories a')[2].click()")
    chromium.run("return new Promise((done) => setTimeout(done, 100))")
    assert chromium.run(is_open) == [True, False, True, False, False]
    top = "return document.querySelectorAll('.category')[2].getBoundingClientRect().top"
    assert abs(chromium.run(top)) < 60
    chromium.run("document.querySelector('.controls button').click()")
    assert chromium.run(is_open) == [True] * 5
    chromium.run("return new Promise((done) => setTimeout(done, 100))")
    chromium.run("document.querySelector('.controls button').click()")
    assert chromium.run(is_open) == [False] * 5


def test_outlines_can_be_taken_off(chromium, page):
    chromium.open(page / "full.html")
    shown = "return document.querySelector('.outline').checkVisibility()"
    assert chromium.run(shown)
    chromium.run("document.querySelector('.controls input').click()")
    assert not chromium.run(shown)


def test_on_paper_both_images_stand_side_by_side_and_all_is_open(chromium, page):
    chromium.open(page / "full.html", 390, media="print")
    chromium.run("dispatchEvent(new Event('beforeprint'))")
    assert chromium.run(
        "return Array.from(document.querySelectorAll('details')).every((one) => one.open)"
    )
    chromium.open(page / "full.html", 720, media="print")
    boxes = chromium.run(
        "return Array.from(document.querySelector('.compare').querySelectorAll('img'))"
        ".map((one) => one.getBoundingClientRect()).map((b) => [b.left, b.right, b.top])"
    )
    assert boxes[0][1] <= boxes[1][0]
    assert boxes[0][2] == boxes[1][2]
    assert not chromium.run("return document.querySelector('.compare input').checkVisibility()")
    assert chromium.run("return document.documentElement.scrollWidth") <= 720
    assert chromium.pdf().startswith(b"%PDF")
