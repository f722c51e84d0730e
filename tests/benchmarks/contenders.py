"""Other ways to train the reference's network on the same pictures, each in its library's usual form.

    python tests/benchmarks/contenders.py NAME [the job's settings]

Prints a JSON object for each epoch, or what is missing where the library is not installed. torchvision, timm and
accelerate read picture files: they need ``--data.source folder`` with a directory. What is not part of feeding and
training (logs, checkpoints, progress bars) is switched off.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch
from reference import NORMALISE, Pictures, autocast, device_of, network, say
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from job.config import command_line
from job.config.settings import Config
from job.data import datasets

Batches = Iterable[tuple[Tensor, Tensor]]
CLASSES = 10


def main() -> None:
    """Run one of them."""
    settings = command_line.parse(sys.argv[2:], description=__doc__ or "")
    torch.manual_seed(settings.train.seed)
    try:
        CONTENDERS[sys.argv[1]](settings)
    except ImportError as error:
        say(missing=error.name or str(error))


def workers() -> int:
    """Processes that decode. On a CPU without idle cores they cost more than they bring."""
    return min(8, len(os.sched_getaffinity(0)) - 1) if torch.cuda.is_available() else 0


def torchvision_style(settings: Config) -> None:
    """torchvision's reference for classification: an ImageFolder, and loss and two accuracies read at each step."""
    from torchvision.datasets import ImageFolder

    files = ImageFolder(str(Path(settings.data.root, "train")), NORMALISE)
    loader = DataLoader(
        files, settings.train.batch_size, shuffle=True, num_workers=workers(), pin_memory=torch.cuda.is_available()
    )
    meters = dict.fromkeys(("loss", "top1", "top5"), 0.0)

    def after(loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        ranked = logits.topk(5, 1).indices == labels[:, None]
        meters["top1"] += ranked[:, :1].float().sum().item()
        meters["top5"] += ranked.float().sum().item()
        meters["loss"] += loss.item()

    _plain(settings, len(files), lambda: loader, after)


def timm_loader(settings: Config) -> None:
    """timm's data set and loader without augmentation, in a plain loop."""
    from timm.data import create_dataset, create_loader

    files = create_dataset("", root=str(Path(settings.data.root, "train")))
    half = (0.5, 0.5, 0.5)
    loader = create_loader(
        files,
        (3, 32, 32),
        settings.train.batch_size,
        is_training=True,
        no_aug=True,
        use_prefetcher=torch.cuda.is_available(),
        num_workers=workers(),
        persistent_workers=workers() > 0,
        mean=half,
        std=half,
        device=device_of(settings),
    )
    _plain(settings, len(loader) * settings.train.batch_size, lambda: loader)


def accelerate_style(settings: Config) -> None:
    """accelerate's vision example without augmentation: picture files, batches normalised where the model is."""
    from accelerate import Accelerator
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Resize, ToTensor

    accelerator = Accelerator(cpu=settings.runtime.device == "cpu")
    files = ImageFolder(str(Path(settings.data.root, "train")), Compose([Resize((32, 32)), ToTensor()]))
    loader = DataLoader(files, settings.train.batch_size, shuffle=True, num_workers=workers())
    model = network(settings.model.name, CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.optimizer.learning_rate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    mean = torch.full((1, 3, 1, 1), 0.5, device=accelerator.device)

    def epoch() -> int:
        for images, labels in loader:
            loss = F.cross_entropy(model((images - mean) / mean), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return len(files)

    _timed(settings, epoch)


def lightning_trainer(settings: Config) -> None:
    """Lightning's Trainer over the reference's data set."""
    import lightning

    dataset = datasets.load(settings.data, settings.train.seed, log=lambda _: None)
    loader = DataLoader(Pictures(dataset.train), settings.train.batch_size, shuffle=True)

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network(settings.model.name, len(dataset.classes))

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=settings.optimizer.learning_rate)

        def on_train_epoch_start(self) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            _wait()
            say(images_per_second=len(dataset.train) / (time.perf_counter() - self.began))

    lightning.Trainer(
        accelerator="cpu" if device_of(settings).type == "cpu" else "gpu",
        devices=1,
        max_epochs=settings.train.epochs,
        precision="bf16-mixed" if settings.runtime.precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), loader)


def ffcv_loader(settings: Config) -> None:
    """FFCV's loader over raw pictures in its own file format, in a plain loop."""
    import numpy as np
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    dataset = datasets.load(settings.data, settings.train.seed, log=lambda _: None)
    pictures, device = Pictures(dataset.train), device_of(settings)

    class Raw(torch.utils.data.Dataset[tuple[Any, int]]):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return np.ascontiguousarray(pictures.images[index]), pictures.labels[index]

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "train.beton"))
        DatasetWriter(file, {"image": RGBImageField(write_mode="raw"), "label": IntField()}).from_indexed_dataset(Raw())
        loader = Loader(
            file,
            batch_size=settings.train.batch_size,
            num_workers=max(1, workers()),
            order=OrderOption.RANDOM,
            pipelines={
                "image": [SimpleRGBImageDecoder(), ToTensor(), ToDevice(device), ToTorchImage()],
                "label": [IntDecoder(), ToTensor(), Squeeze(), ToDevice(device)],
            },
        )

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for images, labels in loader:
                yield images.float().div_(127.5).sub_(1), labels.long()

        _plain(settings, len(pictures), batches)


def _plain(
    settings: Config,
    images: int,
    batches: Callable[[], Batches],
    after: Callable[[Tensor, Tensor, Tensor], None] = lambda loss, logits, labels: None,
) -> None:
    """A plain loop over ``batches`` with the reference's optimizer; ``after`` gets loss, logits and labels."""
    device = device_of(settings)
    model: nn.Module = network(settings.model.name, CLASSES).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.optimizer.learning_rate)

    def epoch() -> int:
        for pictures, labels in batches():
            pictures, labels = pictures.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            optimizer.zero_grad()
            with autocast(settings):
                logits = model(pictures)
                loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            after(loss, logits, labels)
        return images

    _timed(settings, epoch)


def _timed(settings: Config, epoch: Callable[[], int]) -> None:
    for _ in range(settings.train.epochs):
        began = time.perf_counter()
        images = epoch()
        _wait()
        say(images_per_second=images / (time.perf_counter() - began))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


CONTENDERS = {
    "torchvision style, files": torchvision_style,
    "timm loader, files": timm_loader,
    "accelerate style, files": accelerate_style,
    "Lightning": lightning_trainer,
    "FFCV": ffcv_loader,
}

if __name__ == "__main__":
    main()
