"""What is wrong with a data set, before any time goes into training on it."""
