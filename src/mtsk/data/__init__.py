"""Arrays to batches: corpora, preparation, augmentation, data sets, the order of batches."""
