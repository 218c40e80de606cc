"""The referee: every operation in float64, as plainly as it can be written. It never refuses."""
