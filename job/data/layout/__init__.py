"""Which images of a folder or archive are of which class and split: by its folders, by a file, or held out."""
