"""What finished trainings say: reads the kept results, and makes measures, intervals, verdicts and cells of them."""
