"""Runs the tables: their jobs, and the files of results."""
