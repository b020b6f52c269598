"""How the tables are run: jobs, their launchers, and what they leave behind."""
