"""Reports the results of the papers' tables: Markdown, plots, and one HTML page."""
