"""The papers' tables as they came out here: Markdown, plots, and one HTML page."""
