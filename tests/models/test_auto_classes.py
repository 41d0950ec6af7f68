"""`import mscl_hf` is light, and registers the Auto classes in whatever order modules are imported."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto", "datasets", "matplotlib")
REGISTERED = """
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSemanticSegmentation
import mscl_hf
config = AutoConfig.for_model("mscl", backbone="test_resnet", out_indices=[3, 4], decoder_channels=8)
assert type(config) is mscl_hf.MsclConfig
for auto_class, model_class in (
    (AutoModel, mscl_hf.MsclBackbone), (AutoBackbone, mscl_hf.MsclBackbone), (AutoModelForPreTraining, mscl_hf.MsclForPreTraining),
    (AutoModelForSemanticSegmentation, mscl_hf.MsclForSemanticSegmentation),
):
    assert type(auto_class.from_config(config)) is model_class
"""
ORDERS = (
    "import mscl_hf",
    "import transformers",
    "from transformers import AutoConfig",
    "from transformers import AutoModel",
    "from transformers import AutoBackbone",
    "import mscl_hf\nfrom transformers import AutoModelForSemanticSegmentation",
    "from transformers import AutoConfig\nimport mscl_hf",
    "from mscl_hf import MsclConfig",
    "from mscl_hf import MsclForSemanticSegmentation",
    "import mscl_hf.models.modeling_mscl",
    "import mscl_hf.models.auto_model",
)
EACH = """
import os
import timm, torch  # slow, and the same for every order
for order in {orders}:
    child = os.fork()
    if not child:
        exec(order + {registered!r}, {{}})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, order
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_registered_in_every_order():
    """All Auto classes build our models in a new process, whichever module is imported first."""
    run(EACH.format(orders=list(ORDERS), registered=REGISTERED))


@pytest.mark.parametrize(
    ("statement", "heavy"), [("import mscl_hf", (*HEAVY, "transformers", "huggingface_hub")), ("from mscl_hf.cli import parse", HEAVY)]
)
def test_imports_are_light(statement, heavy):
    """The package loads no torch, models, data sets, plots or Hub; the command line no torch, models, data sets or plots."""
    run(f"{statement}\nimport sys\nloaded = [name for name in {heavy} if name in sys.modules]\nassert not loaded, loaded")
