"""Folders and archives of images: what is read, in which order, and what every kind of bad input is told."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from job.config.errors import UserError
from job.config.settings import REPOSITORY, Data
from job.data import archives, datasets, decoding

CLASSES = ("cat", "dog")


def drawn(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """Noise that differs for each number."""
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of three training and two test images, 8x8, lossless."""
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(encoded(drawn(1000 * (split == "test") + 10 * label + number)))
    return tmp_path / "pets"


def load(root: Path, log: list[str] | None = None, seed: int = 1, **options: object) -> datasets.Dataset:
    data = Data(source="folder", root=str(root), **{"image_size": 8, "validation": 0.0, **options})
    return datasets.load(data, seed=seed, log=(log if log is not None else []).append)


def pack(tree: Path, archive: Path, top: str = "") -> Path:
    """An archive of ``tree`` in the order of the file system, of the kind that the name says."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in tree.rglob("*"):
                file.write(path, f"{top}{path.relative_to(tree)}")
    else:
        mode = {".tar": "w", ".gz": "w:gz", ".xz": "w:xz"}[archive.suffix]
        with tarfile.open(archive, mode) as file:
            file.add(tree, top or ".")
    return archive


def failure(root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def same(one: datasets.Dataset, other: datasets.Dataset) -> bool:
    return one.fingerprint == other.fingerprint and one.classes == other.classes


def test_a_folder_is_read_in_sorted_order_with_labels_by_name(tree: Path) -> None:
    data = load(tree)
    assert data.classes == CLASSES
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    expected = np.stack([np.asarray(drawn(n)) for n in (0, 1, 2, 10, 11, 12)])
    np.testing.assert_array_equal(data.train.images.numpy(), expected)


@pytest.mark.parametrize("top", ["", "pets-v2/"])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
def test_every_archive_gives_what_the_folder_gives(tree: Path, tmp_path: Path, kind: str, top: str) -> None:
    assert same(load(tree), load(pack(tree, tmp_path / f"pets.{kind}", top)))


def test_an_archive_is_known_by_its_content_and_not_by_its_name(tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "pets.tar.gz").rename(tmp_path / "pets.download")
    assert len(load(archive).train) == 6


def test_nothing_but_the_cache_is_written(tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "pets.tar")
    shutil.rmtree(tree)
    load(archive)
    assert {path.name for path in tmp_path.iterdir()} == {"pets.tar", "rankzero-cache"}


def test_images_in_subfolders_of_a_class_count(tree: Path) -> None:
    before = len(load(tree).train)
    (tree / "train" / "cat" / "2024" / "may").mkdir(parents=True)
    (tree / "train" / "cat" / "2024" / "may" / "x.png").write_bytes(encoded(drawn(99)))
    after = load(tree)
    assert len(after.train) == before + 1
    assert after.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


DEBRIS = (
    *("train/cat/.DS_Store", "train/cat/._0.png", "train/.ipynb_checkpoints/0.png", "train/cat/.nfs0001"),
    *("train/cat/.Trash-1000/files/a.png", "train/.Trashes/0.png", "test/.Spotlight-V100/0.png", "train/cat/Icon\r"),
    *("train/cat/Thumbs.db", "test/dog/ehthumbs.db", "train/cat/DESKTOP.INI", "train/$RECYCLE.BIN/S-1-5/0.png"),
    *("test/System Volume Information/0.png", "train/lost+found/0.png", "train/__MACOSX/cat/0.png"),
    *("train/cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "test/@eaDir/0.png", "train/dog/0.png@SynoEAStream"),
    *("train/#recycle/0.png", "test/#snapshot/0.png", "train/@Recycle/0.png", "test/cat/.@__thumb/0.png"),
    *("train/cat/0.png~", "train/cat/~$notes.docx"),
)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_what_desktops_editors_and_nas_leave_is_no_part_of_the_data(tree: Path, tmp_path: Path, kind: str) -> None:
    clean = load(tree)
    for name in DEBRIS:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(encoded(drawn(999)))
    root = tree if kind == "folder" else pack(tree, tmp_path / f"pets.{kind}")
    log: list[str] = []
    assert same(clean, load(root, log, cache=str(tmp_path / "other")))
    (line,) = [line for line in log if "left out" in line or "passed over" in line]
    assert f"left out {len(DEBRIS)} that desktops, editors or a NAS made: test/" in line


def test_files_outside_class_folders_are_passed_over_with_one_line(tree: Path, tmp_path: Path) -> None:
    clean = load(tree)
    (tree / "README.txt").write_text("about these pets")
    (tree / "train" / "labels.csv").write_text("0.png,cat")
    log: list[str] = []
    assert same(clean, load(pack(tree, tmp_path / "pets.tar"), log))
    assert [line for line in log if "2 files outside" in line and "README.txt" in line]


def test_of_two_members_of_one_name_the_later_counts(tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "pets.tar")
    with tarfile.open(archive, "a") as file:
        content = encoded(drawn(77))
        member = tarfile.TarInfo("./train/cat/1.png")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    data = load(archive)
    assert len(data.train) == 6
    np.testing.assert_array_equal(data.train.images[1].numpy(), np.asarray(drawn(77)))


# --- one image


def pixels(content: bytes, size: int) -> np.ndarray:
    return np.frombuffer(decoding.read(content, size), np.uint8).reshape(size, size, 3)


def test_a_image_of_the_right_size_keeps_its_pixels() -> None:
    np.testing.assert_array_equal(pixels(encoded(drawn(3)), 8), np.asarray(drawn(3)))


def test_resizing_averages_over_all_pixels_that_a_new_one_covers() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255  # picking single pixels would show 0 or 255
    small = pixels(encoded(Image.fromarray(board.astype(np.uint8))), 8)
    assert abs(small.astype(int) - 127).max() <= 4


def test_grey_and_palette_become_rgb() -> None:
    grey = drawn(4, mode="L")
    assert (pixels(encoded(grey), 8) == np.asarray(grey)[..., None]).all()
    palette = drawn(4).quantize(16)
    np.testing.assert_array_equal(pixels(encoded(palette), 8), np.asarray(palette.convert("RGB")))


def test_transparency_shows_white_and_not_the_colour_hidden_beneath() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    result = pixels(encoded(image), 8)
    assert (result[:, :4] == (0, 0, 255)).all()
    assert (result[:, 4:] == 255).all()
    sprite = Image.new("P", (8, 8), 1)
    sprite.putpalette([0, 0, 255, 255, 0, 0])
    assert (pixels(encoded(sprite, "GIF", transparency=1), 8) == 255).all()


def test_of_16_bits_the_upper_8_are_kept() -> None:
    wide = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for kind in ("PNG", "TIFF"):
        result = pixels(encoded(Image.fromarray(wide), kind), 8)
        assert abs(result[..., 0].astype(int) - (wide >> 8)).max() <= 1, kind


def test_cmyk_is_converted_and_not_inverted() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    result = pixels(encoded(red, "JPEG"), 8).astype(int)
    assert (result[..., 0] > 200).all()
    assert (result[..., 1:] < 60).all()


def test_an_animation_shows_its_first_frame() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    content = encoded(first, "GIF", save_all=True, append_images=[second])
    assert (pixels(content, 8) == (255, 0, 0)).all()


def test_the_orientation_that_the_camera_noted_is_applied() -> None:
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))  # upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    result = pixels(encoded(image, "PNG", exif=exif), 8)
    assert (result[:, 4:] == 255).all()
    assert (result[:, :4] == 0).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_each_orientation_is_applied_and_one_that_cannot_be_read_means_upright(kind: str) -> None:
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 16, 16))  # a corner: no two orientations look the same
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        content = encoded(image, kind, exif=exif)
        with Image.open(io.BytesIO(content)) as opened:
            expected = ImageOps.exif_transpose(opened).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        assert decoding.read(content, 32) == expected.tobytes()
    upright = decoding.read(encoded(image, kind), 32)
    whole = exif.tobytes()
    broken = [whole[:length] for length in (6, 7, 9, 13, 15, 17, 25)]
    broken += [whole[:6] + b"XX" + whole[8:], whole[:10] + b"\xff\xff\xff\xff" + whole[14:]]
    broken += [
        whole[:18] + bytes([0, kind]) + whole[20:] for kind in (2, 5, 7, 200)
    ]  # text, a fraction, bytes, nothing
    for content in broken:
        assert decoding.read(encoded(image, kind, exif=content), 32) == upright, content


def test_a_telephones_two_hundred_megapixels_are_read() -> None:
    content = encoded(Image.linear_gradient("L").resize((16320, 12240)), "JPEG")
    expected = np.asarray(Image.linear_gradient("L").resize((8, 8), Image.Resampling.BILINEAR))
    assert abs(pixels(content, 8)[..., 0].astype(int) - expected).max() <= 2


def bomb() -> bytes:
    """A PNG that claims to be 20,000 pixels wide and high."""
    content = bytearray(encoded(drawn(0)))
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello", "unknown format"),
        (encoded(drawn(1, (64, 64)))[:2000], "truncated"),
        (encoded(drawn(1, (64, 64)), "JPEG")[:1000], "truncated"),
        (bomb(), "pixels"),
        (encoded(drawn(1, mode="F"), "TIFF"), "floating-point"),
        (encoded(drawn(1), "EPS"), "unknown format"),  # Pillow would start Ghostscript
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "bomb", "floating point", "EPS"],
)
def test_what_is_no_whole_image_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decoding.read(content, 8)


# --- files that are no images


def spoil(tree: Path) -> None:
    (tree / "train" / "cat" / "notes.txt").write_text("no image")
    (tree / "train" / "dog" / "0.png").write_bytes(encoded(drawn(5))[:60])
    (tree / "test" / "dog" / "zero.png").touch()
    (tree / "test" / "dog" / "broken.png").symlink_to("nowhere")
    (tree / "test" / "dog" / "circle.png").symlink_to("circle.png")
    os.mkfifo(tree / "test" / "dog" / "pipe.png")


def test_files_that_are_no_images_are_counted_and_the_first_are_named(tree: Path) -> None:
    spoil(tree)
    message = failure(tree)
    assert "6 files are not readable images" in message
    assert "train/cat/notes.txt (unknown format)" in message
    assert "and 3 more" in message
    assert "skip_unreadable" in message


def test_skip_unreadable_leaves_them_out_and_says_so_at_every_start(tree: Path) -> None:
    spoil(tree)
    for _ in range(2):
        log: list[str] = []
        data = load(tree, log, skip_unreadable=True)
        assert (len(data.train), len(data.test)) == (5, 4)
        assert sum("6 files are not readable images" in line for line in log) == 1


def test_a_class_of_which_nothing_is_readable_to_train_on_is_an_error_even_then(tree: Path) -> None:
    for path in (tree / "test" / "dog").iterdir():
        path.write_bytes(b"no image")
    (note,) = load(tree, skip_unreadable=True).notes
    assert note == "no test images of dog: test accuracy says nothing of that"
    for path in (tree / "train" / "dog").iterdir():
        path.write_bytes(b"no image")
    assert "no images in train/dog" in failure(tree, skip_unreadable=True)
    shutil.rmtree(tree / "test")
    shutil.copytree(tree / "train" / "dog", tree / "test" / "dog")
    assert "no images in train/dog, test/: put" in failure(tree, skip_unreadable=True)


# --- folders and archives that are not as they should be


def test_a_missing_root_is_told_what_was_expected_there(tmp_path: Path) -> None:
    message = failure(tmp_path / "nothing")
    assert "nothing does not exist" in message
    assert "train/<class>/*" in message


@pytest.mark.parametrize("kind", ["folder", "tar.gz", "zip"])
def test_an_empty_class_folder_is_an_error(tree: Path, tmp_path: Path, kind: str) -> None:
    for split in ("train", "test"):
        (tree / split / "bird").mkdir()
    root = tree if kind == "folder" else pack(tree, tmp_path / f"pets.{kind}")
    assert "no images in train/bird" in failure(root)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize("between", ["images", "", "dog"])
def test_one_class_is_refused_with_what_lies_below_it(tree: Path, tmp_path: Path, kind: str, between: str) -> None:
    for split in ("train", "test"):
        (tree / split).rename(tree / "moved")
        (tree / split).mkdir()
        (tree / "moved").rename(tree / split / (between or split))
        if between == "dog":
            shutil.rmtree(tree / split / "dog" / "cat")
    message = failure(tree if kind == "folder" else pack(tree, tmp_path / f"pets.{kind}"))
    assert f"only one class, train/{between or 'train'} and test/{between or 'test'}" in message
    assert f"the folders below it are {'dog' if between == 'dog' else 'cat, dog'}" in message


def test_one_class_without_folders_is_refused(tree: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(tree / split / "dog")
    assert "only one class, train/cat and test/cat: give two or more" in failure(tree)


def test_a_class_whose_only_image_is_held_out_is_named(tree: Path) -> None:
    for path in ("1.png", "2.png"):
        (tree / "train" / "dog" / path).unlink()
    said = {load(tree, validation=0.3, seed=seed).notes[0] for seed in range(8)}
    assert said == {
        "none to train on of dog: all are held out",
        "no validation images of dog: validation accuracy says nothing of that",
    }


def test_classes_that_differ_are_listed_and_never_renumbered(tree: Path) -> None:
    (tree / "test" / "cat").rename(tree / "test" / "Cat")
    message = failure(tree)
    assert "train/ has no Cat" in message
    assert "test/ has no cat" in message


def test_two_data_sets_in_one_archive_are_an_error(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    shutil.copytree(tree, tmp_path / "both" / "a")
    shutil.copytree(tree, tmp_path / "both" / "b")
    assert "more than one place" in failure(pack(tmp_path / "both", tmp_path / "pets.zip"))


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_truncated_archive_is_named_and_nothing_is_kept(tree: Path, tmp_path: Path, kind: str, share: float) -> None:
    archive = pack(tree, tmp_path / f"pets.{kind}")
    if kind == "tar":  # Python pads to 10 kB; keep what comes before the padding
        archive.write_bytes(archive.read_bytes().rstrip(b"\0"))
    os.truncate(archive, int(archive.stat().st_size * share))
    assert "pets." + kind + ": damaged or truncated" in failure(archive)
    assert not [path for path in (tmp_path / "rankzero-cache").glob("pets*") if path.is_dir()]


def test_a_tar_cut_between_two_members_is_not_taken_for_whole(tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "pets.tar")
    with tarfile.open(archive) as file:
        last = file.getmembers()[-1]
    os.truncate(archive, last.offset)
    assert "damaged or truncated" in failure(archive)


def test_two_tars_after_each_other_are_not_half_read(tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "pets.tar")
    archive.write_bytes(archive.read_bytes() * 2)
    assert "damaged or truncated" in failure(archive)


def test_a_damaged_byte_in_a_compressed_archive_is_found(tree: Path, tmp_path: Path) -> None:
    for archive in (pack(tree, tmp_path / "pets.tar.gz"), pack(tree, tmp_path / "pets.tar.xz")):
        content = bytearray(archive.read_bytes())
        content[len(content) // 2] ^= 0xFF
        archive.write_bytes(content)
        failure(archive)


def test_a_zip_of_powershell_is_read_and_a_backslash_beside_slashes_is_half_a_letter(
    tree: Path, tmp_path: Path
) -> None:
    clean = load(tree)
    for separator, letter in (("\\", "x"), ("/", "\\")):
        archive = tmp_path / f"{letter!r}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(tree.rglob("*")):
                name = str(path.relative_to(tree)).replace("/", separator).replace("0.png", f"0{letter}.png")
                file.writestr(name + separator * path.is_dir(), b"" if path.is_dir() else path.read_bytes())
        assert same(clean, load(archive)), archive


@pytest.mark.parametrize(
    ("bytes_", "name"), [("chèvre".encode(), "chèvre"), (b"ch\x8avre", "chèvre"), (b"goat", "goat")]
)
def test_names_in_a_zip_are_utf8_or_else_cp437(tree: Path, tmp_path: Path, bytes_: bytes, name: str) -> None:
    for split in ("train", "test"):
        (tree / split / "cat").rename(tree / split / ("C" * len(bytes_)))
    archive = pack(tree, tmp_path / "pets.zip")
    archive.write_bytes(archive.read_bytes().replace(b"C" * len(bytes_), bytes_))
    assert set(load(archive).classes) == {name, "dog"}


@pytest.mark.parametrize("content", [b"", b"Rar!\x1a\x07\x00" + bytes(600), b"just text"])
def test_an_unknown_kind_of_archive_is_told_the_known_ones(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pets.rar").write_bytes(content)
    assert ".tar.xz or .zip" in failure(tmp_path / "pets.rar")


def with_member(tree: Path, archive: Path, member: tarfile.TarInfo) -> Path:
    pack(tree, archive)
    with tarfile.open(archive, "a") as file:
        file.addfile(member, io.BytesIO(bytes(member.size)))
    return archive


@pytest.mark.parametrize("name", ["/etc/cron.d/x", "../outside.png", "train/cat/../../../x.png"])
def test_a_member_that_points_outside_is_named(tree: Path, tmp_path: Path, name: str) -> None:
    message = failure(with_member(tree, tmp_path / "pets.tar", tarfile.TarInfo(name)))
    assert f"member {name} points outside" in message
    with zipfile.ZipFile(pack(tree, tmp_path / "pets.zip"), "a") as file:
        file.writestr(zipfile.ZipInfo(name), b"x")
    assert f"member {name} points outside" in failure(tmp_path / "pets.zip")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_an_archive_are_named(tree: Path, tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("train/cat/x.png")
    member.type, member.linkname = kind, "/etc/passwd"
    message = failure(with_member(tree, tmp_path / "pets.tar", member))
    assert "train/cat/x.png is a link" in message
    assert "--dereference" in message


def test_a_sparse_member_is_refused(tree: Path, tmp_path: Path) -> None:
    member = tarfile.TarInfo("train/cat/x.png")
    member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 50), "GNU.sparse.numblocks": "1"}
    message = failure(with_member(tree, tmp_path / "pets.tar", member))
    assert "train/cat/x.png is a link or no ordinary file" in message


def in_archive(tree: Path, archive: Path, content: bytes) -> Path:
    """``tree`` with one more file, compressed."""
    (tree / "train" / "cat" / "film.mp4").write_bytes(content)
    if archive.suffix != ".zip":
        return pack(tree, archive)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in tree.rglob("*"):
            file.write(path, path.relative_to(tree))
    return archive


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_bombs_are_refused_and_what_is_larger_than_an_image_is_not_read(
    tree: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LARGEST", 1 << 16)  # else this takes gigabytes
    bomb = in_archive(tree, tmp_path / f"bomb.{kind}", bytes(1 << 22))
    assert f"{bomb}: expands to more than 200 times its size" in failure(bomb)
    large = in_archive(tree, tmp_path / f"large.{kind}", os.urandom(1 << 17))
    assert "train/cat/film.mp4 (more than 1 GiB)" in failure(large)
    assert len(load(large, skip_unreadable=True).train) == 6


def test_a_file_larger_than_any_image_is_not_read(tree: Path) -> None:
    with (tree / "train" / "cat" / "film.mp4").open("wb") as file:
        file.truncate((1 << 30) + 1)
    assert "train/cat/film.mp4 (more than 1 GiB)" in failure(tree)


def test_a_link_in_a_zip_is_named(tree: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(tree, tmp_path / "pets.zip"), "a") as file:
        link = zipfile.ZipInfo("train/cat/x.png")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    assert "train/cat/x.png is a link" in failure(tmp_path / "pets.zip")


def test_links_in_a_folder_are_followed_but_not_in_circles(tree: Path) -> None:
    outside = tree.parent / "elsewhere"
    (tree / "train" / "dog").rename(outside)
    (tree / "train" / "dog").symlink_to(outside)
    assert len(load(tree).train) == 6
    (tree / "train" / "cat" / "again").symlink_to("..")
    assert "train/cat/again: is a link to a directory that contains it" in failure(tree)


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Permissions do not stop root, so the effective user is another for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_directory_that_cannot_be_read_is_an_error_and_not_left_out(tree: Path) -> None:
    with tempfile.TemporaryDirectory() as public:  # pytest's own is closed to other users
        root = Path(shutil.copytree(tree, Path(public) / "pets"))
        Path(public).chmod(0o755)
        for directory in (root / "train" / "cat", root / "test", root):
            directory.chmod(0)
            with without_root():
                message = failure(root)
            directory.chmod(0o755)
            assert f"{directory}: Permission denied" in message


def test_names_that_are_not_utf8_do_not_stop_the_message(tree: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tree) + b"/train/cat/\xff.png"))).write_bytes(b"no image")
    assert "train/cat/\\udcff.png" in failure(tree)


def test_a_folder_that_changes_is_decoded_again(tree: Path) -> None:
    before = load(tree)
    (tree / "train" / "cat" / "0.png").write_bytes(encoded(drawn(500)))
    after = load(tree)
    assert after.fingerprint != before.fingerprint


def test_where_no_process_is_bound_to_cores_all_of_them_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoding.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert decoding.cores() == os.cpu_count()


def children(process: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()}


def test_a_decoder_that_dies_is_an_error_and_no_hang() -> None:
    before = children(os.getpid())
    with decoding.readers(8, 1) as read:
        (decoder,) = children(os.getpid()) - before
        os.kill(decoder, signal.SIGKILL)
        with pytest.raises(ChildProcessError, match="died"):
            read([encoded(drawn(1))]).result(timeout=30)


def test_signals_meant_for_the_job_do_not_end_its_decoders() -> None:
    before = children(os.getpid())
    with decoding.readers(8, 1) as read:
        read([]).result(timeout=30)  # it is up
        (decoder,) = children(os.getpid()) - before
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(decoder, number)
        assert read([encoded(drawn(1))]).result(timeout=30) == [drawn(1).tobytes()]


def test_decoders_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, time\nfrom job.data import decoding\n"
        "with decoding.readers(8, 2) as read:\n"
        "    read([]).result(); print('up', flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=REPOSITORY)
    with parent:
        parent.stdout.readline()
        decoders = children(parent.pid)
        assert len(decoders) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{decoder}").exists() for decoder in decoders):
        assert time.monotonic() < deadline, "decoders outlive the job"
        time.sleep(0.05)


@pytest.mark.skipif("RANKZERO_PICTURES" not in os.environ, reason="RANKZERO_PICTURES names no archive")
def test_sixty_thousand_real_images(tmp_path: Path) -> None:
    archive = Path(os.environ["RANKZERO_PICTURES"])
    data = load(archive, image_size=32, cache=str(tmp_path), validation=0.2)
    assert data.train.images.shape == (50_000, 32, 32, 3)
    assert (len(data.train), len(data.validation), len(data.test)) == (40_000, 10_000, 10_000)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    started = time.perf_counter()
    again = load(archive, image_size=32, cache=str(tmp_path), validation=0.2)
    assert time.perf_counter() - started < 2  # 0.1 s on a quiet machine; decoding takes 9
    assert same(data, again)


def test_a_root_that_is_neither_a_folder_nor_a_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for root in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="is neither a folder nor a file"):
            archives.kind(root)
