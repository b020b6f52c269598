"""Ways to start a training or an evaluation as several processes, on one machine or on many."""
