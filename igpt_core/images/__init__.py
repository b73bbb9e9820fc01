"""Turns pictures into tokens and back: palettes, pixels, the image processor. Uses `files`."""
