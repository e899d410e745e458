"""Quality of samples beside real data, on the features of a network that knows pictures."""
