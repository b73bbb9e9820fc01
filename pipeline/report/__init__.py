"""The report of a run: one page, its pictures and charts, the contact sheet, the dataset card.

Uses storage, run_directory and, for durations, engine."""
