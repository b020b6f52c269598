"""Runs the tables: their jobs, the launchers of the jobs, and the files of results."""
