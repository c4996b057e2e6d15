"""Several processes and machines at one search: what a worker does, and a crew of them."""
