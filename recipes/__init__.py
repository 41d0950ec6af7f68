"""The command-line recipes. This file makes the folder a regular package, which editable installs need to find it inside mscl_hf."""
