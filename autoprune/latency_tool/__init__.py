"""Where the time of a network goes, and what cuts of each group would really save: `autoprune latency`."""
