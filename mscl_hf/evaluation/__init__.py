"""Prediction of images, and mean IoU over a data set."""
