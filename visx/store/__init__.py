"""What lies in an output folder: the manifest, the files of each result, and how they are found again."""
