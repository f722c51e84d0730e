"""Images on disk become batches on the device.

Others use datasets: Dataset, Split, prepare, mapped, load, to_device; batches: Batches,
Part, address, normalisation; decoding: readers, cores, Encoded, Pixels, FORMATS, LARGEST; archives: below;
cifar10: CLASSES, PUBLISHED; local.disk: flush.
"""
