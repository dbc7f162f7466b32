import collections
import os

import pytest

from restore_jax.errors import UsageError
from restore_jax.image_io import image_files, image_paths
from restore_jax.image_io.image_files import ImageFileError


class TestFind:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in (
            "a.png", "b.JPG", "sub/a.png", "sub/deep/c.tif", "sub/note.txt", ".hidden.png",
            ".cache/d.png", "__MACOSX/e.png", "odd.dat",
        ):  # fmt: skip
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(b"")
        return tmp_path / "in"

    def names(self, *args, **options):
        return [relative.as_posix() for _, relative in image_paths.find(*args, **options)]

    def test_a_folder_with_all_below_it(self, folder):
        found = image_paths.find([folder])
        names = ["a.png", "b.JPG", "sub/a.png", "sub/deep/c.tif"]
        assert [relative.as_posix() for _, relative in found] == names
        assert [path for path, _ in found] == [folder / name for name in names]

    def test_files_are_taken_whatever_their_name(self, folder):
        assert self.names([folder / "odd.dat", folder / ".hidden.png"]) == [
            ".hidden.png",
            "odd.dat",
        ]

    def test_patterns(self, folder):
        assert self.names([f"{folder}/*.png"]) == ["a.png"]
        assert self.names([f"{folder}/**/*.png"]) == ["a.png", "sub/a.png"]
        assert self.names([f"{folder}/s?b/*"]) == ["sub/a.png", "sub/deep/c.tif"]
        assert self.names([f"{folder}/**"]) == self.names([folder])

    def test_a_relative_pattern(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        assert self.names(["*.png"]) == ["a.png"]
        assert self.names(["."]) == self.names([folder])

    def test_a_name_with_the_signs_of_a_pattern(self, folder):
        (folder / "x[1].png").write_bytes(b"")
        assert self.names([f"{folder}/x[1].png"]) == ["x[1].png"]

    @pytest.mark.parametrize("name", ["scans [2024]", "[a]", "no [b", "x]", "a?", "a*b"])
    def test_a_folder_with_the_signs_of_a_pattern_stands_for_itself(self, name, folder):
        (folder / name / "sub [1]").mkdir(parents=True)
        for path in ("1.png", "sub [1]/2.png", "sub [1]/3[x].png"):
            (folder / name / path).write_bytes(b"")
        assert self.names([f"{folder}/{name}/*.png"]) == ["1.png"]
        assert self.names([f"{folder}/{name}/sub [1]/*"]) == ["2.png", "3[x].png"]
        assert self.names([f"{folder}/{name}/*/3[x].png"]) == ["sub [1]/3[x].png"]
        everything = ["1.png", "sub [1]/2.png", "sub [1]/3[x].png"]
        assert self.names([f"{folder}/{name}/**/*.png"]) == everything
        assert self.names([f"{folder}/{name}/**"]) == everything
        assert self.names([f"{folder}/*/sub [1]/2.png"]) == [f"{name}/sub [1]/2.png"]

    def test_brackets_are_a_pattern_where_nothing_is_called_so(self, folder):
        assert self.names([f"{folder}/[as]*/*.png"]) == ["sub/a.png"]
        assert self.names([f"{folder}/s[u]b/[a].png"]) == ["sub/a.png"]
        with pytest.raises(UsageError, match="no such file or folder, and no match"):
            self.names([f"{folder}/s[x]b/*.png"])

    def test_each_path_once(self, folder):
        assert self.names([folder, folder / "a.png", f"{folder}/../in", f"{folder}/*.JPG"]) == (
            self.names([folder])
        )

    def test_the_order_does_not_depend_on_that_of_the_inputs(self, folder):
        inputs = [folder / "b.JPG", folder / "a.png", folder / "odd.dat"]
        assert self.names(inputs) == self.names(inputs[::-1]) == ["a.png", "b.JPG", "odd.dat"]

    def test_a_format_changes_suffixes(self, folder):
        assert self.names([folder, folder / "odd.dat"], "png") == [
            "a.png", "b.png", "odd.dat.png", "sub/a.png", "sub/deep/c.png",
        ]  # fmt: skip
        assert self.names([folder / "b.JPG"], "jpeg") == ["b.JPG"]

    def test_one_name_for_two_of_a_folder_keeps_their_suffix(self, folder):
        for name in ("a.jpg", "a.tif"):
            (folder / name).write_bytes(b"")
        assert self.names([f"{folder}/a.*"], "png") == ["a.jpg.png", "a.png", "a.tif.png"]
        assert self.names([f"{folder}/a.*"]) == ["a.jpg", "a.png", "a.tif"]

    def test_one_name_for_two_folders_is_refused(self, folder):
        with pytest.raises(UsageError, match=r"sub/a\.png .*would both become a\.png"):
            image_paths.find([folder / "a.png", folder / "sub" / "a.png"])
        (folder / "a.jpg.png").write_bytes(b"")
        (folder / "a.jpg").write_bytes(b"")
        with pytest.raises(UsageError, match=r"would both become a\.jpg\.png"):
            image_paths.find([folder], "png")

    def test_the_outputs_are_not_read_again(self, folder):
        everything = self.names([folder])
        (folder / "out").mkdir()
        (folder / "out" / "a.png").write_bytes(b"")
        for given in (folder, f"{folder}/**", f"{folder}/**/*", f"{folder}/*"):
            assert self.names([given], exclude=folder / "out") == everything
        assert "out/a.png" in self.names([folder])
        # Above the inputs it is no hindrance.
        assert self.names([folder / "sub"], exclude=folder.parent) == ["a.png", "deep/c.tif"]
        assert self.names([f"{folder}/s*/*"], exclude=folder.parent) == [
            "sub/a.png", "sub/deep/c.tif",
        ]  # fmt: skip

    def test_no_output_takes_the_place_of_an_input(self, folder):
        for inputs in ([folder], [f"{folder}/*.png"]):
            with pytest.raises(UsageError, match="--output: is the folder of the input"):
                image_paths.find(inputs, exclude=folder)
        with pytest.raises(UsageError, match="is an input"):
            image_paths.find([folder / "a.png"], exclude=folder)
        assert self.names([folder / "b.JPG"], "png", folder) == ["b.png"]

    def test_links(self, folder):
        (folder / "link.png").symlink_to(folder / "a.png")
        (folder / "sub" / "up").symlink_to(folder)
        (folder / "gone.png").symlink_to(folder / "nothing")
        assert self.names([folder]) == [
            "a.png", "b.JPG", "gone.png", "link.png", "sub/a.png", "sub/deep/c.tif",
        ]  # fmt: skip
        assert self.names([folder / "gone.png"]) == ["gone.png"]

    def test_an_input_is_known_through_links(self, folder, tmp_path):
        output = tmp_path / "out"
        output.mkdir()
        (output / "sub").symlink_to(folder / "sub")
        with pytest.raises(UsageError, match=r"sub/a\.png in it is an input"):
            image_paths.find([folder], exclude=output)
        (output / "sub").unlink()
        (output / "b.JPG").symlink_to(folder / "b.JPG")
        with pytest.raises(UsageError, match=r"b\.JPG in it is an input"):
            image_paths.find([folder], exclude=output)
        (output / "b.JPG").unlink()
        # Nor may it be where a link of the inputs leads, even if there is nothing yet.
        (folder / "gone.png").symlink_to(output / "a.png")
        with pytest.raises(UsageError, match=r"a\.png in it is an input"):
            image_paths.find([folder], exclude=output)

    def test_paths_are_resolved_as_by_the_system(self, folder, monkeypatch):
        (folder / "link.png").symlink_to("sub/a.png")
        (folder / "up").symlink_to("sub/..")
        (folder / "gone").symlink_to("nowhere/x.png")
        (folder / "loop").symlink_to("loop")
        monkeypatch.chdir(folder)
        resolve = image_paths._cached_realpath()
        for path in (
            "a.png", "link.png", "up/link.png", "up/sub/deep/c.tif", "gone", "loop",
            "loop/a.png", "none/x/y.png", "sub/../a.png", "sub/..", ".", "..", "", "/",
            "/a.png", "up/", "a//b",
        ):  # fmt: skip
            for given in (path, f"{folder}/{path}"):
                assert resolve(given) == os.path.realpath(given), given

    def test_folders_are_resolved_once(self, folder, tmp_path, monkeypatch):
        for i in range(50):
            (folder / "sub" / f"{i}.png").write_bytes(b"")
        given, realpath = [], os.path.realpath

        def counted(path):
            given.append(path)
            return realpath(path)

        monkeypatch.setattr(os.path, "realpath", counted)
        for inputs in ([folder], [f"{folder}/**/*.*"]):
            given.clear()
            assert len(image_paths.find(inputs, exclude=tmp_path / "out")) == 54
            assert len(given) < 20

    def test_a_folder_that_cannot_be_listed_is_left_to_the_reader(self, folder, monkeypatch):
        listed = type(folder).iterdir

        def deny(path):
            if path.name == "deep":
                raise PermissionError(13, "Permission denied")
            return listed(path)

        monkeypatch.setattr(type(folder), "iterdir", deny)
        assert self.names([folder]) == ["a.png", "b.JPG", "sub/a.png", "sub/deep"]
        with pytest.raises(ImageFileError, match="deep: is a folder"):
            image_files.read(folder / "sub" / "deep")

    @pytest.mark.parametrize(
        "given", ["", "none.png", "no/such/*", "\0", "~nobody-of-that-name/a"]
    )
    def test_what_is_not_there_is_refused(self, given):
        with pytest.raises(UsageError, match=r"cannot be read|no such file") as caught:
            image_paths.find([given])
        assert str(caught.value).isprintable()

    def test_folders_of_systems_are_none_of_the_users(self, folder):
        everything = self.names([folder])
        for name in ("@eaDir", "sub/@eaDir/a.png", ".thumbnails", "#recycle", "$RECYCLE.BIN"):
            (folder / name).mkdir(parents=True)
            (folder / name / "SYNOPHOTO_THUMB_M.jpg").write_bytes(b"")
        for given in (folder, f"{folder}/**", f"{folder}/**/*"):
            assert self.names([given]) == everything
        (folder / "sub" / "eaDir").mkdir()
        (folder / "sub" / "eaDir" / "x.jpg").write_bytes(b"")
        assert self.names([folder]) == sorted([*everything, "sub/eaDir/x.jpg"])

    def test_what_is_passed_over_is_counted_by_suffix(self, folder):
        for name in ("x.heic", "sub/y.HEIC", "none", ".hidden.heic", "@eaDir/z.heic"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"")
        for given in (folder, f"{folder}/**/*"):
            others = collections.Counter()
            self.names([given], passed_over=others)
            assert others == {".heic": 2, ".txt": 1, ".dat": 1, "": 1}
        said = "2 .heic, 1 without suffix, 1 .dat, 1 .txt"
        assert image_paths.format_passed_over(others) == said
        with pytest.raises(UsageError, match=r"no images in it, but 1 \.heic$"):
            self.names([f"{folder}/*.heic"])

    def test_a_folder_without_images_is_refused(self, folder):
        (folder / "none").mkdir()
        with pytest.raises(UsageError, match="no images in it"):
            image_paths.find([folder, folder / "none"])


@pytest.mark.parametrize(
    "text, name",
    [
        ("gif", "GIF"),
        ("ppm", "PNM"),
        ("jp2", "JP2"),
        ("png", "PNG"),
        ("JPG", "JPEG"),
        ("jpeg", "JPEG"),
        (".tif", "TIFF"),
        ("webp", "WEBP"),
    ],
)
def test_names_of_formats(text, name):
    assert image_paths.format_name(text) == name
