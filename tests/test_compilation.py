import os

from restore_jax import compilation


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
