"""The seam above the model: what an engine can do, and everything that all engines share."""
