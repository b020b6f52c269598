"""Ways to start one training, or one evaluation, as several processes on one machine or many."""
