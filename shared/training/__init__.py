"""The loop, and what surrounds it from the first batch to the score."""
