"""The page of `mscl-demo`."""
