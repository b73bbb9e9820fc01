"""Turns logits into pixels: sampling, decoding, `generate`. Uses `model`; knows no head class."""
