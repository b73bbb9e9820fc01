"""How many images may fail where what comes out has no list of them: a model, a palette."""

from pipeline.errors import OverErrorBudget


def check_error_budget(
    n_failed: int, n_rows: int, fraction: float, location: str, *, named: str
) -> None:
    """Raises OverErrorBudget where more images than the fraction failed. `named`: where they are
    named."""
    if n_failed > fraction * n_rows:
        raise OverErrorBudget(
            f"{n_failed} of {n_rows} images at {location} cannot be read, more than "
            f"--max-error-fraction allows ({fraction * n_rows:.0f}); {named}; next: "
            "repair the images or leave them out, or a higher --max-error-fraction"
        )
