"""--mode=calibrate, as a user types it: photographs in, a law and a page out."""

import json
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from configs import general
from data.rendered import sample
from restore_jax.cli import commands
from restore_jax.degradation.definition import law_from_config
from restore_jax.errors import UsageError


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(image, np.uint8)).save(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two pairs, blurred by 2.5 px along x and 1.2 px along y, under noise of 6 levels."""
    root = tmp_path_factory.mktemp("pairs") / "screws <1>"
    for number, category in enumerate(("screw", "tile")):
        clean, _ = sample.render(category, "good", number, 160)
        blurred = ndimage.gaussian_filter(clean.astype(float), (1.2, 2.5, 0), mode="mirror")
        noise = np.random.default_rng(number).standard_normal(clean.shape)
        save(root / "clean" / "a" / f"{number}.png", clean)
        save(
            root / "degraded" / "a" / f"{number}.png",
            np.clip(np.round(blurred + 6 * noise), 0, 255),
        )
    return root


def calibrate(root, output, data="pairs", **flags):
    config = general.get_config(data)
    config.data.root = str(root)
    commands.run_calibrate(commands.Flags(config=config, output=str(output), **flags), None)


def test_writes_a_law_and_its_page(pairs, tmp_path, capsys):
    output = tmp_path / "law.json"
    calibrate(pairs, output)
    content = json.loads(output.read_text())
    assert (content["format"], content["version"], content["images"]) == (
        "restore_jax law",
        1,
        2,
    )
    law = law_from_config({"file": str(output)})
    assert law.blur == ("gaussian",)
    assert law.sigma_x == pytest.approx((2.5, 2.5), rel=0.05)
    assert law.sigma_y == pytest.approx((1.2, 1.2), rel=0.05)
    assert law.noise_sigma == pytest.approx((6.0, 6.0), rel=0.03)
    assert law.gain == (1.0, 1.0)
    assert law.quantise == "round"
    low, high = content["intervals"]["sigma_x"]
    assert low < law.sigma_x[0] < high
    page = (tmp_path / "law.html").read_text()
    assert "Real and simulated" in page
    assert "<1>" not in page
    assert "sigma_x" in capsys.readouterr().out
    with pytest.raises(UsageError, match="exists; take another name, or give --overwrite"):
        calibrate(pairs, output)


def test_bad_photographs_alone_tell_noise_and_say_what_they_do_not(pairs, tmp_path):
    output = tmp_path / "law.json"
    calibrate(pairs / "degraded", output, "clean")
    content = json.loads(output.read_text())
    assert content["law"]["gain"] is None
    assert "gain" in content["unknown"]
    assert content["law"]["noise_sigma"] == pytest.approx([6.0, 6.0], rel=0.1)
    assert content["law"]["noise"] == ["independent"]
    assert law_from_config({"file": str(output)}).gain == (1.0, 1.0)
    assert (tmp_path / "law.html").exists()


def test_photographs_of_a_monochrome_camera_share_their_noise(tmp_path):
    for number in range(2):
        clean, _ = sample.render("screw", "good", number, 160)
        noise = 9 * np.random.default_rng(number).standard_normal((160, 160, 1))
        save(tmp_path / f"{number}.png", np.clip(np.round(clean + noise), 0, 255))
    calibrate(tmp_path, tmp_path / "law.json", "clean")
    law = law_from_config({"file": str(tmp_path / "law.json")})
    assert law.noise == ("grey",)
    assert law.noise_sigma == pytest.approx((9.0, 9.0), rel=0.1)


def emptied(root):
    shutil.rmtree(root / "degraded")


def made_lone(root):
    (root / "clean" / "a" / "1.png").unlink()


def cut(root):
    save(root / "clean" / "a" / "0.png", np.zeros((160, 150, 3)))


def made_flat(root):
    for name in ("clean", "degraded"):
        save(root / name / "a" / "0.png", np.full((160, 160, 3), 90))


def made_small(root):
    for name in ("clean", "degraded"):
        save(root / name / "a" / "0.png", np.zeros((40, 160, 3)))


def damaged(root):
    (root / "degraded" / "a" / "0.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (emptied, "no pairs; there must be folders degraded and clean"),
        (made_lone, "a/1 has no partner"),
        (cut, "sizes differ: 160x160 and 150x160 px"),
        (made_flat, "a/0: has the same level everywhere"),
        (made_small, "160x40 px is too small"),
        (damaged, "0.png: "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_pairs_are_told_in_one_line(pairs, tmp_path, spoil, problem):
    root = tmp_path / "pairs"
    shutil.copytree(pairs, root)
    spoil(root)
    with pytest.raises(UsageError, match=problem) as told:
        calibrate(root, tmp_path / "law.json")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "law.json").exists()


@pytest.mark.parametrize(
    ("data", "root", "output", "problem"),
    [
        ("sample", ".", "law.json", "takes pairs, or clean"),
        ("pairs", "", "law.json", "config.data.root: is empty"),
        ("pairs", "nowhere", "law.json", "there is no such folder"),
        ("clean", ".", "law.json", "there are no images"),
        ("pairs", ".", "law.txt", "ends in .json"),
    ],
)
def test_wrong_usage_is_told_in_one_line(tmp_path, monkeypatch, data, root, output, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=problem):
        calibrate(root, output, data)


def test_a_pair_may_have_its_names_in_two_unicode_forms(tmp_path):
    for part, form in (("clean", "NFC"), ("degraded", "NFD")):
        save(tmp_path / part / (unicodedata.normalize(form, "br\u00fcchig") + ".png"), [[0]])
    with pytest.raises(UsageError, match="1x1 px is too small"):  # and not: has no partner
        calibrate(tmp_path, tmp_path / "law.json")


def test_12_bits_of_all_photographs_are_scaled_alike(tmp_path, capsys):
    for number, highest in enumerate((900, 4000)):
        path = tmp_path / "set" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), highest, np.uint16)).save(path)
    with pytest.raises(UsageError, match="8x8 px is too small"):
        calibrate(tmp_path / "set", tmp_path / "law.json", "clean")
    assert "4,095 (12 bits) is taken for white" in capsys.readouterr().out
