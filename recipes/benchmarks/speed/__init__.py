"""Speed of the losses, of a training step, of the metric and of exported networks."""
