"""A batch job from its options to its report."""
