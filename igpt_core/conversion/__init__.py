"""Other layouts of weights."""
