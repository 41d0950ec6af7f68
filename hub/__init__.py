"""Commands and templates for the Hub. This file makes the folder a package, which editable installs need to find it in mscl_hf."""
