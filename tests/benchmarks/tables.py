"""A record of measurements becomes tables of text, for a terminal as for a page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import floors
import paper
from figures import (
    NETWORKS,
    OURS,
    REFERENCE,
    Record,
    Table,
    best_rates,
    distinct,
    figure,
    find,
    links_of,
    loops,
    network,
    number,
    ratio,
)


def tables(record: Record) -> list[Table]:
    """All that the record has something for."""
    parts: list[Callable[[Record], Table]] = [
        _where,
        _training,
        _processes,
        _evaluation,
        _start,
        _whole_job,
        _memory,
        _exactness,
        _floors,
        _needs,
        paper.checked,
        paper.on_paper,
    ]
    return [table for table in (part(record) for part in parts) if table.rows or part_is_text(table)]


def part_is_text(table: Table) -> bool:
    """Whether a table is a paragraph."""
    return not table.columns


def _where(record: Record) -> Table:
    machine, samples = record["machine"], record["samples"]
    noisy = sum(sample["noisy"] for sample in samples)
    gpus = f"{len(machine['gpus'])} x {machine['gpus'][0]}, CUDA {machine['cuda']}; " if machine["gpus"] else "no GPU; "
    features = f" ({', '.join(machine['cpu_features'])})" if machine["cpu_features"] else ""
    data = record.get("data", {})
    text = f"""{machine["cpu"]}{features}, {machine["cores"]} cores, {machine["memory_bytes"] / 1e9:.0f} GB; {gpus}
        Python {machine["python"]}, torch {machine["torch"]}, torchvision {machine["torchvision"]}, accelerate
        {machine["accelerate"]}; commit {machine["commit"]}, {record["when"]}. Threads of a single process:
        {machine["threads"] or "as each program chooses"}. Pictures: {data.get("source")}, {data.get("train", 0):,}
        to train, {data.get("validation", 0):,} to validate, {data.get("test", 0):,} to test; batch 128, Adam.

        {len(samples)} samples, of which {noisy} are left out: during these, other processes kept more than 5% of
        the cores busy. A figure with * has disturbed samples alone."""
    if record.get("quick"):
        text += " This was a quick run, on few images: it shows that the measurement works, and no more."
    out = "; ".join(f"{name}: {why}" for name, why in record["left_out"].items())
    if not machine["bf16"]:
        text += """ This CPU has no bf16 units: bf16 is emulated; SimpleCNN's figures in it are of 50 steps an epoch,
        and VGG16 is left out, for its steps would take minutes."""
    return Table("Where", text + (f"\n\nNot measured: {out}." if out else ""))


def _training(record: Record) -> Table:
    rows = []
    rates = best_rates(record)
    for model in NETWORKS:
        base = find(record, "training", model=model, precision="fp32", loop=REFERENCE)
        for precision in ("fp32", "bf16"):
            for loop in loops(record, "training", model, precision):
                found = figure(find(record, "training", model=model, precision=precision, loop=loop), "rate")
                if not found.values:
                    continue
                cells = [NETWORKS[model], precision, loop, str(found), found.spread, number(128e3 / found.middle)]
                cells.append(ratio(found.middle, figure(base, "rate").middle))
                if rates:
                    least = floors.step_seconds(record["needs"][network(model)], rates, precision=precision, batch=128)
                    floor = 128 / max(least.values())
                    cells += [number(floor), max(least, key=lambda kind: least[kind]), f"{found.middle / floor:.0%}"]
                rows.append(cells)
    floor_columns = ["floor, images/s", "bound by", "share of it"] if rates else []
    return Table(
        "Training",
        """Images per second over whole epochs; × is the ratio to the reference loop in fp32. The reference loop is the
        tutorial's: images in memory, through PIL one by one. Floors: operations over the measured matrix rate,
        bytes over the measured bandwidth, of the same network without redundant work (below).""",
        ["network", "precision", "loop", "images/s", "lowest to highest", "ms/step", "×", *floor_columns],
        rows,
    )


def _processes(record: Record) -> Table:
    rows = []
    for model in NETWORKS:
        base = figure(find(record, "training", model=model, precision="fp32", loop=OURS), "rate")
        if base.values and find(record, "processes", model=model):
            chosen = record["machine"]["threads"]
            label = f"one process, {chosen or 'all'} thread{'s' if chosen != 1 else ''}"
            rows.append(
                [
                    NETWORKS[model],
                    label,
                    "1",
                    "128",
                    str(base),
                    base.spread,
                ]
            )
            rows[-1] += [number(128e3 / base.middle), ratio(base.middle, base.middle), ""]
        for sample in distinct(record, "processes", model):
            n, batch, loop = sample["processes"], sample["batch"], sample["loop"]
            wanted = {"model": model, "processes": n, "batch": batch}
            found = figure(find(record, "processes", loop=loop, **wanted), "rate")
            alone = figure(find(record, "processes", loop=f"{loop}, no exchange", **wanted), "rate")
            share = f"{1 - found.middle / alone.middle:.0%}" if alone.values and loop in ("strong", "weak") else ""
            rows.append([NETWORKS[model], loop, str(n), str(batch), str(found), found.spread])
            rows[-1] += [number(batch * 1e3 / found.middle), ratio(found.middle, base.middle), share]
    return Table(
        "Several processes",
        """fp32. Strong: one global batch of 128, shared. Weak: 128 images for each process. No exchange: as many jobs
        side by side that know nothing of each other; what the exchange of gradients takes is the difference. × is
        the ratio to one process.""",
        ["network", "way", "processes", "global batch", "images/s", "lowest to highest", "ms/step", "×", "exchange"],
        rows,
    )


def _evaluation(record: Record) -> Table:
    rows = []
    images = record.get("data", {}).get("validation", 0)
    for model in NETWORKS:
        for precision in ("fp32", "bf16"):
            base = figure(find(record, "training", model=model, precision="fp32", loop=REFERENCE), "validation")
            for loop in loops(record, "training", model, precision):
                samples = find(record, "training", model=model, precision=precision, loop=loop)
                found = figure(samples, "validation")
                # Where the network is slow, there is no validation.
                if found.values and (model == "simple_cnn" or record["machine"]["gpus"]):
                    times = ratio(base.middle, found.middle)
                    cells = [NETWORKS[model], precision, loop, str(found), found.spread]
                    rows.append([*cells, number(images / found.middle), times])
    return Table(
        "Evaluation",
        f"Seconds for the {images:,} validation images after an epoch, with accuracy, and per class with the job.",
        ["network", "precision", "loop", "seconds", "lowest to highest", "images/s", "×"],
        rows,
    )


def _start(record: Record) -> Table:
    rows = []
    for model in NETWORKS:
        for loop in loops(record, "start-up", model, "fp32"):
            samples = find(record, "start-up", model=model, loop=loop)
            label = f"{NETWORKS[model]}, {loop}"
            first = figure(samples, "first step")
            stages = list(samples[0]["values"].get("reached", {}))
            for before, stage in zip([None, *stages], stages, strict=False):
                took = [s | {"values": {"took": _stage(s, stage, before)}} for s in samples]
                seconds = figure(took, "took")
                rows.append([label, stage, str(seconds), seconds.spread])
            rows.append([label, "**command to first step**", str(first), first.spread])
    return Table(
        "Start-up",
        """Seconds from the command until the first step is done, with the images decoded before. What comes
        before the script begins is the launcher.""",
        ["started as", "stage", "seconds", "lowest to highest"],
        rows,
    )


def _stage(sample: dict[str, Any], stage: str, before: str | None) -> float:
    reached = sample["values"]["reached"]
    took: float = reached[stage] - (reached[before] if before else 0.0)
    return took


def _whole_job(record: Record) -> Table:
    rows = []
    base = figure(find(record, "whole job", loop=REFERENCE), "wall")
    for loop in loops(record, "whole job", "simple_cnn", "fp32"):
        samples = find(record, "whole job", loop=loop)
        found = figure(samples, "wall")
        accuracy = f"{samples[0]['values']['accuracy']:.2%}"
        share = f"{found.middle / base.middle:.0%}" if base.values else ""
        rows.append([loop, str(found), found.spread, share, accuracy])
    return Table(
        "Whole job",
        """SimpleCNN in fp32, 10 epochs, each validated, then tested with accuracy per class: seconds from the command
        to its end. The job also keeps checkpoints and metrics and writes its report.""",
        ["loop", "seconds", "lowest to highest", "of the reference", "test accuracy"],
        rows,
    )


def _memory(record: Record) -> Table:
    rows = []
    for table in ("training", "processes", "start-up"):
        for sample in distinct(record, table):
            keys = ("model", "precision", "loop", "processes")
            samples = find(record, table, batch=sample["batch"], **{key: sample[key] for key in keys})
            device = [s["values"]["peak_device_bytes"] for s in samples if s["values"].get("peak_device_bytes")]
            if table != "training" and not device:
                continue
            host = max(s["peak_host_bytes"] for s in samples) / 1e6
            on_device = f"{max(device) / 1e6:,.0f}" if device else ""
            rows.append([NETWORKS[sample["model"]], sample["precision"], sample["loop"], f"{host:,.0f}", on_device])
    return Table(
        "Peak memory",
        """MB: resident on the host, with libraries and mapped images, and what torch allocated on the device, where
        there is one. The job's device memory is taken in the start-up runs.""",
        ["network", "precision", "loop", "host", "device"],
        rows,
    )


def _exactness(record: Record) -> Table:
    rows = []
    for model, found in record.get("exactness", {}).items():
        own, plain = found["losses"]
        apart = [abs(a - b) / b for a, b in zip(own, plain, strict=True)]
        first = f"{own[0]:.6f}, {plain[0]:.6f}"
        accuracy = ", ".join(f"{share:.2%}" for share in found["accuracy"]) if model == "simple_cnn" else ""
        within = [f"{max(apart[:n]):.1e}" if len(apart) >= n else "" for n in (1, 3, 20, 100)]
        rows.append([NETWORKS[model], str(len(own)), first, *within, f"{max(apart):.1e}", accuracy])
    return Table(
        "The same numbers",
        """The job in fp32 beside a plain loop over the same batches, with the tutorial's network or torchvision's VGG16
        in contiguous memory and torch's default Adam: by what share losses are apart, at most. Rounding is 6e-08;
        training amplifies it.""",
        ["network", "steps", "first losses", "step 1", "in 3", "in 20", "in 100", "in all", "test accuracy"],
        rows,
    )


def _floors(record: Record) -> Table:
    rates = best_rates(record)
    rows = []
    for kind, label in (
        ("fp32", "fp32 product or convolution"),
        ("tf32", "the same in TF32"),
        ("bf16", "the same in bf16"),
    ):
        if kind in rates:
            rows.append([label, f"{number(rates[kind] / 1e9)} GFLOP/s"])
    if rates:
        rows.append(["copy of memory, read and written", f"{rates['bandwidth'] / 1e9:,.1f} GB/s"])
    for n, link in links_of(record).items():
        size = f"{link.bandwidth / 1e9:,.2f} GB/s, {link.latency * 1e6:,.0f} µs a step"
        rows.append([f"all-reduce, {n} processes", size])
    return Table("What the machine does", "The best of all rounds; all-reduces: medians.", ["what", "rate"], rows)


def _needs(record: Record) -> Table:
    names = {"simple_cnn": "SimpleCNN", "vgg16": "VGG16", "vgg16 without its repetition": "VGG16, each input once"}
    rows = [
        [
            names[name],
            f"{need['parameters']:,.0f}",
            f"{need['forward'] / 1e6:,.2f}",
            f"{need['training'] / 1e6:,.2f}",
            f"{need['training'] * 2 * 128 / 1e9:,.1f}",
            f"{floors.ADAM_BYTES * need['parameters'] / 1e6:,.1f}",
            f"{128 * (floors.PICTURE_BYTES + 2 * need['activations']) / 1e6:,.1f}",
        ]
        for name, need in record.get("needs", {}).items()
    ]
    columns = ["network", "parameters", "MMAC forward", "MMAC training", "GFLOP/step"]
    return Table(
        "What a step needs",
        """Multiply-adds of convolutions and linear layers for an image, from the layers' shapes; operations and bytes
        of a step of 128 images in fp32. At 32 x 32 VGG16's last feature map is one pixel, which it repeats 49 times
        before the first linear layer; floors are of each input once.""",
        [*columns, "MB/step, Adam", "MB/step, images and activations"],
        rows,
    )
