"""Images on disk become batches on the device.

Others use datasets: Dataset, Split, prepare, mapped, load, to_device; augment: address; batches: Batches, Part,
normalisation; decoding: readers, cores, Deep, Encoded, Pixels, FORMATS, LARGEST, RESIZE; archives: below;
cifar10: CLASSES, PUBLISHED; local.disk: flush.
"""
