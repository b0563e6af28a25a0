"""The methods that are compared: one file per row of the result tables."""
