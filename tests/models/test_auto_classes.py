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
ORDERS = {
    "mscl_hf first": "import mscl_hf",
    "transformers first": "import transformers",
    "AutoConfig first": "from transformers import AutoConfig",
    "AutoModel first": "from transformers import AutoModel",
    "AutoBackbone first": "from transformers import AutoBackbone",
    "mscl_hf, then AutoModelForSemanticSegmentation": "import mscl_hf\nfrom transformers import AutoModelForSemanticSegmentation",
    "AutoConfig, then mscl_hf": "from transformers import AutoConfig\nimport mscl_hf",
    "the configuration first": "from mscl_hf import MsclConfig",
    "a model first": "from mscl_hf import MsclForSemanticSegmentation",
    "the module of the models first": "import mscl_hf.models.modeling_mscl",
    "the registration first": "import mscl_hf.models.auto_model",
}


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("order", ORDERS)
def test_registered_in_every_order(order):
    """All Auto classes build our models in a new process, whichever module is imported first."""
    run(ORDERS[order] + REGISTERED)


@pytest.mark.parametrize(
    ("statement", "heavy"), [("import mscl_hf", (*HEAVY, "transformers", "huggingface_hub")), ("from mscl_hf.cli import parse", HEAVY)]
)
def test_imports_are_light(statement, heavy):
    """The package loads no torch, models, data sets, plots or Hub; the command line no torch, models, data sets or plots."""
    run(f"{statement}\nimport sys\nloaded = [name for name in {heavy} if name in sys.modules]\nassert not loaded, loaded")
