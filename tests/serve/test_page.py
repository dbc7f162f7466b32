"""The page, in a real Chromium."""

import dataclasses
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from restore_jax.trust import maps
from tests.support import serving, trusting

BUSY = """return photographs.length !== arguments[0] || sent > 0 ||
  photographs.some((one) => ["waiting", "restoring"].includes(one.state)) ||
  stage.getAttribute("aria-busy") === "true"
"""
WIDTH = "return document.documentElement.scrollWidth"

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    application, *_ = serving.make(tmp_path_factory.mktemp("serve"), max_waiting=2)
    with serving.listening(application) as found:
        yield found


@pytest.fixture
def page(chromium, address):
    """The page, opened with its window's size and scheme; errors and other hosts fail."""
    chromium.console()

    def open_page(*size, **options):
        chromium.open(address, *size, **options)
        return chromium

    yield open_page
    loaded = chromium.run(
        "return performance.getEntriesByType('resource').map((one) => one.name)"
    )
    assert len(loaded) >= 3
    assert all(one.startswith(address) for one in loaded)
    # Chromium logs each refused upload.
    others = [
        entry["message"]
        for entry in chromium.console()
        if "status of 4" not in entry["message"] and "status of 503" not in entry["message"]
    ]
    assert others == []


def photograph(path, size=(40, 50, 3), colour=None):
    array = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    if colour is not None:
        array[:] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def place_to_drop(page):
    return page.run(
        "const box = byId('drop').getBoundingClientRect(); return [box.left + 9, box.top + 9]"
    )


def dropped(page, *paths, count=None):
    page.drop(place_to_drop(page), *paths)
    settled(page, len(paths) if count is None else count)


def settled(page, count):
    deadline = time.monotonic() + 60
    while page.run(BUSY, count):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def text(page, name):
    return page.run("return byId(arguments[0]).textContent", name)


def stage(page):
    """Returns a screenshot of the stage, uint8 [h, w, 3], and its place in the window."""
    box = page.run(
        "stage.scrollIntoView(); const box = stage.getBoundingClientRect();"
        "return [box.left, box.top, box.right, box.bottom]"
    )
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return np.asarray(shot.crop([int(side + 0.5) for side in box])), box


def picture(page, side):
    """Returns what a layer shows, as it was sent."""
    content = page.run(
        "return fetch(byId(arguments[0]).src).then((one) => one.arrayBuffer())"
        ".then((one) => Array.from(new Uint8Array(one)))",
        side,
    )
    return np.asarray(Image.open(io.BytesIO(bytes(content))).convert("RGB")).astype(int)


def test_a_dropped_photograph_is_shown_before_and_after_at_100_percent(page, tmp_path):
    page = page()
    dropped(page, photograph(tmp_path / "a.png", (120, 160, 3)))
    assert text(page, "status") == "1 of 1 restored"
    assert text(page, "title") == "a.png"
    before, after = picture(page, "before"), picture(page, "after")
    shown, (left, top, _, bottom) = stage(page)
    assert shown.shape == before.shape == (120, 160, 3)
    np.testing.assert_array_equal(shown[:, :70], before[:, :70])
    np.testing.assert_array_equal(shown[:, 90:], after[:, 90:])
    assert np.abs(before - after).max() > 20
    # The divider follows the mouse, and then the keys.
    middle = (top + bottom) / 2
    page.drag((left + 80, middle), (left + 32, middle))
    assert page.run("return divider.value") == "20"
    page.press("Right", "Right")
    assert page.run("return divider.value") == "22"
    page.press("End")
    np.testing.assert_array_equal(stage(page)[0][:, :150], before[:, :150])


@pytest.mark.slow
def test_a_larger_photograph_is_panned(page, tmp_path):
    page = page(900, 700)
    dropped(page, photograph(tmp_path / "a.png", (800, 1500, 3)))
    before, after = picture(page, "before"), picture(page, "after")

    def check(x, y):
        shown, box = stage(page)
        part = (slice(y, y + shown.shape[0]), slice(x, x + shown.shape[1]))
        assert shown.shape[0] < 600
        assert shown.shape[1] < 900
        at = shown.shape[1] // 2
        np.testing.assert_array_equal(shown[:, : at - 20], before[part][:, : at - 20])
        np.testing.assert_array_equal(shown[:, at + 20 :], after[part][:, at + 20 :])
        return box

    _, _, right, bottom = check(0, 0)
    page.drag((right - 50, bottom - 50), (right - 350, bottom - 150))
    check(300, 100)
    page.run("divider.focus()")
    page.run(
        "divider.dispatchEvent(new KeyboardEvent('keydown', "
        "{ key: 'ArrowRight', shiftKey: true, cancelable: true }))"
    )
    check(364, 100)
    page.run("document.querySelector('[name=zoom][value=fit]').click()")
    shown, _ = stage(page)
    assert shown.shape[0] / shown.shape[1] == pytest.approx(8 / 15, abs=0.01)
    assert not page.run("return stage.classList.contains('pannable')")


@pytest.mark.slow
def test_settings_apply_to_all_again(page, tmp_path):
    page = page()
    dropped(page, photograph(tmp_path / "a.png"), photograph(tmp_path / "b.png"))
    button = "document.querySelector('#settings button')"
    assert page.run(f"return {button}.hidden")
    page.run(
        "settings.elements.strength.value = 0;"
        "settings.elements.strength.dispatchEvent(new Event('input', { bubbles: true }))"
    )
    assert not page.run(f"return {button}.hidden")
    page.run(f"{button}.click()")
    settled(page, 2)
    np.testing.assert_array_equal(picture(page, "before"), picture(page, "after"))
    assert page.run(f"return {button}.hidden")


@pytest.mark.slow
def test_a_folder_keeps_its_images_and_twenty_wait_for_their_turn(page, tmp_path):
    page = page()
    for i in range(20):
        photograph(tmp_path / f"in/{'ab'[i % 2]}/{i}.png")
    (tmp_path / "in/b/notes.txt").write_text("none")
    photograph(tmp_path / "in/.hidden/c.png")
    dropped(page, tmp_path / "in", count=20)
    assert text(page, "status") == "20 of 20 restored"
    assert text(page, "left-out") == "2 files of the folder left out: no image"
    names = page.run("return photographs.map((one) => one.name)")
    assert names == [f"in/{'ab'[i % 2]}/{i}.png" for i in (*range(0, 20, 2), *range(1, 20, 2))]
    assert not page.run("return byId('save-all').disabled")
    saved = page.run(
        "const form = byId('save-all').form;"
        "return fetch(form.action, { method: 'POST', body: new FormData(form) })"
        ".then((one) => one.status)"
    )
    assert saved == 200
    page.run("byId('clear').click()")
    assert page.run("return byId('work').hidden")


@pytest.mark.slow
def test_bad_files_say_why_and_hold_nothing_up(page, tmp_path):
    page = page()
    huge = tmp_path / "b.png"
    Image.new("1", (10_000, 10_000)).save(huge)
    (tmp_path / "a.png").write_bytes(b"hello")
    (tmp_path / "c.tif").write_bytes(bytes(4_000_001))
    paths = [tmp_path / "a.png", huge, tmp_path / "c.tif", photograph(tmp_path / "d.png")]
    dropped(page, *paths)
    assert text(page, "status") == "1 of 4 restored; 3 failed"
    assert text(page, "title") == "d.png"
    for place, line in (
        (0, "is not an image"),
        (1, "has 10,000 × 10,000 pixels, more than 2 megapixels"),
        (2, "the file has more than 4 MB"),
    ):
        page.run("photographs[arguments[0]].button.click()", place)
        assert line in text(page, "message")
        assert not page.run("return byId('message').hidden")
        assert page.run("return byId('viewer').hidden")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(page, tmp_path, scheme):
    page = page(390, 844, scheme=scheme)
    assert page.run(WIDTH) == 390
    source = tmp_path / f"{'a_long_name' * 9}.jpg"
    Image.fromarray(np.zeros((300, 900, 3), np.uint8)).convert("CMYK").save(source)
    dropped(page, source)
    assert page.run(WIDTH) == 390
    assert text(page, "notes") == "CMYK: written as RGB"
    contrasts = page.run("""
      const shade = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((one) => {
          const x = one / 255;
          return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
      };
      const ground = shade(getComputedStyle(document.body).backgroundColor);
      return Array.from(document.querySelectorAll("p, button:enabled, label, h1, h2, li"))
        .filter((one) => one.checkVisibility())
        .map((one) => shade(getComputedStyle(one).color) / ground)
        .map((one) => Math.max(one, 1 / one));
    """)
    assert len(contrasts) > 15
    assert min(contrasts) > 4.5
    targets = page.run(
        "return Array.from(document.querySelectorAll('button, select'))"
        ".filter((one) => one.checkVisibility()).map((one) => one.offsetHeight)"
    )
    assert min(targets) >= 32


@pytest.mark.slow
def test_all_can_be_reached_by_keys(page, tmp_path):
    page = page()
    dropped(page, photograph(tmp_path / "a.png"), photograph(tmp_path / "b.png"))
    reached = []
    page.run("document.activeElement.blur()")
    for _ in range(14):
        page.press("Tab")
        reached.append(
            page.run(
                "const it = document.activeElement; return it.id || it.name || it.textContent"
            )
        )
    assert reached[:8] == [
        "model",
        "strength",
        "tile",
        "trust",
        "choose",
        "choose-folder",
        "save-all",
        "clear",
    ]
    assert [one for one in reached if one.startswith(("a.png", "b.png"))] == [
        "a.pngrestored",
        "b.pngrestored",
    ]
    assert {"zoom", "save", "divider"} <= set(reached)
    page.run("photographs[1].button.focus()")
    page.press("Enter")
    assert text(page, "title") == "b.png"


@pytest.mark.slow
def test_the_trust_map_is_shown_on_the_right_with_its_legend(chromium, tmp_path):
    application, *_ = serving.make(tmp_path, trust=trusting.trust_map())
    with serving.listening(application) as address:
        chromium.open(address)
        chromium.run("settings.elements.trust.click()")
        dropped(chromium, photograph(tmp_path / "a.png", (120, 160, 3)))
        choices = chromium.run("return Array.from(byId('right').options, (one) => one.text)")
        assert choices == ["Restored", "Trust map"]
        assert chromium.run("return byId('legend').hidden")
        restored = picture(chromium, "after")
        chromium.run(
            "byId('right').selectedIndex = 1; byId('right').dispatchEvent(new Event('change'))"
        )
        settled(chromium, 1)
        assert not chromium.run("return byId('legend').hidden")
        assert text(chromium, "right-side") == "Trust map"
        shown, heat = stage(chromium)[0], picture(chromium, "after")
        assert np.abs(heat - restored).max() > 20
        np.testing.assert_array_equal(shown[:, 90:], heat[:, 90:])
        ramp = chromium.run(
            "return getComputedStyle(document.querySelector('.ramp')).background"
        )
        colours = [f"rgb{tuple(maps.palette(len(maps.COLOURS))[i].tolist())}" for i in range(9)]
        assert ", ".join(colours) in ramp


@pytest.mark.slow
def test_it_is_shown_how_much_of_a_photograph_is_restored(chromium, tmp_path):
    gate = threading.Event()
    application, working, _ = serving.make(tmp_path, gate=gate)
    submit = working.submit

    def always_42_percent(job):
        return submit(dataclasses.replace(job, tell=lambda _: job.tell(0.42)))

    working.submit = always_42_percent
    with serving.listening(application) as address:
        chromium.open(address)
        chromium.drop(place_to_drop(chromium), photograph(tmp_path / "a.png"))
        shown = "return document.querySelector('#list .state')?.textContent"
        deadline = time.monotonic() + 60
        while chromium.run(shown) != "restoring… 42 %":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        gate.set()
        settled(chromium, 1)
        assert chromium.run(shown) == "restored"
