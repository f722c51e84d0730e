"""The model of scaling.py as tables: held against this machine, and for clusters that nobody here has."""

from __future__ import annotations

import math

import scaling
from figures import NETWORKS, Record, Table, distinct, figure, find, links_of, loops, network, number


def checked(record: Record) -> Table:
    rows = []
    links = links_of(record)
    for model in NETWORKS:
        for sample in distinct(record, "processes", model):
            n, batch, loop = sample["processes"], sample["batch"], sample["loop"]
            wanted = {"model": model, "processes": n, "batch": batch}
            alone = figure(find(record, "processes", loop=f"{loop}, no exchange", **wanted), "rate")
            found = figure(find(record, "processes", loop=loop, **wanted), "rate")
            if loop not in ("strong", "weak") or n not in links or not alone.values or "needs" not in record:
                continue
            compute = batch / alone.middle
            exchange = scaling.exchange_seconds(n, 4 * record["needs"][network(model)]["parameters"], links[n])
            measured = batch / found.middle
            cells = [
                NETWORKS[model],
                loop,
                str(n),
                *(number(1e3 * t) for t in (compute, exchange, compute + exchange)),
            ]
            rows.append([*cells, number(1e3 * measured), f"{(compute + exchange) / measured - 1:+.0%}"])
    return Table(
        "The model against this machine",
        """ms a step: jobs without exchange, plus an all-reduce of the gradients by the formula below with this
        machine's latency and bandwidth; on a CPU nothing hides it. The rest is what exchanging takes
        besides.""",
        ["network", "way", "processes", "compute", "exchange", "predicted", "measured", "apart"],
        rows,
    )


def on_paper(record: Record) -> Table:
    if "needs" not in record:
        return Table("On paper", "", ["GPUs"])
    cluster = _cluster(record)
    images = 40_000
    rows = []
    for model in NETWORKS:
        need = record["needs"][network(model)]
        for gpus, batch in [(n, 128) for n in (1, 8, 64, 1024)] + [(n, 128 * n) for n in (8, 64, 1024)]:
            cells = [NETWORKS[model], str(gpus), f"{batch:,}"]
            if batch % gpus:
                rows.append([*cells, *[""] * 9, "fewer images than GPUs: refused"])
                continue
            step = scaling.step(cluster, gpus, batch, multiply_adds=need["training"], parameters=need["parameters"])
            one = scaling.step(cluster, 1, batch // gpus, multiply_adds=need["training"], parameters=need["parameters"])
            linear = scaling.linear_rate(batch)
            steps = math.ceil(images / batch)
            rows.append(
                [
                    *cells,
                    f"{linear:g}" if linear else "",
                    f"{scaling.root_rate(batch):.2g}",
                    *(f"{1e3 * t:.3f}" for t in (step.compute, step.exchange, step.exposed, step.seconds)),
                    f"{one.seconds / step.seconds:.0%}",
                    f"{steps}",
                    f"{steps * step.seconds:.3f}",
                    "more images than there are" if batch > images else "" if linear else "rate unknown",
                ]
            )
    known = "Assumed" if cluster is scaling.H100 else "From this machine's GPU"
    inside, network_link = _words(cluster.inside), _words(cluster.network)
    columns = ["network", "GPUs", "global batch", "linear", "root", "compute", "exchange", "exposed", "step"]
    return Table(
        "On paper: 8, 64 and 1,024 GPUs",
        f"""Not measured. {cluster.name}: {inside} inside a node, {network_link} between nodes (datasheets; NCCL's
        src/graph/tuning.cc), {cluster.memory / 1e12:.2f} TB/s of memory. {known}: {cluster.arithmetic / 1e12:.0f}
        TFLOP/s in bf16, and {cluster.fixed * 1e6:.0f} µs a step that depend on nothing. Times
        in ms; an epoch of {images:,} images in seconds; efficiency is against one GPU with as many images per GPU.

        An all-reduce of S bytes takes 2(g-1)/g S / bandwidth + 2(g-1) latencies in a node of g GPUs, then
        2(m-1)/m S/g / bandwidth + 2 log2(m) latencies between m nodes; the backward pass hides all but the last 25 MiB.

        `train.batch_size` is global: it stays 128 on any number of GPUs, so that the numbers stay the same, and each
        GPU gets less to do; 1,024 GPUs are more than it has images. Who lets it grow has to scale the learning rate:
        linearly (Goyal et al. 2017, arXiv:1706.02677; SGD with warm-up, held up to 8,192) or by the root (Malladi et
        al. 2022, arXiv:2205.10287; Adam).""",
        [*columns, "efficiency", "steps", "epoch", "remark"],
        rows,
    )


def _cluster(record: Record) -> scaling.Cluster:
    """The cluster, with what one GPU does in training as it was measured here, where it was."""
    if not record["machine"]["gpus"]:
        return scaling.H100
    best = {}
    for model in NETWORKS:
        rates = [
            figure(find(record, "training", model=model, precision="bf16", loop=loop), "rate").middle
            for loop in loops(record, "training", model, "bf16")
        ]
        if not rates:
            return scaling.H100
        best[model] = scaling.BATCH / max(rates)
    need = record["needs"]
    return scaling.fitted(best["simple_cnn"], best["vgg16"], need[network("vgg16")])


def _words(link: scaling.Link) -> str:
    return f"{link.bandwidth / 1e9:.0f} GB/s and {link.latency * 1e6:.1f} µs a step"
