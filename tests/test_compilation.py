"""Where compiled programs are kept, and that it is no matter if they cannot be."""

import subprocess
import sys

import jax

SCRIPT = """
import jax
from restore_jax import compilation
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
