"""Pictures to tokens and back: palettes, their lookup table, pixels, the image processor."""
