import concurrent.futures as futures
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image
from starlette.testclient import TestClient

from restore_jax.cli import commands, flags
from restore_jax.errors import UsageError
from restore_jax.inference import restorer
from restore_jax.serve import requests, results, worker
from restore_jax.trust import maps
from tests.support import command_line, serving, shipping, trusting

ADDRESS = "http://127.0.0.1:8000"
pytestmark = pytest.mark.usefixtures("compiled_once")


@contextlib.contextmanager
def client(folder, **options):
    application, working, weights = serving.make(folder, **options)
    with TestClient(application, ADDRESS, raise_server_exceptions=False) as opened:
        opened.worker, opened.weights, opened.files = working, weights, folder / "files"
        yield opened


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with client(tmp_path_factory.mktemp("serve")) as opened:
        yield opened


def pixels(seed=0, size=(40, 50, 3)):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def encoded(array=None, name="PNG", mode="RGB"):
    file = io.BytesIO()
    Image.fromarray(pixels() if array is None else array).convert(mode).save(file, name)
    return file.getvalue()


def twelve_bits():
    file = io.BytesIO()
    levels = np.random.default_rng(0).integers(0, 4000, (2, 40, 50), np.uint16)
    tifffile.imwrite(file, levels, photometric="minisblack")
    return file.getvalue()


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


FILES = {
    "a.png": encoded(),
    "b.jpg": encoded(name="JPEG", mode="CMYK"),
    "c.tif": twelve_bits(),
    "d.gif": encoded(name="GIF", mode="P"),
}


@pytest.mark.parametrize(
    "settings",
    [{}, {"strength": 0.5, "tile": 32, "self_ensemble": "flips"}, {"white": 65535}],
    ids=str,
)
def test_files_and_notes_are_those_of_the_command(served, tmp_path, capsys, settings):
    (tmp_path / "in").mkdir()
    for name, content in FILES.items():
        (tmp_path / "in" / name).write_bytes(content)
    given = [str(tmp_path / "in")]
    model = [str(served.weights)]
    commands.run_restore(
        commands.Flags(input=given, output=str(tmp_path / "out"), workdir=model, **settings)
    )
    printed = capsys.readouterr().err
    for name, content in FILES.items():
        raw = served.post("/restore", params=settings, content=content)
        form = served.post("/restore", params=settings, files={"file": (name, content)})
        expected = (tmp_path / "out" / name).read_bytes()
        assert raw.status_code == form.status_code == 200
        assert raw.content == form.content == expected != content
        notes = json.loads(raw.headers["restore-notes"])
        lines = [line for line in printed.splitlines() if f"/in/{name}: " in line]
        assert [line.split(f"{name}: ", 1)[1] for line in lines] == notes
        assert f'filename="{name}"' in form.headers["content-disposition"]
    assert ("CMYK" in printed) and ("4,095" in printed) == ("white" not in settings)
    assert files_in(served.files) == []


@pytest.mark.parametrize(
    ("query", "content", "status", "line"),
    [
        ("", b"hello", 422, "is not an image of a supported format"),
        ("", b"", 422, "is empty"),
        ("", FILES["a.png"][:300], 422, "is damaged"),
        ("strength=2", FILES["a.png"], 400, "strength: 2.0 must lie in [0, 1]"),
        ("strength=nan", FILES["a.png"], 400, "strength: nan must lie"),
        ("strength=much", FILES["a.png"], 400, "strength=much: not a number"),
        ("tile=8", FILES["a.png"], 400, "tile: 8 is too small"),
        ("tile=100000", FILES["a.png"], 400, "tile=100000: must be at most 4096"),
        ("self_ensemble=some", FILES["a.png"], 400, "not one of none, flips, all8"),
        ("white=70000", FILES["a.png"], 400, "white=70000"),
        ("pages=some", FILES["a.png"], 400, "pages=some"),
        ("model=/etc/passwd", FILES["a.png"], 400, "model=/etc/passwd: not a model here"),
        ("format=png", FILES["a.png"], 400, "format: no such parameter; there are model,"),
        ("", encoded(np.zeros((2000, 1001, 3), np.uint8)), 413, "more than 2 megapixels"),
        ("", bytes(4_000_001), 413, "more than 4 MB"),
    ],
)
def test_a_refusal_is_one_line(served, query, content, status, line):
    for path in ("restore", "photographs"):
        answer = served.post(f"/{path}?{query}", content=content)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/json"
        assert answer.text.count("\n") == 1
        assert line in answer.json()["error"]
        assert str(served.files) not in answer.text
    assert files_in(served.files) == []
    assert served.get("/health").json()["queue"] == 0


def test_other_refusals(served):
    assert served.post("/restore", files={}, data={"a": "b"}).status_code == 422
    form = served.post("/restore", files={"a": (None, "text")})
    assert (form.status_code, form.json()) == (400, {"error": "the form has no file"})
    chunks = served.post("/restore", content=(bytes(1_000_000) for _ in range(9)))
    assert chunks.status_code == 413
    assert served.get("/restore").status_code == 405
    for path in ("/none", "/assets/page.html", "/assets/..%2Fapp.py", "/photographs/a/file"):
        assert served.get(path).status_code == 404
        assert served.get(path).json().keys() == {"error"}
    assert served.post("/zip", data={"addresses": ""}).status_code == 404
    assert files_in(served.files) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "192.168.0.7"}, 200),
        ({"host": "rebound.example:8000"}, 403),
        ({"host": ""}, 403),
        ({"origin": ADDRESS}, 200),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
    ids=str,
)
def test_other_sites_are_refused(served, headers, status):
    answer = served.post("/restore", content=FILES["a.png"], headers=headers)
    assert answer.status_code == status
    assert served.get("/health", headers=headers).status_code == (
        status if "host" in headers else 200
    )


def test_the_page_loads_nothing_from_elsewhere(served):
    page = served.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert 'data-max-megapixels="2"' in page.text
    assert "$" not in page.text
    loaded = re.findall(r'(?:src|href|action)="(/[^"]*)"', page.text)
    texts = [page.text] + [served.get(one).text for one in loaded if "assets" in one]
    assert len(texts) == 4
    assert not any(re.search(r"//\w+[.:]|@import|url\(|<style|style=", one) for one in texts)


def test_a_result_is_shown_saved_and_removed(served):
    sent = {
        "a/b.png": FILES["a.png"],
        "a\\..\\B.png": encoded(pixels(1)),
        "c.tif": FILES["c.tif"],
    }
    found = [
        served.post("/photographs", params={"name": name, "tile": ""}, content=content).json()
        for name, content in sent.items()
    ]
    assert [one["name"] for one in found] == ["a/b.png", "a/B.png", "c.tif"]
    assert [len(one["notes"]) for one in found] == [0, 0, 1]
    expected = [served.post("/restore", content=content).content for content in sent.values()]
    for one, content in zip(found, expected, strict=True):
        assert served.get(f"{one['address']}/file").content == content
    before, after = (
        np.asarray(
            Image.open(io.BytesIO(served.get(f"{found[0]['address']}/{side}.png").content))
        )
        for side in ("before", "after")
    )
    np.testing.assert_array_equal(before, pixels())
    np.testing.assert_array_equal(after, np.asarray(Image.open(io.BytesIO(expected[0]))))
    shown = Image.open(io.BytesIO(served.get(f"{found[2]['address']}/before.png").content))
    levels = tifffile.imread(io.BytesIO(FILES["c.tif"]))[0]
    np.testing.assert_allclose(np.asarray(shown), levels * (255 / 4095), atol=0.51)

    addresses = " ".join(one["address"] for one in found)
    archive = served.post("/zip", data={"addresses": addresses})
    with zipfile.ZipFile(io.BytesIO(archive.content)) as opened:
        assert opened.namelist() == ["a/b.png", "a/B (2).png", "c.tif"]
        assert [opened.read(name) for name in opened.namelist()] == expected
    for one in found:
        assert served.delete(one["address"]).status_code == 204
        assert served.get(f"{one['address']}/file").status_code == 404
    assert served.post("/zip", data={"addresses": addresses}).status_code == 404
    assert files_in(served.files) == []


def test_the_page_gets_the_trust_map_of_a_model_that_has_one(tmp_path, served):
    with client(tmp_path, trust=trusting.trust_map()) as opened:
        found = opened.post("/photographs?trust=true", content=FILES["a.png"]).json()
        assert found["extras"] == [{"title": "Trust map", "picture": "Trust%20map"}]
        shown = opened.get(f"{found['address']}/Trust%20map.png").content
        restored, half_width = restorer.load(opened.weights)(pixels(), trust=True)
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(shown))), maps.heat_map(half_width)
        )
        after = opened.get(f"{found['address']}/file").content
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(after))), restored)
        for query in ("trust=false", "trust=", ""):
            other = opened.post(f"/photographs?{query}", content=FILES["a.png"]).json()
            assert other["extras"] == []
            assert opened.get(f"{other['address']}/file").content == after
        assert opened.post("/photographs?trust=1", content=FILES["a.png"]).json() == {
            "error": "trust=1: not true or false"
        }
    alone = served.post("/restore?trust=true", content=FILES["a.png"])
    assert "trust: no such parameter; there are model," in alone.json()["error"]
    without = served.post("/photographs?trust=true", content=FILES["a.png"]).json()
    assert without["extras"] == []
    assert without["notes"] == ["this model has no trust map"]
    served.delete(without["address"])


def test_progress_can_be_asked_for_while_a_photograph_waits_and_is_restored(tmp_path):
    gate = threading.Event()
    with client(tmp_path, gate=gate) as opened, futures.ThreadPoolExecutor() as threads:
        sent = threads.submit(
            opened.post, "/restore", params={"progress": "mine"}, content=FILES["a.png"]
        )
        wait_until(lambda: opened.get("/progress/mine").status_code == 200)
        assert opened.get("/progress/mine").json() == {"share": 0.0}
        again = opened.post("/restore?progress=mine", content=FILES["a.png"])
        assert again.status_code == 400
        assert "another request has this token" in again.text
        gate.set()
        assert sent.result().status_code == 200
        for token in ("mine", "other"):
            assert opened.get(f"/progress/{token}").status_code == 404
        source = tmp_path / "source"
        source.write_bytes(encoded(pixels(size=(2000, 40, 3))))
        shares = []
        settings = requests.Settings(tile=32)
        job = worker.Job(source, tmp_path / "target", settings, shares.append)
        opened.worker.submit(job).result()
        assert shares[:2] == [0.0, 0.0]
        assert shares == sorted(shares)
        assert 0.3 < max(shares) <= 1.0


def test_a_result_that_makes_room_while_it_is_read_is_not_an_error_of_the_server(
    served, monkeypatch
):
    def removed_first(read):
        def remove_and_read(self, given):
            for one in given if isinstance(given, list) else [self]:
                shutil.rmtree(one.folder)
            return read(self, given)

        return remove_and_read

    monkeypatch.setattr(results.Results, "write_zip", removed_first(results.Results.write_zip))
    monkeypatch.setattr(results.Result, "preview", removed_first(results.Result.preview))
    for path in ("zip", "before"):
        found = served.post("/photographs", content=FILES["a.png"]).json()["address"]
        answer = (
            served.post("/zip", data={"addresses": found})
            if path == "zip"
            else served.get(f"{found}/{path}.png")
        )
        assert answer.status_code == 404
        assert "no longer kept" in answer.text
        assert served.get(f"{found}/file").status_code == 404
        served.delete(found)
    assert files_in(served.files) == []


def test_extra_pictures_of_a_result_are_offered(tmp_path):
    with client(tmp_path) as opened:
        kept, restore = tmp_path / "map.png", opened.worker._restore
        kept.write_bytes(FILES["a.png"])

        def restore_with_map(*given):
            return dataclasses.replace(restore(*given), extras={"Trust map": kept})

        opened.worker._restore = restore_with_map
        found = opened.post("/photographs", content=FILES["a.png"]).json()
        assert found["extras"] == [{"title": "Trust map", "picture": "Trust%20map"}]
        picture = opened.get(f"{found['address']}/Trust%20map.png")
        assert picture.content == FILES["a.png"]
        assert opened.get(f"{found['address']}/other.png").status_code == 404


def test_the_oldest_results_make_room(tmp_path):
    kept = results.Results(tmp_path, most=3, most_bytes=250)

    def keep(size):
        target = kept.new_folder() / "restored"
        target.write_bytes(bytes(size))
        return kept.keep(results.Result("a", worker.Restored(target, target, "PNG"), None))

    identities = [keep(size) for size in (10, 10, 10, 10)]
    assert [kept.get(one) is not None for one in identities] == [False, True, True, True]
    identities.append(keep(400))
    assert [kept.get(one) is not None for one in identities] == [False] * 4 + [True]
    assert len(list(tmp_path.iterdir())) == 1


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError


def test_a_full_queue_asks_to_come_again(tmp_path):
    gate = threading.Event()
    with client(tmp_path, max_waiting=2, gate=gate) as opened:
        answers = []

        def post():
            answers.append(opened.post("/restore", content=FILES["a.png"]).status_code)

        threads = [threading.Thread(target=post) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: opened.get("/health").json()["queue"] == 2)
        full = opened.post("/restore", content=FILES["a.png"])
        assert (full.status_code, full.headers["retry-after"]) == (503, "2")
        assert full.json() == {"error": "2 photographs wait already; try again"}
        gate.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        assert opened.post("/restore", content=FILES["a.png"]).status_code == 200


def test_what_takes_too_long_is_abandoned(tmp_path):
    gate = threading.Event()
    with client(tmp_path, seconds=0.2, gate=gate) as opened:
        late = opened.post("/restore", content=FILES["a.png"])
        assert (late.status_code, late.json()) == (504, {"error": "not done within 0.2 s"})
        wait_until(lambda: not list(opened.files.iterdir()))
        assert opened.get("/health").json()["queue"] == 0


def test_stopping_abandons_the_photographs(tmp_path):
    with client(tmp_path, gate=threading.Event()) as opened:
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(opened.post("/restore", content=FILES["a.png"]))
        )
        thread.start()
        wait_until(lambda: opened.get("/health").json()["queue"] == 1)
        opened.worker.stop()
        thread.join()
        assert answers[0].status_code == 503
        assert answers[0].json() == {"error": "the server is stopping"}
        health = opened.get("/health")
        assert (health.status_code, health.json()["ok"]) == (503, False)


def test_health(served):
    found = served.get("/health").json()
    assert found["ok"]
    assert found["model"] == str(served.weights)
    assert (found["queue"], found["max_queue"]) == (0, 8)
    assert (found["max_megapixels"], found["max_megabytes"]) == (2, 4)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("C:\\scans\\a 1.png", "C_/scans/a 1.png"),
        ('/b"\r\n.tif', "b___.tif"),
        ("Прибор é/ü.png", "Прибор é/ü.png"),
        ("..", "photograph"),
        ("", "photograph"),
    ],
)
def test_names_stay_below_their_folder(name, safe):
    assert requests.safe_name(name) == safe


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"port": 99999}, "--port=99999: must lie between 0 and 65535"),
        ({"host": "192.0.2.1"}, "--host=192.0.2.1 "),
        ({"max_queue": 0}, "--max_queue=0: must be at least 1"),
        ({"max_megapixels": 0}, "--max_megapixels=0: must be at least 1"),
        ({"port": 0, "workdir": ["nowhere"]}, "nowhere"),
    ],
    ids=str,
)
def test_wrong_flags_are_one_line(given, line):
    with pytest.raises(UsageError, match=re.escape(line)) as refused:
        commands.run_serve(commands.Flags(**given))
    assert "\n" not in str(refused.value)


def test_launch_takes_the_same_flags():
    with command_line.parsed("--mode=serve", "--port=0", "--workdir=general"):
        given = commands.Flags(**flags.given())
    assert (given.port, given.workdir) == (0, ["general"])


def test_without_its_packages_it_says_how_to_install_them(monkeypatch):
    for name in [one for one in sys.modules if one.startswith("restore_jax.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("restore_jax.serve.app")
    monkeypatch.delattr("restore_jax.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(UsageError, match=r"^starlette: not installed.*restore_jax\[serve\]'$"):
        commands.run("serve", commands.Flags())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(tmp_path, number):
    weights = shipping.write(tmp_path / "tiny.safetensors")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "restore_jax", "serve", "-m", weights, "--port=0"]
    with subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        address = process.stdout.readline().split()[0]
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"{address}/photographs", FILES["a.png"], timeout=60
        ) as answer:
            assert json.load(answer)["name"] == "photograph"
        assert len(files_in(temporary)) == 2
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert list(temporary.iterdir()) == []
