"""Pre-train a segmentation network: images (and the few masks there are) -> a model folder in Hub format.

accelerate launch recipes/pretrain.py
accelerate launch recipes/pretrain.py --dataset camvid --data-dir DIR --train-count 37 --unlabelled rest --output-dir OUT
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate.utils import set_seed

from mscl_hf import checkpoint
from mscl_hf.backbones import NetworkOptions, load_timm_weights
from mscl_hf.data.training import DataOptions, open_held_out, pretraining_data
from mscl_hf.data.views import VIEWS, ViewOptions
from mscl_hf.health import HealthCheck
from mscl_hf.losses import MultiScaleLoss
from mscl_hf.methods import METHODS, method_class
from mscl_hf.modeling_mscl import MsclForPreTraining
from mscl_hf.options import command, flat, make_accelerator, parse, printable
from mscl_hf.publish import draw_features, draw_training, model_card, publish
from mscl_hf.train import TrainOptions, fit


@dataclass(frozen=True)
class PretrainOptions:
    """The method, and what surrounds it."""

    output_dir: str = field(default="runs/pretrain", metadata={"help": "new or empty folder for the model and its records"})
    method: str = field(default="mscl", metadata={"help": "how to pre-train; see --list-methods"})
    list_methods: bool = field(default=False, metadata={"help": "print the methods and stop"})
    unlabelled: str = field(default="none", metadata={"help": "images without labels: none, rest (of the training split), or a folder"})
    labelled_share: float = field(default=0.5, metadata={"help": "share of labelled images in a batch that also has unlabelled ones"})
    health_every_steps: int = field(default=100, metadata={"help": "steps between health checks; 0 = only at the end"})

    def __post_init__(self):
        if self.health_every_steps < 0:
            raise ValueError(f"--health-every-steps is {self.health_every_steps}; it must be at least 0")


KINDS = (PretrainOptions, MultiScaleLoss, ViewOptions, DataOptions, NetworkOptions, TrainOptions)


@command
def main() -> None:
    run, loss, views, data_options, net, train = options = parse(KINDS, __doc__.splitlines()[0])
    if run.list_methods:
        print_methods()
        return
    method_type = method_class(run.method)
    set_seed(train.seed)
    config = net.config(contrast=asdict(loss))
    accelerator = make_accelerator(train.precision, train.report_to, run.output_dir)
    out = Path(run.output_dir)
    checkpoint.open_run(out, flat(*options), train.resume, accelerator)

    view = VIEWS[method_type.views](config.image_size, config.base_size, views, config.image_width)
    data = pretraining_data(
        data_options, view, train.batch_size, train.seed, run.unlabelled if method_type.trains else "none", run.labelled_share,
        method_type.uses_labels(flat(*options)), accelerator.print,
    )  # fmt: skip
    source = data.labelled or data.stream
    outside = [c for c in loss.exclude_classes if source and not 0 <= c < source.num_classes]
    if outside:
        raise ValueError(f"--exclude-classes {outside[0]} is no class of {source.name}; give ids of 0..{source.num_classes - 1}")
    held_out = open_held_out(data_options, accelerator.print, source.classes if source else ())

    network = MsclForPreTraining(config)
    load_timm_weights(network, net.pretrained, net.backbone_weights)
    method = method_type(network)
    images = data.labelled or data.unlabelled or held_out  # a stream without held-out masks has none to look at
    if method.trains:
        accelerator.init_trackers("mscl_hf", printable(*options))
        fitted, scored = probe_parts(data.labelled, held_out)
        watch = HealthCheck(fitted, scored, images, config.image_size, config.base_size, accelerator.print) if images else None
        method = fit(method, data, train, out, accelerator, watch, run.health_every_steps, data_options.max_bad_images)

    if accelerator.is_main_process:
        title = f"{config.backbone}, {method.title} on {data_options.dataset}"
        about = f"A segmentation network pre-trained by {method.title} ({method.paper}), to be fine-tuned on masks."
        publish(method.network, out, model_card(title, about, method.network))
        draw_training(out, title)
        if images:
            draw_features(method, held_out or images, out)
        print(f"pre-trained model: {out}")
    accelerator.end_training()


def probe_parts(labelled, held_out):
    """What the linear probe is fitted and scored on; without training masks, one half of the held-out ones each."""
    if labelled is not None or held_out is None:
        return labelled, held_out
    return held_out.select(range(0, len(held_out), 2)), held_out.select(range(1, len(held_out), 2)) if len(held_out) > 1 else None


def print_methods() -> None:
    rows = [("name", "method", "year", "views", "labels", "transfers", "state")]
    rows += [(name, m.title, str(m.year or "-"), m.views, m.labels, m.transfers, m.state) for name, m in METHODS.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


if __name__ == "__main__":
    main()
