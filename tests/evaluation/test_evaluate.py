import csv
import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from restore_jax import batches, models
from restore_jax.checkpoints import checkpoint
from restore_jax.config import workdir
from restore_jax.errors import RunError, UsageError
from restore_jax.evaluation import evaluate, results
from restore_jax.learner.state import abstract_state, make_learner
from restore_jax.metrics import defects, detectability, kla
from restore_jax.parallel import device_mesh
from restore_jax.train import loop
from tests.support import checkpoints, detection, tiny
from tests.support.networks import apply

# Of 32 px, the least that a detector takes.
data = functools.partial(tiny.data, image_size=32, good=6)

REQUIRED = {
    "count", "psnr", "ssim", "mae", "input_psnr", "input_ssim", "mask_count", "defect_psnr",
    "background_psnr", "defect_ssim", "input_defect_psnr", "defect_contrast",
}  # fmt: skip
PRESERVATION = {
    "input_defect_contrast", "regions", "erased_regions", "input_erased_regions",
    "erasure_rate", "input_erasure_rate", "error_ratio", "masked_frame_psnr",
    "masked_frame_ssim", "hallucination", "good_count",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compiled_once):
    folder = tmp_path_factory.mktemp("run") / "trained"
    loop.train(tiny.config(), folder, data, jax.devices()[:1])
    return folder


def run(folder, which="best", override=None, devices=1, made=data, **options):
    return evaluate.evaluate_checkpoint(
        folder, which, made, override, jax.devices()[:devices], **options
    )


def changed(**fields):
    config = tiny.config()
    config.eval.update(fields)
    return config


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_files_have_the_promised_content(trained):
    summary, where = run(trained, "latest")
    assert where == trained / "evaluation" / "sample-latest"
    assert {path.name for path in where.iterdir()} == {
        "metrics.json", "images.csv", "good.csv", "triplets.png", "report.html",
    }  # fmt: skip
    stored = json.loads((where / "metrics.json").read_text())
    assert stored == summary
    assert stored["checkpoint"] == {"step": 6, "epoch": 2, "which": "latest"}
    assert stored["data"] == {"name": "tiny", "split": "val", "count": 6, "image_size": 64}
    assert stored.keys() == {
        "checkpoint", "data", "micro", "macro", "categories", "detectability", "settings",
        "oracle_mask", "trained_on",
    }  # fmt: skip
    assert stored["trained_on"] == {"name": "sample", "split": "defects"}
    assert list(stored["categories"]) == ["a", "b"]
    for means in (stored["micro"], stored["macro"], *stored["categories"].values()):
        assert means.keys() == REQUIRED | PRESERVATION
    micro = stored["micro"]
    assert (micro["count"], micro["mask_count"], micro["good_count"]) == (6, 6, 6)
    rows = rows_of(where / "images.csv")
    assert [row["id"] for row in rows] == sorted(tiny.images(6)["id"])
    for figure in ("psnr", "defect_contrast", "error_ratio"):
        mean = np.mean([float(row[figure]) for row in rows])
        assert micro[figure] == pytest.approx(mean, rel=1e-5)
    good = rows_of(where / "good.csv")
    assert {row["defect_type"] for row in good} == {"good"}
    mean = np.mean([float(row["hallucination"]) for row in good])
    assert micro["hallucination"] == pytest.approx(mean, rel=1e-5)


def test_figures_are_those_of_the_validation_in_training(trained):
    summary, _ = run(trained, "latest")
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("psnr", "ssim", "input_psnr", "defect_psnr", "defect_contrast"):
        assert summary["micro"][name] == pytest.approx(last[name], rel=1e-6)


def test_an_image_that_changes_after_it_was_measured_is_not_shown(trained, capsys):
    passes = []

    def made(config):
        found = data(config)

        def eval_batches(split):
            passes.extend([split] * (split == "val"))
            for batch in found.eval_batches(split):
                again = {"degraded": batch["degraded"] * 0.9} if len(passes) > 1 else {}
                yield batch | again

        return dataclasses.replace(found, eval_batches=eval_batches)

    _, where = run(trained, "latest", made=made)
    assert len(passes) == 2
    assert (
        "not shown in the report: it changed after it was measured" in capsys.readouterr().out
    )
    assert "<article" not in (where / "report.html").read_text()


def test_preservation_and_detectability_are_of_the_restored_images(trained):
    summary, _ = run(trained)
    settings = tiny.config()
    made = data(settings)
    model = models.from_config(settings)
    with checkpoint.open_manager(trained, read_only=True) as manager:
        state = manager.restore(manager.best_step())["state"]
    erased, tests = 0, {"a": [], "b": []}
    for split in ("val", "good"):
        for batch in made.eval_batches(split):
            restored = apply(model, {"params": state["params"]}, batch["degraded"])
            restored = np.clip(restored, 0, 1)
            for i in np.flatnonzero(batch["valid"]):
                clean, mask = batch["clean"][i], batch["mask"][i]
                erased += defects.erasure(restored[i], clean, mask)[0]
                tests[str(batch["category"][i])].append(
                    {
                        "clean": clean,
                        "degraded": batch["degraded"][i],
                        "restored": restored[i],
                        "mask": mask,
                        "has_mask": True,
                        "is_good": split == "good",
                    }
                )
    reference = tiny.images(6, 3, 32, "good", "train")
    photographs = {c: reference["clean"][reference["category"] == c] for c in "ab"}
    expected = detection.measure(photographs, tests)
    assert summary["micro"]["erased_regions"] == erased
    assert summary["micro"]["regions"] == 6
    for version in detectability.VERSIONS:
        assert summary["detectability"]["macro"][version] == pytest.approx(
            expected["macro"][version], abs=2e-3
        )
    assert expected["macro"]["clean"]["pixel_auroc"] > 0.8


def flatten(tree, path=""):
    if isinstance(tree, dict):
        return {k: v for n, one in tree.items() for k, v in flatten(one, f"{path}/{n}").items()}
    return {path: tree}


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (3, 1), (16, 4)])
def test_batch_and_devices_do_not_change_the_figures(trained, batch_size, devices):
    expected = flatten(run(trained)[0])
    found = flatten(run(trained, override=changed(batch_size=batch_size), devices=devices)[0])
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, float):
            assert found[path] == pytest.approx(value, rel=1e-5, abs=1e-7), path
        else:
            assert found[path] == value, path


def test_a_given_configuration_decides_on_data_and_evaluation_alone(trained):
    override = changed(split="all", pictures=0)
    override.model.widths = (32, 64)
    made = functools.partial(tiny.data, image_size=32)
    summary, where = run(trained, override=override, made=made)
    assert where.name == "sample_all-best"
    assert summary["data"] == {"name": "tiny", "split": "all", "count": 16, "image_size": 64}
    assert summary["detectability"] is None
    assert {path.name for path in where.iterdir()} == {
        "metrics.json", "images.csv", "report.html",
    }  # fmt: skip


def test_an_evaluation_replaces_all_of_an_earlier_one(trained):
    _, where = run(trained, "6")
    run(trained, "6", changed(pictures=0), made=functools.partial(tiny.data, image_size=32))
    assert {path.name for path in where.iterdir()} == {
        "metrics.json", "images.csv", "report.html",
    }  # fmt: skip


def test_what_was_evaluated_with_other_settings_is_kept(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "run")
    _, where = run(folder)
    first = (where / "metrics.json").read_bytes()
    run(folder, override=changed(protocol="kla"))
    (kept,) = where.parent.glob(f"{where.name}-????????")
    assert (kept / "metrics.json").read_bytes() == first
    assert (
        f"was evaluated with other settings; it is kept as {kept.name}"
        in capsys.readouterr().out
    )
    assert "kla_psnr" in (where / "images.csv").read_text()
    run(folder)  # as at first, and both once only
    assert (where / "metrics.json").read_bytes() == first
    assert len(list(where.parent.glob(f"{where.name}*"))) == 3


def test_no_tree_of_another_checkpoint_stays(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    _, where = run(folder, write_tree=True)
    run(folder)
    assert (where / "tree" / "clean").is_dir()
    summary = json.loads((where / "metrics.json").read_text())
    summary["checkpoint"]["step"] += 1
    (where / "metrics.json").write_text(json.dumps(summary))
    run(folder)
    assert not (where / "tree").exists()


def test_the_protocol_of_the_kla_set_adds_its_figures(trained):
    summary, where = run(trained, override=changed(protocol="kla"))
    rows = rows_of(where / "images.csv")
    assert set(kla.KLA_FIGURES) < rows[0].keys()
    groups = [[float(r["kla_psnr"]) for r in rows if r["category"] == c] for c in "ab"]
    assert summary["macro"]["kla_psnr"] == pytest.approx(np.mean([np.mean(g) for g in groups]))
    assert summary["categories"]["a"]["kla_psnr"] == pytest.approx(np.mean(groups[0]))
    # Far above the SSIM of all other figures, by its (1 + SSIM) / 2 alone.
    assert summary["micro"]["kla_ssim"] > summary["micro"]["ssim"]
    assert "official protocol" in (where / "report.html").read_text()
    line = f"PSNR {summary['macro']['kla_psnr']:.2f}, SSIM {summary['macro']['kla_ssim']:.4f}, "
    assert line in results.format_report(summary, where)
    assert "KLA" not in results.format_report(*run(trained))


def test_results_are_used_again_only_for_the_same_question(trained):
    config = workdir.read_config(trained)
    summary, where = run(trained)
    assert results.read_stored(trained, config, "best") == (summary, where)
    assert len(results.read_rows(where / "images.csv")) == 6
    config.eval.batch_size = 2
    config.data.cache_dir = "elsewhere"
    assert results.read_stored(trained, config, "best") is not None
    config.data.root = "elsewhere"
    assert results.read_stored(trained, config, "best") is None
    config.data.root = ""
    assert results.read_stored(trained, config, "best") is not None
    config.data.degradation.preset = "mild"
    assert results.read_stored(trained, config, "best") is None
    assert results.read_stored(trained, changed(protocol="kla"), "best") is None
    assert results.read_stored(trained, workdir.read_config(trained), "3") is None


@pytest.mark.parametrize("content", ['{"checkpoint"', "[]", '{"checkpoint": {"step": 6}}'])
def test_results_that_cannot_be_read_are_made_again(trained, content):
    _, where = run(trained, "latest")
    (where / "metrics.json").write_text(content)
    assert results.read_stored(trained, workdir.read_config(trained), "latest") is None


def test_a_model_that_was_trained_on_the_images_is_told(trained):
    config = tiny.config()
    config.data.split = "good"

    def sample(settings):
        return dataclasses.replace(data(settings), name="sample")

    for override, told in (
        (tiny.config(), False),
        (config, True),
        (changed(split="all"), True),
    ):
        summary, where = run(trained, override=override, made=sample)
        for text in (
            results.format_report(summary, where),
            (where / "report.html").read_text(),
        ):
            assert ("may do worse on others" in text) == told
        # The data are called otherwise than those of the training.
        assert "may do worse" not in results.format_report(*run(trained, override=override))


def test_rows_come_back_as_they_were_written(trained):
    _, where = run(trained)
    for row in results.read_rows(where / "images.csv"):
        assert type(row["psnr"]) is float
        assert np.isnan(row["hallucination"])
        assert row["defect_type"] == "scratch"


def test_wrong_requests_name_the_flag(trained, tmp_path):
    with pytest.raises(UsageError, match=r"--checkpoint=7: not in .*there are best"):
        run(trained, "7")
    with pytest.raises(UsageError, match="no run in it"):
        run(tmp_path)
    with pytest.raises(UsageError, match=r"config\.eval\.split: 'test' is not one of"):
        run(trained, override=changed(split="test"))
    with pytest.raises(UsageError, match=r"config\.eval\.protocol: 'x' is not one of standard"):
        run(trained, override=changed(protocol="x"))
    workdir.claim(tmp_path / "new", tiny.config())
    with pytest.raises(UsageError, match="no checkpoint in it yet; train it first"):
        run(tmp_path / "new")


def awkward(settings):
    """A category of one image, unknown and empty masks, an image that is its clean one."""
    made = data(settings, held_out=4)
    (pairs,) = made.eval_batches("val")
    pairs["category"] = np.array(["a", "a", "a", "single"])
    pairs["has_mask"][:] = [True, True, False, True]
    pairs["mask"][1:3] = 0
    for name in ("degraded", "clean", "mask"):
        pairs[name] = pairs[name].copy()
    pairs["degraded"][3] = pairs["clean"][3] = 0.5

    def eval_batches(split):
        return iter([pairs]) if split == "val" else made.eval_batches(split)

    return batches.Data(made.name, made.counts, made.train_images, None, eval_batches)


def test_awkward_images_give_null_and_never_nan(tmp_path):
    folder, config = tmp_path / "run", tiny.config(epochs=1)
    loop.train(config, folder, data, jax.devices()[:1])
    # Grey everywhere, so that the grey image is restored to its clean self.
    _make_output_constant(folder, config, 0.5)
    summary, where = run(folder, "latest", made=awkward)
    for name in ("metrics.json", "images.csv", "good.csv", "report.html"):
        text = (where / name).read_text()
        assert "NaN" not in text
        assert "Infinity" not in text
        assert "nan" not in text or name == "report.html"
    single = summary["categories"]["single"]
    assert (single["count"], single["psnr"], single["defect_contrast"]) == (1, 100.0, None)
    assert summary["categories"]["a"]["mask_count"] == 1
    assert "single" not in summary["detectability"]["categories"]
    cells = rows_of(where / "images.csv")
    assert [bool(cell["defect_psnr"]) for cell in cells] == [True, False, False, True]


def _make_output_constant(folder, config, level):
    sharding = device_mesh.replicated(device_mesh.make_mesh(jax.devices()[:1]))
    template = abstract_state(make_learner(config), sharding)
    with checkpoint.open_manager(folder) as manager:
        state, saved = checkpoints.restore(manager, manager.latest_step(), template)
        params = dict(state.params)
        params["output"] = {
            "kernel": np.zeros_like(params["output"]["kernel"]),
            "bias": np.full_like(params["output"]["bias"], level),
        }
        state = state.replace(step=state.step + 1, params=params)
        checkpoint.save(manager, state, saved)


def test_a_restoration_that_is_not_finite_is_refused_by_name(trained):
    def spoilt(settings):
        made = data(settings)

        def eval_batches(split):
            for batch in made.eval_batches(split):
                if split == "val":
                    batch["degraded"][1] = np.nan
                yield batch

        return batches.Data(made.name, made.counts, made.train_images, None, eval_batches)

    with pytest.raises(RunError, match=r"image b/test/scratch/001: psnr is nan"):
        run(trained, "3" if not checkpoint.exists(trained, 6) else "6", made=spoilt)


def test_a_checkpoint_removed_while_it_is_read_is_looked_for_again(trained, monkeypatch):
    summary, _ = run(trained, "latest")
    read, calls = checkpoint.read, []

    def gone_once(manager, step, template):
        calls.append(step)
        if len(calls) == 1:
            raise FileNotFoundError("removed")
        return read(manager, step, template)

    monkeypatch.setattr(checkpoint, "read", gone_once)
    again, _ = run(trained, "latest")
    assert len(calls) == 2
    assert again["micro"] == pytest.approx(summary["micro"])

    def always_gone(*_):
        raise FileNotFoundError("removed")

    monkeypatch.setattr(checkpoint, "read", always_gone)
    with pytest.raises(RunError, match="removes checkpoints faster than they can be read"):
        run(trained, "latest")


def test_the_table_shows_every_category_and_both_means(trained):
    summary, where = run(trained)
    text = results.format_report(summary, where)
    lines = [line.split() for line in text.splitlines()]
    starts = [line[0] for line in lines if line]
    for name in ("a", "b", "mean", "checkpoint", "report", "picture", "AUPRO"):
        assert name in starts
    row = next(line for line in lines if line and line[0] == "a")
    assert float(row[3]) == pytest.approx(summary["categories"]["a"]["psnr"], abs=0.005)
    assert str(trained / "checkpoints") in text


def test_the_report_shows_the_best_and_the_worst_image(trained):
    _, where = run(trained)
    page = (where / "report.html").read_text().replace("<wbr>", "")
    for category in "ab":
        members = [row for row in rows_of(where / "images.csv") if row["category"] == category]
        members.sort(key=lambda row: float(row["psnr"]))
        for row in (members[0], members[-1]):
            assert row["id"] in page


def test_the_tree_has_the_layout_of_mvtec_ad(trained):
    summary, where = run(trained, write_tree=True)
    restored = None
    for version in ("clean", "degraded", "restored"):
        tree = where / "tree" / version
        assert {path.relative_to(tree).as_posix() for path in tree.rglob("*.png")} == {
            *(f"{i}.png" for i in tiny.images(6)["id"]),
            *(f"{i}.png" for i in tiny.images(6, kind="good")["id"]),
            *(f"{i}.png" for i in tiny.images(6, kind="good", section="train")["id"]),
            *(
                f"{i.replace('/test/', '/ground_truth/')}_mask.png"
                for i in tiny.images(6)["id"]
            ),
        }
        pixels = np.asarray(Image.open(tree / "a/test/scratch/000.png")) / 255
        clean = tiny.images(6, 1, 32)["clean"][0]
        error = np.mean((pixels - clean) ** 2)
        if version == "clean":
            assert error < 1e-5
        else:
            key = "psnr" if version == "restored" else "input_psnr"
            row = rows_of(where / "images.csv")[0]
            assert -10 * np.log10(error) == pytest.approx(float(row[key]), abs=0.05)
        mask = np.asarray(Image.open(tree / "a/ground_truth/scratch/000_mask.png"))
        np.testing.assert_array_equal(mask, tiny.images(6, 1, 32)["mask"][0, ..., 0] * 255)
        reference = (tree / "b/train/good/001.png").read_bytes()
        assert restored in (None, reference)
        restored = reference
    assert summary["micro"]["count"] == 6
    assert not (where / "tree.partial").exists()


def test_the_tree_leaves_out_images_whose_mask_is_not_known(trained, capsys):
    def unknown(settings):
        made = data(settings)

        def eval_batches(split):
            for batch in made.eval_batches(split):
                yield batch | {"has_mask": batch["has_mask"] & (batch["defect_type"] == "good")}

        return batches.Data(made.name, made.counts, made.train_images, None, eval_batches)

    _, where = run(trained, write_tree=True, made=unknown)
    assert not list((where / "tree" / "restored").rglob("scratch"))
    assert "6 images left out: their masks are not known" in capsys.readouterr().out


def test_photographs_of_one_name_are_told_apart_in_the_tree(trained):
    """train/good and test/good both have a 000, and the references are not tested."""
    made = functools.partial(tiny.data, image_size=32, good=6)

    def with_good(settings):
        found = made(settings)

        def eval_batches(split):
            yield from found.eval_batches(split)
            if split == "val":
                for kind, section in ((3, "train"), (4, "extra")):
                    pairs = tiny.images(4, kind, 32, "good", section)
                    yield tiny.batch_rows(pairs, range(4), 4)

        return dataclasses.replace(found, eval_batches=eval_batches)

    _, where = run(trained, write_tree=True, made=with_good)
    names = {path.name for path in (where / "tree/restored/a/test/good").iterdir()}
    assert names == {"000.png", "002.png", "004.png", "extra_000.png", "extra_002.png"}


def test_the_true_mask_is_shown_only_on_demand_and_said_so(trained, tmp_path):
    config = tiny.config(epochs=1)
    config.model = {"name": "cbam_unet", "widths": (2, 4), "skips": (True,)}
    loop.train(config, tmp_path / "run", data, jax.devices()[:1])
    plain, where = run(tmp_path / "run")
    config.eval.oracle_mask = True
    given, elsewhere = run(tmp_path / "run", override=config)
    assert where.name == "sample-best"
    assert elsewhere.name == "sample_oracle-best"
    assert (plain["oracle_mask"], given["oracle_mask"]) == (False, True)
    assert plain["micro"]["psnr"] != given["micro"]["psnr"]
    assert plain["micro"]["input_psnr"] == given["micro"]["input_psnr"]
    assert "with oracle mask" in results.format_report(given, elsewhere)
    assert "With oracle mask" in (elsewhere / "report.html").read_text()
    for text in (results.format_report(plain, where), (where / "report.html").read_text()):
        assert "ith oracle mask" not in text
    with pytest.raises(
        UsageError, match=r"config\.eval\.oracle_mask: unet_small does not take a mask"
    ):
        run(trained, override=changed(oracle_mask=True))


def test_what_stands_in_for_clean_photographs_is_named(trained):
    def to_the_mean(settings):
        return dataclasses.replace(data(settings), target="mean of the other shots")

    summary, where = run(trained, made=to_the_mean)
    assert summary["data"]["target"] == "mean of the other shots"
    for text in (results.format_report(summary, where), (where / "report.html").read_text()):
        assert "the figures are to the mean of the other shots of each part" in text
    _, where = run(trained)
    assert "No clean photographs" not in (where / "report.html").read_text()


def test_images_left_as_they_are_are_told(trained, capsys):
    def undegraded(settings):
        made = data(settings)

        def eval_batches(split):
            return ({**one, "degraded": one["clean"]} for one in made.eval_batches(split))

        return dataclasses.replace(made, eval_batches=eval_batches)

    summary, _ = run(trained, made=undegraded)
    count = summary["data"]["count"]
    assert summary["micro"]["input_psnr"] == pytest.approx(100)
    told = f"Images that are not degraded (input PSNR 100 dB): {count} of {count}."
    assert told in capsys.readouterr().out
    run(trained)
    assert "not degraded" not in capsys.readouterr().out


def test_a_split_without_images_is_refused(trained):
    def nothing(settings):
        return batches.Data("none", {"train": 0, "val": 0}, 0, None, lambda split: iter(()))

    with pytest.raises(UsageError, match=r"config\.eval\.split: 'val' of none has no images"):
        run(trained, made=nothing)
