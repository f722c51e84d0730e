"""Images on disk become batches on the device."""
