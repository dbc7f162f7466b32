"""Where compiled programs are kept, and that it is no matter if they cannot be."""

import os
import subprocess
import sys

import jax

from restore_jax.parallel import compilation

SCRIPT = """
import jax
from restore_jax.parallel import compilation
compilation.use_cache()
print(jax.config.jax_compilation_cache_dir)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: x * 3 + 1)(2))
"""


def run(home):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"HOME": str(home), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_home_that_cannot_be_written_to_is_no_matter(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    done = run(tmp_path / "file")
    assert (done.stdout, done.stderr) == ("None\n7\n", "")
    assert jax.jit(lambda x: x * 3 + 1)(2) == 7


def test_the_users_cache_is_used(tmp_path):
    done = run(tmp_path)
    assert done.stdout == f"{tmp_path}/.cache/restore_jax/xla\n7\n"
    assert done.stderr == ""
    assert list((tmp_path / ".cache/restore_jax/xla").iterdir())


def test_the_cache_keeps_what_was_used_last_within_its_limit(tmp_path):
    for age in range(6):
        path = tmp_path / f"{age}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - 100 * age, 1e9 - 1000 * age))
    (tmp_path / "folder").mkdir()
    compilation.prune(tmp_path, 600)
    assert len(list(tmp_path.iterdir())) == 7
    compilation.prune(tmp_path, 599)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-cache", "1-cache", "folder"]


def test_a_cache_that_is_not_there_is_no_matter(tmp_path):
    compilation.prune(tmp_path / "xla", 1)
    assert not (tmp_path / "xla").exists()
