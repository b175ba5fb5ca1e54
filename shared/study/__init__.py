"""Several runs seen together: sweeps over specs and seeds, comparisons of runs, scaling fits."""
