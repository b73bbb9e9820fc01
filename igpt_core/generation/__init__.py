"""From logits to pixels: sampling, decoding, generate."""
