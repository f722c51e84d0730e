"""The benchmark: one command leaves a record and a page that says nothing but what the record says."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import cases
import contenders
import floors
import page
import pytest
import scaling
from support.jobs import REPOSITORY, environment

BENCHMARKS = REPOSITORY / "tests" / "benchmarks"


@pytest.mark.long
def test_a_quick_run_leaves_a_record_and_the_page_of_that_record(tmp_path: Path, small: list[str]) -> None:
    record_file = tmp_path / "record.json"
    chosen = "training: simple_cnn fp32|start-up|floors: machine"
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--quick", "--only", chosen, "--threads", "1"]
    apart = [part for word in small for part in word.split("=")]  # as people write them
    finished = subprocess.run(
        [*command, "--out", str(record_file), *apart], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    record = json.loads(record_file.read_text())
    samples = {sample["loop"]: sample for sample in record["samples"]}
    assert set(samples) == {"reference loop", "rankzero", "python job/train.py"}, finished.stdout
    reached = list(samples.pop("python job/train.py")["values"]["reached"].values())
    assert reached == sorted(reached)
    assert len(reached) > 5
    assert record["data"]["train"] == 344
    assert record["data"]["test"] == 103
    assert record["machine"]["cores"] > 0
    written = record_file.with_suffix(".md").read_text()
    for sample in samples.values():
        assert sample["wall_seconds"] > 0
        assert sample["peak_host_bytes"] > 1e8
        assert len(sample["values"]["losses"]) == 2
        rate = statistics.median(sample["values"]["images_per_second"])
        shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        assert any(sample["loop"] in line and f" {shown}" in line for line in written.splitlines())
        assert shown in finished.stdout
    assert str(Path(small[1].partition("=")[2]).parent) not in record_file.read_text(), (
        "where the pictures lie is private"
    )
    again = page.markdown([json.loads(page.to_json(record))], ["record.json"])
    assert again == written


def test_the_page_in_docs_is_the_one_that_its_record_makes() -> None:
    record = REPOSITORY / "docs" / "performance.json"
    if not record.exists():
        pytest.skip("nothing was measured yet")
    made = page.markdown([json.loads(record.read_text())], [record.name])
    assert record.with_suffix(".md").read_text() == made


def test_each_contender_that_is_named_is_there() -> None:
    assert set(cases.CONTENDERS) == set(contenders.CONTENDERS)


def test_operations_follow_from_the_shapes_of_the_layers() -> None:
    needs = floors.needs()
    assert needs["simple_cnn"]["forward"] == 352_800 + 240_000 + 58_920
    assert needs["simple_cnn"]["training"] == 3 * 651_720 - 352_800, "nobody asks for the pictures' gradient"
    assert needs["simple_cnn"]["parameters"] == 62_006
    collapsed = needs["vgg16 without its repetition"]
    assert collapsed["parameters"] == 33_638_218
    assert round(collapsed["forward"] / 1e6) == 332


def test_an_exchange_on_paper_takes_what_a_ring_takes() -> None:
    link = scaling.Link(bandwidth=1e9, latency=1e-6)
    assert scaling.exchange_seconds(2, 1e9, link) == pytest.approx(1 + 2e-6)
    assert scaling.exchange_seconds(4, 1e9, link) == pytest.approx(1.5 + 6e-6)
    fitted = scaling.measured_link(2, {"0": 2e-6, "1000000000": 1 + 2e-6})
    assert fitted.bandwidth == pytest.approx(1e9)
    assert fitted.latency == pytest.approx(1e-6)
    assert scaling.linear_rate(1024) == pytest.approx(0.008)
    assert scaling.linear_rate(131_072) is None, "nobody knows one for so large a batch"
