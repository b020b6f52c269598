"""Files of other frameworks, read and written without these frameworks."""
