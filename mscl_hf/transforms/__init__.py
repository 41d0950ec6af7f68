"""Crops and views of samples: geometry in the workers, color on the device."""
