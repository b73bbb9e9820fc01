"""ImageGPT: what the jobs do, for one image or a few, in this process."""
