"""What the job is given: splits, the cache they are mapped from, and what happens when it is damaged or cannot be."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.jobs import TIMEOUT, command, environment, free_port

from job.config.errors import UserError
from job.config.settings import REPOSITORY, Data
from job.data import cache, datasets
from job.data.local import disk


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache directory of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "rankzero"


def make_tree(root: Path, count: int = 10, seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (2, 2, count, 8, 8, 3), np.uint8)
    for split, of_split in zip(("train", "test"), noise, strict=True):
        for name, of_class in zip(("cat", "dog"), of_split, strict=True):
            (root / split / name).mkdir(parents=True)
            for number, pixels in enumerate(of_class):
                Image.fromarray(pixels).save(root / split / name / f"{number:03}.png")
    return root


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    tree = make_tree(tmp_path / "pets")
    path = Path(shutil.make_archive(str(tmp_path / "data" / "pets"), "gztar", tree))
    shutil.rmtree(tree)
    return path


def options(root: Path, **other: object) -> Data:
    return Data(source="folder", root=str(root), **{"image_size": 8, **other})


def load(root: Path, log: list[str] | None = None, seed: int = 1, **other: object) -> datasets.Dataset:
    return datasets.load(options(root, **other), seed, log=(log if log is not None else []).append)


def stored(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.is_dir()]


# --- the split


def test_splits_share_the_images(archive: Path) -> None:
    data = load(archive)
    assert data.train.images is data.validation.images
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 20)
    assert data.test.indices.tolist() == list(range(20))
    empty = load(archive, validation=0.0).validation
    assert (len(empty), empty.indices.dtype) == (0, torch.int64)


def test_images_are_uint8_one_run_of_bytes_each_and_labels_int64(archive: Path) -> None:
    split = load(archive).train
    assert (split.images.dtype, split.images.shape) == (torch.uint8, (20, 8, 8, 3))
    assert split.images.is_contiguous()
    assert (split.labels.dtype, split.labels.shape) == (torch.int64, (20,))


# --- the cache


def test_the_second_start_decodes_nothing_and_writes_nothing(archive: Path) -> None:
    first = load(archive)
    place = archive.parent / "rankzero-cache"
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    log: list[str] = []
    assert load(archive, log).fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert log == []


def test_what_a_process_writes_into_its_images_stays_its_own(archive: Path) -> None:
    load(archive).train.images.zero_()
    assert load(archive).train.images.any()


def test_ranks_map_the_same_pages(archive: Path) -> None:
    split = load(archive).train
    maps = Path("/proc/self/maps").read_text()
    assert "train_images.npy" in maps
    assert split.images.data_ptr() % 64 == 0


def test_the_cache_is_known_by_content(archive: Path, tmp_path: Path) -> None:
    first = load(archive)
    os.utime(archive, (1, 1))
    log: list[str] = []
    load(archive, log)
    moved = archive.rename(archive.parent / "renamed.tar.gz")
    assert log == [], "touched, but the same"
    assert load(moved).fingerprint == first.fingerprint
    shutil.make_archive(str(moved).removesuffix(".tar.gz"), "gztar", make_tree(tmp_path / "other", seed=1))
    assert load(moved).fingerprint != first.fingerprint


def test_each_image_size_has_a_cache_of_its_own(archive: Path) -> None:
    assert load(archive, image_size=16).image_size == 16
    assert load(archive).image_size == 8
    assert len(stored(archive.parent / "rankzero-cache")) == 2


def test_beside_a_read_only_source_nothing_is_written(archive: Path, home: Path) -> None:
    archive.parent.chmod(0o555)
    try:
        load(archive)
        log: list[str] = []
        load(archive, log)
    finally:
        archive.parent.chmod(0o755)
    assert os.listdir(archive.parent) == [archive.name]
    assert len(stored(home)) == 1
    assert log == []


def test_a_cache_beside_a_source_serves_also_when_it_is_read_only(archive: Path, home: Path) -> None:
    load(archive)
    place = archive.parent / "rankzero-cache"
    for path in (archive.parent, place, *stored(place)):
        path.chmod(0o555)
    try:
        log: list[str] = []
        load(archive, log)
    finally:
        for path in (archive.parent, place, *stored(place)):
            path.chmod(0o755)
    assert log == []
    assert not home.exists()


def test_a_cache_directory_of_the_users_choice(archive: Path, tmp_path: Path) -> None:
    load(archive, cache=str(tmp_path / "chosen" / "deep"))
    assert len(stored(tmp_path / "chosen" / "deep")) == 1
    assert os.listdir(archive.parent) == [archive.name]


def test_no_writable_directory_is_an_error_that_names_the_key(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache"):
        load(archive, cache=str(tmp_path / "file" / "below"))


def test_without_a_home_the_message_names_the_key_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "~")  # what is left of ~/.cache where the user has no home
    with pytest.raises(UserError, match=r"no home directory.*data\.cache"):
        datasets.prepare(Data(source="shapes10"))


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
STRANGER = 4242


def of_a_stranger(place: Path) -> None:
    place.mkdir()
    for path in (place, *place.rglob("*")):
        os.chown(path, STRANGER, STRANGER)


def a_link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    place.symlink_to("elsewhere")


def open_to_all(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def in_a_place_where_anybody_renames(place: Path) -> None:
    place.parent.chmod(0o777)


@AS_ROOT
@pytest.mark.parametrize(
    ("prepared", "used"),
    [
        (lambda place: None, True),
        (lambda place: place.mkdir(0o755), True),
        (lambda place: place.parent.chmod(0o1777), True),
        (of_a_stranger, False),
        (a_link, False),
        (open_to_all, False),
        (in_a_place_where_anybody_renames, False),
        (lambda place: place.touch(), False),
        (lambda place: (place.parent.rmdir(), place.parent.touch()), False),
    ],
)
def test_a_directory_on_the_nodes_disk_is_used_if_it_is_this_users_alone_and_else_that_beside_the_data(
    prepared: Callable[[Path], None], used: bool, archive: Path, tmp_path: Path
) -> None:
    place = tmp_path / "scratch" / "rankzero-0"
    place.parent.mkdir()
    prepared(place)
    log: list[str] = []
    path = datasets.prepare(options(archive), log=log.append, node_disk=place)
    assert path.parent == (place if used else archive.parent / "rankzero-cache")
    assert len([line for line in log if line.endswith("the decoded images stay where the data set is")]) == (not used)
    if used:
        assert not place.stat().st_mode & 0o022
    # Who removes it asks for its lock, which this process holds.
    taken = subprocess.run(["flock", "--nonblock", place.parent if not used else place, "true"]).returncode
    assert taken == used


@AS_ROOT
def test_what_a_stranger_left_where_everybody_may_write_is_not_trusted(
    archive: Path, home: Path, tmp_path: Path
) -> None:
    """A decoded set with other labels, its digests all in order, as in /tmp."""
    right = load(archive).train.labels.tolist()
    place = archive.parent / "rankzero-cache"
    (entry,) = stored(place)
    about = json.loads((entry / "about.json").read_text())
    labels = np.load(entry / "train_labels.npy")[::-1].copy()
    np.save(entry / "train_labels.npy", labels)
    about["sha256"]["train_labels"] = cache.hashlib.sha256(labels.data).hexdigest()
    about["fingerprint"] = cache._fingerprint(about["classes"], about["sha256"], None)
    (entry / "about.json").write_text(json.dumps(about))
    assert load(archive).train.labels.tolist() != right, "a good forgery"
    archive.parent.chmod(0o1777)
    os.chown(place, STRANGER, STRANGER)
    log: list[str] = []
    assert load(archive, log).train.labels.tolist() == right
    assert f"{place} is not used" in log[0]
    assert len(stored(home)) == 1
    with pytest.raises(UserError, match=r"where everybody may write.*data\.cache"):
        load(archive, cache=str(place))
    (tmp_path / "own").touch(0o600)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / f"{entry.name}.lock").symlink_to(tmp_path / "own")
    with pytest.raises(UserError, match="symbolic links"):
        load(archive, cache=str(tmp_path / "shared"))
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o600


def truncate(path: Path) -> None:
    os.truncate(path / "train_images.npy", 1000)


def remove_about(path: Path) -> None:
    (path / "about.json").unlink()


def empty_about(path: Path) -> None:
    (path / "about.json").write_bytes(b"")


def remove_labels(path: Path) -> None:
    (path / "test_labels.npy").unlink()


def flip(path: Path, byte: int, bit: int) -> None:
    """Flip one bit, and leave no trace of that in the file's times."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flipped(file: str, mark: int | bytes, after: int, bit: int) -> Callable[[Path], None]:
    """Damage to a stored data set: one bit of ``file``, so many bytes ``after`` a place or the first such bytes."""

    def damage(stored: Path) -> None:
        place = mark if isinstance(mark, int) else (stored / file).read_bytes().index(mark)
        flip(stored / file, place + after, bit)

    return damage


FLIPS = {
    "another label": ("train_labels.npy", 0, -8, 0),
    "no label": ("test_labels.npy", 0, -1, 4),
    "another pixel": ("test_images.npy", 500, 0, 7),
    "another byte order": ("train_labels.npy", b"<i8", 0, 1),
    "another kind of number": ("train_labels.npy", b"<i8", 1, 2),
    "another head": ("train_images.npy", 0, 0, 0),
    "another class": ("about.json", b"cat", 0, 0),
    "another digest": ("about.json", b'"sha256"', 40, 0),
    "no text": ("about.json", 5, 0, 7),
}


def another_json(path: Path) -> None:
    (path / "about.json").write_text("[" * 100_000)


DAMAGE = [another_json, *(pytest.param(flipped(*where), id=kind) for kind, where in FLIPS.items())]


def older_format(path: Path) -> None:
    about = json.loads((path / "about.json").read_text())
    (path / "about.json").write_text(json.dumps(about | {"format": 0}))


@pytest.mark.parametrize("damage", [truncate, remove_about, empty_about, remove_labels, older_format, *DAMAGE])
def test_a_damaged_cache_is_noticed_said_and_built_again(archive: Path, damage) -> None:  # type: ignore[no-untyped-def]
    first = load(archive)
    images = first.train.images.clone()  # damage shows through the mapping
    (entry,) = stored(archive.parent / "rankzero-cache")
    damage(entry)
    log: list[str] = []
    again = load(archive, log)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.train.images, images)
    assert again.test.labels.tolist() == [0] * 10 + [1] * 10
    assert sum("decoding again" in line for line in log) == 1
    log.clear()
    load(archive, log)
    assert log == []


def test_a_large_set_is_remembered_as_sound_until_it_is_touched_or_a_week_is_over(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_REMEMBERED", 1000)
    seen: list[str] = []

    @contextmanager
    def record(description: str, total: int | None, unit: str) -> Iterator[cache.Advance]:
        seen.append(description.split()[0])
        yield lambda amount: None

    def start() -> list[str]:
        seen.clear()
        datasets.prepare(options(archive), record, log=lambda line: None)
        return list(seen)

    assert start() == ["hashing", "decoding"]
    assert [start(), start()] == [["verifying"], []]
    (note,) = (archive.parent / "rankzero-cache").glob("*.verified")
    os.utime(note, (time.time() - 8 * 86400,) * 2)
    assert [start(), start()] == [["verifying"], []]
    (entry,) = stored(archive.parent / "rankzero-cache")
    flipped(*FLIPS["another label"])(entry)
    assert start() == ["verifying", "verifying", "decoding"], "once more when it has the lock"


def test_what_a_source_was_before_is_named_with_its_size_and_how_to_remove_it(archive: Path, tmp_path: Path) -> None:
    other = make_tree(archive.parent / "pets")
    log: list[str] = []
    for root in (archive, other):
        for size in (8, 16):
            load(root, log, image_size=size)
    assert not any("it was before" in line for line in log)
    older = sorted(path for path in stored(archive.parent / "rankzero-cache") if path.name.startswith("pets-"))
    os.utime(other / "train" / "cat" / "000.png", (1, 1))
    load(other, log)
    load(other, log)
    (line,) = [line for line in log if "it was before" in line]
    assert line.startswith("what it was before takes 0 MB")
    assert line.endswith(f"rm -r {' '.join(map(str, older))}")


class Locks:
    """``fcntl`` of a file system that answers a lock with an error."""

    def __init__(self, error: int) -> None:
        self._error = error

    def __getattr__(self, name: str) -> object:
        return getattr(fcntl, name)

    def flock(self, descriptor: int, operation: int) -> None:
        raise OSError(self._error, os.strerror(self._error))


@pytest.mark.parametrize("error", ["ENOTSUP", "ENOLCK", "ENOSYS", "EINVAL"])
def test_on_a_file_system_without_locks_work_is_done_twice_and_nothing_is_lost(
    archive: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    monkeypatch.setattr(disk, "fcntl", Locks(getattr(errno, error)))
    log: list[str] = []
    fingerprints: list[str] = []
    begun = threading.Barrier(2)

    @contextmanager
    def together(description: str, total: int | None, unit: str) -> Iterator[cache.Advance]:
        begun.wait(30)
        yield lambda amount: None

    def start(_: int) -> None:
        fingerprints.append(datasets.load(options(archive), 1, together, log.append).fingerprint)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(start, range(2)))
    assert len(set(fingerprints)) == 1
    assert len(stored(archive.parent / "rankzero-cache")) == 1, "the later one is thrown away"
    assert sum("cannot be locked" in line for line in log) == 4


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Files of this process can grow no larger, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_without_room_is_an_error_that_leaves_nothing_behind(archive: Path) -> None:
    with files_at_most(2000), pytest.raises(UserError, match=r"cannot be written .*data\.cache"):
        load(archive)
    assert stored(archive.parent / "rankzero-cache") == []
    assert len(load(archive).train) == 16


def test_many_processes_at_once_decode_once(tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "pets"), "zip", make_tree(tmp_path / "tree", 50))
    program = (
        "import sys\nfrom job.config.settings import Data\nfrom job.data import datasets\n"
        f"data = Data(source='folder', root={archive!r}, image_size=8)\n"
        "print(datasets.load(data, 1, log=lambda line: print('LOG', line)).fingerprint)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for _ in range(3)
    ]
    lines = [line for process in running for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum("decoded images kept" in line for line in lines) == 1
    assert len({line for line in lines if not line.startswith("LOG")}) == 1


def test_one_process_a_node_looks_at_the_source_and_what_it_notes_is_said_once(tmp_path: Path) -> None:
    """The other one trains as well, in a directory from which the same words lead to no source."""
    tree = make_tree(tmp_path / "here" / "pets")
    (tree / "train" / "labels.csv").write_text("000.png,cat")
    (tmp_path / "elsewhere").mkdir()
    words = command("train.py", "--data.source=folder", "--data.root=pets", f"--run.dir={tmp_path / 'run'}")
    words += ["--train.epochs=1", "--train.batch_size=8", "--run.trackers=[]"]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            words,
            env=environment(**group, RANK=str(rank), LOCAL_RANK=str(rank)),
            cwd=tmp_path / place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, place in enumerate(("here", "elsewhere"))
    ]
    said = [rank.communicate(timeout=TIMEOUT)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert [text.count("1 files outside class folders passed over") for text in said] == [1, 0]
    assert "folder: 16 train, 4 validation, 20 test images of shape 3x32x32, 2 classes" in said[0]


def test_a_decoded_set_that_a_process_does_not_see_is_an_error_that_names_it(archive: Path) -> None:
    path = datasets.prepare(options(archive), log=lambda line: None)
    archive.unlink()
    assert len(datasets.mapped(path, options(archive), 1).train) == 16, "the source is not looked at"
    shutil.rmtree(path)
    with pytest.raises(UserError, match=rf"{path}: not there"):
        datasets.mapped(path, options(archive), 1)


def test_threads_at_once_decode_once(archive: Path) -> None:
    log: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        fingerprints = {data.fingerprint for data in pool.map(lambda _: load(archive, log), range(4))}
    assert len(fingerprints) == 1
    assert sum("decoded images kept" in line for line in log) == 1


def test_a_process_killed_while_decoding_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 200)
    place = tmp_path / "rankzero-cache"
    program = (
        "from job.config.settings import Data\nfrom job.data import datasets\n"
        f"datasets.prepare(Data(source='folder', root={str(tree)!r}, image_size=64))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY) as process:
        deadline = time.monotonic() + 60
        while not any(".tmp-" in path.name for path in place.glob("*")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert len(load(tree, image_size=64).train) == 320
    assert len(stored(place)) == 1, "what the killed process left is cleared away"


def test_a_source_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")

    @contextmanager
    def meddle(description: str, total: int | None, unit: str) -> Iterator[cache.Advance]:
        shutil.copy(tree / "train" / "cat" / "000.png", tree / "train" / "cat" / "new.png")
        yield lambda amount: None

    with pytest.raises(UserError, match="changed while it was read"):
        datasets.load(options(tree), 1, progress=meddle, log=lambda line: None)


def test_progress_reaches_its_end(archive: Path) -> None:
    seen: dict[str, list[int]] = {}

    @contextmanager
    def record(description: str, total: int | None, unit: str) -> Iterator[cache.Advance]:
        seen[description] = [total or 0, 0]

        def advance(amount: int) -> None:
            seen[description][1] += amount

        yield advance

    datasets.prepare(options(archive), record, log=lambda line: None)
    assert set(seen) == {"hashing pets.tar.gz", "decoding pets.tar.gz"}
    for total, done in seen.values():
        assert 0 < done <= total


def test_start_up_imports_neither_torchvision_nor_accelerate() -> None:
    program = "import sys, job.data.datasets; print(sorted({'torchvision', 'accelerate'} & set(sys.modules)))"
    output = subprocess.check_output([sys.executable, "-c", program], cwd=REPOSITORY, text=True)
    assert output.strip() == "[]"


def test_the_fingerprint_depends_on_images_and_labels(tmp_path: Path) -> None:
    one, same, other = (make_tree(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert load(one).fingerprint == load(same).fingerprint != load(other).fingerprint
    (same / "train" / "cat" / "000.png").rename(same / "train" / "dog" / "000b.png")
    assert load(one).fingerprint != load(same).fingerprint
