"""The Space: the page of `mscl-demo` for checkpoints on the Hub, uploaded together with the source of mscl_hf.

The variable MSCL_HF_MODELS lists the checkpoints to choose from, separated by spaces; visitors can type the name of any public one.
"""

import os

from mscl_hf.demo.page import build, launch

demo = build(os.environ.get("MSCL_HF_MODELS", "").split(), local=False)

if __name__ == "__main__":
    launch(demo)
