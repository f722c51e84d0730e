"""Configuration: what users type, what they get, and what they are told when it is wrong."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import yaml
from support.jobs import REPOSITORY, run_job

from job.config import command_line
from job.config.errors import UserError
from job.config.plain import to_dict, to_yaml
from job.config.settings import Config

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


def parse(*argv: str) -> Config:
    return command_line.parse(list(argv), description="")


def test_every_shipped_configuration_is_read_and_says_what_to_expect() -> None:
    assert len(CONFIGS) >= 3
    for path in CONFIGS:
        parse("--config", str(path))
        assert "xpected" in path.read_text().split("model:")[0], f"{path} has no header"


def test_without_a_configuration_the_reference_recipe_of_simple_cnn_is_taken() -> None:
    assert parse() == parse("--config", str(REPOSITORY / "configs" / "simple_cnn.yaml"))
    reference = parse()
    assert (reference.train.epochs, reference.train.batch_size, reference.train.seed) == (10, 128, 42)
    assert (reference.optimizer.name, reference.optimizer.learning_rate) == ("adam", 0.001)
    assert reference.data.mean == reference.data.std == (0.5, 0.5, 0.5)


def test_a_setting_on_the_command_line_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("train: {epochs: 4, batch_size: 64}\noptimizer: {learning_rate: 1e-3}\n")
    settings = parse("--config", str(file), "--train.epochs=5")
    assert (settings.train.epochs, settings.train.batch_size, settings.train.seed) == (5, 64, 42)
    assert settings.optimizer.learning_rate == 0.001


@pytest.mark.parametrize(("word", "means"), [("none", []), ("flip", ["flip"]), ("flip_crop", ["flip", "crop"])])
def test_the_one_word_that_augment_once_was_is_read_as_the_list_that_it_meant(
    word: str, means: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(f"data: {{augment: {word}}}\n")
    old = to_dict(parse())
    old["data"]["augment"] = word
    for settings in (parse("--config", str(file)), parse("--data.augment", word), command_line.from_dict(old, "old")):
        assert settings.data.augment == means
        assert yaml.safe_load(to_yaml(settings))["data"]["augment"] == means


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3"])
def test_a_number_in_scientific_notation_is_a_number(text: str, tmp_path: Path) -> None:
    assert parse("--optimizer.learning_rate", text).optimizer.learning_rate == 0.001
    file = tmp_path / "own.yaml"
    file.write_text(f"optimizer:\n  learning_rate: {text}\n")
    assert parse(f"--config={file}").optimizer.learning_rate == 0.001


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--train.epoks=3"], "unknown key train.epoks: did you mean train.epochs?"),
        (["--epochs=3"], "unknown key epochs: did you mean train.epochs?"),
        (["--model.nam=vgg16"], "unknown key model.nam: did you mean model.name?"),
        (["--nonsense=3"], "unknown key nonsense"),
        (["--train.epochs=three"], "train.epochs=three: must be a whole number"),
        (["--train.epochs=2.5"], "train.epochs=2.5: must be a whole number"),
        (["--train.epochs=true"], "train.epochs=True: must be a whole number"),
        (["--train.epochs=0"], "train.epochs=0: must be from 1 to 1000000"),
        (["--train.batch_size=-1"], "train.batch_size=-1: must be from 1 to 1000000"),
        (["--optimizer.learning_rate=nan"], "optimizer.learning_rate=nan"),
        (["--optimizer.learning_rate=-1"], "optimizer.learning_rate=-1.0: must be a positive number"),
        (["--data.validation=1"], "data.validation=1.0: must be from 0"),
        (["--data.std=[1,1,0]"], "data.std"),
        (["--data.image_size=64"], "data.image_size=64: cifar10's images are 32 pixels; use 32, or data.source folder"),
        (["--data.source=shapes10", "--data.image_size=8"], "shapes10's images are 32 pixels"),
        (["--optimizer.name=rmsprop"], "optimizer.name=rmsprop: must be one of adam, adamw, sgd"),
        (["--model.freeze=head"], "model.freeze: must be one of backbone or a list, each text or null"),
        (["--checkpoint.keep=1"], "checkpoint.keep=1: must be from 2 to 1000000"),
        (["--schedule.warmup_epochs=10"], "schedule.warmup_epochs=10: must be less than train.epochs=10"),
        (["--model.weights=imagenet"], "model.weights=imagenet: there are none for simple_cnn"),
        (["--data.augment=[flip,zoom]"], "a list, each one of flip, crop, resized_crop, rotate, color, erasing"),
        (["--data.augment=crop"], "must be a list, each one of flip"),
        (["--train.mixup=-1"], "train.mixup=-1.0: must be from 0 up to"),
        (["--train.cutmix=nan"], "train.cutmix=nan: must be a number"),
        (["--run.trackers=[excel]"], "must be a list, each one of tensorboard, wandb, mlflow"),
        (["--train.batch_size"], "--train.batch_size: needs a value"),
        (["--train={epochs: 3}"], "--train is a section"),
        (["--train.seed_of={weights: 3}"], "--train.seed_of is a section: give its settings one by one"),
        (["--train.seed_of.wieghts=3"], "unknown key train.seed_of.wieghts: did you mean train.seed_of.weights?"),
        (["--train.seed_of.order=-1"], "train.seed_of.order=-1: must be null or from 0 to 4294967295"),
        (["--train.seed_of.split=x"], "train.seed_of.split: must be a whole number or null"),
        ([f"--train.epochs={10**400}"], "a number of too many digits"),
        (["--train.epochs=" + "9" * 5001], "has more than 4096 characters"),
        ([f"--optimizer.learning_rate=0x{'f' * 400}"], "a number of too many digits"),
        (["--train.epochs=1000000000"], "must be from 1 to 1000000"),
        (["--train.batch_size=3000000000"], "must be from 1 to 1000000"),
        (["--train.gradient_accumulation=3000000000"], "must be from 1 to 10000"),
        (["--runtime.threads=1000000"], "runtime.threads=1000000: must be null or from 1 to 1024"),
        (["--runtime.timeout=1e20"], "runtime.timeout=1e+20: must be from 1 up to but not including 1e+07"),
        (["--run.trackers=&a [*a]"], "aliases are not taken"),
        (["--train.epochs=!!int x"], "tags are not taken"),
        ([f"--data.mean={'[' * 3000}"], "nested too deeply"),
        (["--data.root=~nosuchuser/x"], "data.root=~nosuchuser/x: must be a path that can exist on this machine"),
        (["--data.cache=~nosuchuser"], "data.cache=~nosuchuser: must be a path"),
        (["--model.weights=~nosuchuser"], "model.weights=~nosuchuser: must be a path"),
        (["--run.dir=~nosuchuser"], "run.dir=~nosuchuser: must be a path"),
        (["--run.dir=/x/" + "y" * 256], "must be a path"),
        (["--run.dir="], "run.dir=: must be a path"),
        (["3"], "unexpected argument '3'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(argv: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {epochs: 1, epochs: 2}", "line 1: not valid YAML: key 'epochs' is given twice"),
        ("train: {epoch: 2}", "unknown key train.epoch"),
        ("trian: {epochs: 2}", "unknown key trian.epochs"),
        ("train:\n", "must be a section of settings"),
        ("train: {seed_of: 3}", "must be a section of settings"),
        ("train: {seed_of:}", "must be a section of settings"),
        ("train: {seed_of: {weight: 3}}", "unknown key train.seed_of.weight"),
        ("- 1", "must hold settings"),
        ("", "must hold settings"),
        ("train: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['touch /tmp/pwned']", "not valid YAML"),
        ("optimizer: {learning_rate: .inf}", "optimizer.learning_rate=inf"),
        ("train: &a {epochs: *a}", "line 1: not valid YAML: aliases are not taken, write the value itself"),
        ("a: &a {b: 1}\nc: [*a, *a, *a]", "line 2: not valid YAML: aliases"),
        ("- " * 30_000, "nested too deeply"),
        ("train: {epochs: " + "9" * 5001 + "}", "a number of too many digits"),
        ("train: {epochs: 1" + ":1" * 30_000 + "}", "a number of too many digits"),
        ("train: {epochs: 2026-13-01}", "month must be in 1..12"),
        ("train: {epochs: 0x_}", "not valid YAML"),
        ("".join(f"k{i}: 1\n" for i in range(7000)), "unknown key k0"),
        ("x" * 100_000, "has more than 65536 bytes"),
        ("train: {epochs: }", "train.epochs=null: needs a value"),
        ("data: {root: null}", "data.root=null: needs a value"),
        ("run: {trackers: ~}", "run.trackers=null: needs a value"),
        ('data: {root: "a\\0b"}', "must be a path"),
        ('data: {root: "\\u202e\\x1b[2J\\ud800"}', r"data.root=\u202e\x1b[2J\ud800: must be a path"),
        ('train: {"a\\nb": 1}', "unknown key train.a\\nb"),
    ],
)
def test_a_mistake_in_the_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        parse("--config", str(file))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train": None}, "train=None in saved: must be a section"),
        ({"train": [1]}, "must be a section"),
        ({"trian": {}}, "unknown key trian"),
        ({"optimizer": {"learning_rate": float("inf")}}, "saved: optimizer.learning_rate=inf"),
    ],
)
def test_a_mistake_in_settings_that_a_run_kept_is_named_with_where_they_stand(settings, says) -> None:
    with pytest.raises(UserError) as caught:
        command_line.from_dict(settings, "saved")
    assert says in str(caught.value)


def test_a_configuration_that_is_no_text_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    for name, encoding in (("utf-16", "utf-16"), ("latin-1", "latin-1")):
        (tmp_path / name).write_text("train: {epochs: 3} # é", encoding=encoding)
    os.mkfifo(tmp_path / "pipe")
    read, write = os.pipe()
    names = {"no text in UTF-8": ["utf-16", "latin-1"], "cannot be read": [tmp_path, "a\0b", "/proc/self/mem"]}
    names["no regular file"] = ["pipe", "/dev/zero", "/dev/null", f"/dev/fd/{read}"]
    for says, paths in names.items():
        for path in paths:
            with pytest.raises(UserError, match=says):
                parse("--config", str(tmp_path / path))
    os.close(read)
    os.close(write)


def test_a_configuration_with_a_byte_order_mark_and_names_of_any_bytes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text('train: {epochs: 3}\ndata: {root: "caf\\udce9"}', encoding="utf-8-sig")
    settings = parse("--config", str(file))
    assert (settings.train.epochs, os.fsencode(settings.data.root)) == (3, b"caf\xe9")


def test_help_shows_every_key_with_its_meaning_and_default() -> None:
    shown = run_job("train.py", "--help")
    assert shown.returncode == 0
    text = " ".join(shown.stdout.split())
    for section, keys in to_dict(Config()).items():
        for key in keys:
            assert f"--{section}.{key}" in text
    assert "images per optimizer step over all processes together (type: int, default: 128)" in text


@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("train", "--config --run.dir --check --nodes --gpus-per-node --print_config"),
        ("check", "--nodes --gpus-per-node"),
        ("prepare", "--config"),
        ("evaluate", "--run --split --data.root --data.source"),
    ],
)
def test_help_explains_the_commands_own_options_before_the_settings(
    command: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"job.{command}")
    with pytest.raises(SystemExit, match="0"):
        command_line.parse(["--help"], description=module.__doc__ or "")
    usage, told = capsys.readouterr().out.split("\n\n", 1)
    assert usage.count("\n") < 2
    own_part, settings = told.split("\noptions:\n", 1)
    explained = own_part.partition("Its own options:\n")[2]
    assert [option for option in own.split() if f"{option} " not in explained] == []
    assert own_part.count(f"job/{command}.py") or command == "check"
    assert "--model.name" in settings


def test_print_config_prints_a_file_that_gives_the_same_configuration(tmp_path: Path) -> None:
    shown = run_job("train.py", "--config", REPOSITORY / "configs/vgg16.yaml", "--train.epochs=3", "--print_config")
    assert shown.returncode == 0
    file = tmp_path / "printed.yaml"
    file.write_text(shown.stdout)
    assert parse("--config", str(file)) == parse("--config", str(REPOSITORY / "configs/vgg16.yaml"), "--train.epochs=3")


def test_a_configuration_survives_being_written_and_read(tmp_path: Path) -> None:
    settings = parse("--train.clip_norm=1.5", "--model.weights=a path/with spaces", "--run.trackers=[]")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(settings))
    assert parse("--config", str(file)) == settings
    assert command_line.from_dict(to_dict(settings), "x") == settings


def test_nothing_about_processes_is_in_configs_and_nothing_about_learning_in_launch() -> None:
    for path in CONFIGS:
        assert set(yaml.safe_load(path.read_text())) <= set(to_dict(Config()))
    for path in (REPOSITORY / "launch").glob("*.yaml"):
        assert not {"learning_rate", "epochs", "batch_size"} & set(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("world_size", "option", "parts"),
    [
        (1, "gradient_accumulation=1", 1),
        (4, "gradient_accumulation=2", 2),
        (1, "gradient_shards=4", 4),
        (4, "gradient_shards=4", 1),
    ],
)
def test_a_batch_is_cut_into_equal_parts(world_size: int, option: str, parts: int) -> None:
    assert parse(f"--train.{option}").parts(world_size) == parts


@pytest.mark.parametrize(
    ("world_size", "option", "says"),
    [
        (3, "gradient_accumulation=1", "does not divide by 3 processes x 1 parts each: use 126 or 129"),
        (3, "gradient_accumulation=2", "does not divide by 3 processes x 2 parts each: use 126 or 132"),
        (256, "gradient_accumulation=1", "does not divide by 256 processes x 1 parts each: use 256"),
        (3, "gradient_shards=4", "train.gradient_shards=4 does not divide by 3 processes: use 6"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(world_size: int, option: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(f"--train.{option}").parts(world_size)
    assert says in str(caught.value)
