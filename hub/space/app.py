"""The Space: the page of `mscl-demo` for checkpoints on the Hub, beside the mscl_hf sources that it is uploaded with.

The variable MSCL_HF_MODELS names the checkpoints to choose from, parted by spaces; visitors can type any other that is public.
"""

import os

from mscl_hf.demo.page import build, launch

demo = build(os.environ.get("MSCL_HF_MODELS", "").split(), local=False)

if __name__ == "__main__":
    launch(demo)
