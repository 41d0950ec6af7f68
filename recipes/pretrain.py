"""Pre-train a segmentation network: images (and the few masks there are) -> a model folder in Hub format.

accelerate launch recipes/pretrain.py
accelerate launch recipes/pretrain.py --dataset camvid --data-dir DIR --train-count 37 --unlabelled rest --output-dir OUT
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import timm
from accelerate import Accelerator
from accelerate.utils import set_seed

from mscl_hf import MsclConfig
from mscl_hf.cli import command, flat, parse, print_table, printable
from mscl_hf.data.build import DataOptions, log_repeats, open_held_out, pretraining_data, with_image_range
from mscl_hf.data.labels import label_warnings, require_two_classes
from mscl_hf.losses import MultiScaleLoss
from mscl_hf.methods import Method, MethodOptions, Scale, create_method, defaults_of, method_class, read_options, table
from mscl_hf.models.backbones import NetworkOptions, load_timm_weights
from mscl_hf.models.modeling_mscl import MsclForPreTraining
from mscl_hf.models.open_model import open_model, pinned
from mscl_hf.records.run_folder import open_run
from mscl_hf.records.versions import commit
from mscl_hf.sharing.model_card import method_facts, write_card
from mscl_hf.sharing.provenance import data_name, pinned_options, provenance, stage_record
from mscl_hf.sharing.publish import publish, typical_size
from mscl_hf.sharing.upload import HubOptions, check_can_push, push_result
from mscl_hf.training.crash_report import reporting
from mscl_hf.training.distributed import together
from mscl_hf.training.finishing import Finishing
from mscl_hf.training.health import HealthCheck
from mscl_hf.training.loop import TrainOptions, fit
from mscl_hf.training.run_figures import draw_features, draw_training
from mscl_hf.training.setup import make_accelerator
from mscl_hf.training.signals import leave_on_signal
from mscl_hf.transforms.views import ViewOptions, check_view_options, make_view


@dataclass(frozen=True)
class PretrainOptions:
    """The method, and what surrounds it."""

    output_dir: str = field(default="runs/pretrain", metadata={"help": "new or empty folder for the model and its records"})
    method: str = field(default="mscl", metadata={"help": "how to pre-train; see --list-methods"})
    list_methods: bool = field(default=False, metadata={"help": "print the methods and stop"})
    start_from: str | None = field(default=None, metadata={"help": "model folder, Hub name or NAME@REVISION to take the network from"})
    unlabelled: str = field(default="none", metadata={"help": "images without labels: none, rest (of the training split), or a folder"})
    labelled_share: float = field(default=0.5, metadata={"help": "share of labelled images in a batch that also has unlabelled ones"})
    health_every_steps: int = field(default=100, metadata={"help": "steps between health checks; 0 = only at the end"})

    def __post_init__(self):
        if self.health_every_steps < 0:
            raise ValueError(f"--health-every-steps is {self.health_every_steps}; it must be at least 0")


KINDS = (PretrainOptions, MethodOptions, MultiScaleLoss, ViewOptions, DataOptions, NetworkOptions, TrainOptions, HubOptions)


@command
@leave_on_signal("stopped; the same command with --resume continues")
def main() -> None:
    run, _, loss, _, _, net, train, hub = options = pinned_options(parse(KINDS, __doc__.splitlines()[0]))
    if run.list_methods:
        print_table(table())
        return
    kind, given = method_class(run.method), given_options(options)
    set_seed(train.seed)
    config = net.config(
        heads=list(kind.heads),
        bn_views=net.bn_views or kind.bn_views or "joint",
        pixel_layers=net.pixel_layers or kind.pixel_layers,
        two_towers=net.two_towers or kind.two_towers,
        contrast=asdict(loss),
    )
    accelerator = make_accelerator(train.precision, train.report_to, run.output_dir)
    out = Path(run.output_dir)
    open_run(out, flat(*options) | {"commit": commit()}, train.resume, accelerator)
    with reporting(out):
        finishing = pretrain(options, given, config, out, accelerator)
    if accelerator.is_main_process:
        with finishing.step("push"):
            if hub.push_to_hub is not None:
                finishing.require_for_push()
            push_result(out, hub)
    finishing.exit_if_failed()


def pretrain(options: tuple, given: dict, config: MsclConfig, out: Path, accelerator: Accelerator) -> Finishing:
    """Train a network by the method's stages, write it into `out`, then its pictures and card; returns which of these failed."""
    run, *_, data, net, train, hub = options
    kind = method_class(run.method)
    network = start_network(run, net, config)
    trained_with = open_model(MsclConfig, run.start_from).image_range if run.start_from else None
    unlabelled = run.unlabelled if kind.trains else "none"
    data = with_image_range(data.with_range_of(run.start_from, trained_with), unlabelled, accelerator.print)
    network.config.image_range = data.image_range
    options = (*options[:4], data, *options[5:])
    prepared = [prepare(stage, network, options, given, accelerator.print) for stage in stages_of(kind)]
    contrasting = [of_stage for of_method, of_stage, *_ in prepared if of_method.min_batch > 1]
    if contrasting:
        log_repeats(contrasting[0].order, accelerator.print)
    method, trained_on, _, images, held_out = prepared[-1]
    history = provenance(run.start_from, accelerator.print)["stages"] if run.start_from else []
    title, size = f"{config.backbone}, {method.title} on {data_name(data)}", typical_size(images, config.base_size)
    what = {"method": f"{method.title} ({method.paper})"} | (method_facts(method.network.config.contrast) if kind.trains else {})
    parts = [trained_on.stream, trained_on.labelled, trained_on.unlabelled]
    warnings = label_warnings(parts, held_out, data) if accelerator.is_main_process else []
    for warning in warnings:
        accelerator.print(f"warning: {warning}")
    start = run.start_from or timm_weights(run, net)
    stage = stage_record("Pre-training", what, trained_on, options, config, accelerator, start, kind.trains, warnings)
    if accelerator.is_main_process:
        check_can_push(hub)
    if kind.trains:
        accelerator.init_trackers("mscl_hf", printable(*options))
        train_stages(prepared, network, options, out, accelerator)

    together(accelerator, lambda: publish(method.network, out, size), "writing the model")
    accelerator.print(f"pre-trained model: {out}")
    finishing = Finishing(out, accelerator.is_main_process)
    if accelerator.is_main_process:
        with finishing.step("pictures"):
            draw_training(out, title)
            if images:
                draw_features(method, images, out)
        with finishing.step("model card"):
            write_card(out, method.network, {"title": title, "license": hub.license, "stages": [*history, stage], "evaluations": []})
    with finishing.step("trackers"):
        accelerator.end_training()
    return finishing


def stages_of(kind: type[Method]) -> list[type[Method]]:
    """The methods that train the network, one after another."""
    return [stage for stage in (kind.first_stage, kind) if stage]


def given_options(options: tuple) -> dict:
    """Of the method, those that were given; ValueError for options that would change nothing."""
    run, method_options, loss, views, _, net, *_ = options
    kind = method_class(run.method)
    given = read_options(run.method, kind, method_options, loss)
    if kind.trains:
        check_options(run, stages_of(kind), views, net, flat(*options))
    return given


def resolve(options: tuple) -> dict:
    """All options, with the method's own values for those that were left to it: a queue's length and the like as published, not yet
    fitted to the data. ValueError as above."""
    run, _, _, views, _, net, *_ = options
    kind, known, given = method_class(run.method), flat(*options), given_options(options)
    own = {name: value for stage in stages_of(kind) for name, value in defaults_of(stage).items() if name in known} | given
    own |= {"geometry": views.geometry or kind.geometry, "preset": views.preset or kind.preset}
    own |= {name: getattr(net, name) or getattr(kind, name) for name in ("bn_views", "pixel_layers", "two_towers")}
    return known | own


def start_network(run: PretrainOptions, net: NetworkOptions, config: MsclConfig) -> MsclForPreTraining:
    """A new network, one with timm's weights, or one that goes on from a model folder."""
    pretrained = net.pretrained or run.method == "imagenet"
    if run.start_from is None:
        network = MsclForPreTraining(config)
        load_timm_weights(network, pretrained, net.backbone_weights)
        return network
    if pretrained or net.backbone_weights:
        raise ValueError(f"--start-from {run.start_from} brings a backbone; leave out --pretrained, --backbone-weights, --method imagenet")
    there = open_model(MsclConfig, run.start_from)
    for name in ("backbone", "two_towers", "out_indices", "decoder_type", "decoder_channels"):
        if getattr(there, name) != getattr(config, name):
            raise ValueError(
                f"{run.start_from} has {name} {getattr(there, name)} and this run asks for {getattr(config, name)}; give the same to both"
            )
    return open_model(MsclForPreTraining, run.start_from, config=config)


def timm_weights(run: PretrainOptions, net: NetworkOptions) -> str | None:
    """Where a backbone's first weights are from: a file, a Hub name, or None for random ones."""
    if net.backbone_weights or not (net.pretrained or run.method == "imagenet"):
        return net.backbone_weights
    return pinned(timm.get_pretrained_cfg(net.backbone).hf_hub_id)


def check_options(run: PretrainOptions, stages: list[type[Method]], views: ViewOptions, net: NetworkOptions, options: dict) -> None:
    """Refuse options that would change nothing."""
    check_view_options([(stage.views, stage.preset) for stage in stages], views)
    if net.bn_views and not any(stage.bn_views for stage in stages):
        raise ValueError(f"--bn-views is {net.bn_views}, and in --method {run.method} no two views go through one network; leave it out")
    if run.unlabelled != "none" and not any(stage.uses_unlabelled(options) for stage in stages):
        raise ValueError(
            f"--unlabelled is {run.unlabelled}, and what --method {run.method} minimises reads labelled images only; leave it out"
        )


def prepare(kind: type[Method], network: MsclForPreTraining, options: tuple, given: dict, say) -> tuple:
    """(the method, its data, its health check, images to look at, the held-out ones), all checked."""
    run, _, loss, views, data_options, _, train, _ = options
    config = network.config
    views = replace(views, geometry=views.geometry or kind.geometry)
    view = make_view(kind.views, kind.preset, config.image_size, config.base_size, views, config.image_width)
    data = pretraining_data(
        data_options, view, train.batch_size, train.seed, run.unlabelled if kind.trains else "none", run.labelled_share,
        kind.uses_labels(flat(*options)), say,
    )  # fmt: skip
    source = data.labelled or data.stream
    outside = [c for c in loss.exclude_classes if source and not 0 <= c < source.num_classes]
    if outside:
        raise ValueError(f"--exclude-classes {outside[0]} is no class of {source.name}; give ids of 0..{source.num_classes - 1}")
    held_out = open_held_out(data_options, say, source.classes if source else ())
    require_two_classes(source, held_out)
    method = create_method(run.method, kind, network, given, loss, Scale(data.images, train.batch_size, train.max_steps), say)
    method.check_data(data)
    images = data.labelled or data.unlabelled or held_out  # a stream without held-out masks has none to look at
    fitted, scored = probe_parts(data.labelled, held_out)
    watch = HealthCheck(fitted, scored, images, config.image_size, config.base_size, say) if images else None
    return method, data, watch, held_out or images, held_out


def train_stages(prepared: list[tuple], network: MsclForPreTraining, options: tuple, out: Path, accelerator: Accelerator) -> None:
    """Train the network by one method after another, each for its share of the steps; all but the last in a folder of its own."""
    run, *_, data_options, _, train, _ = options
    before, weights = 0, [p for p in network.parameters() if p.requires_grad]
    for number, (method, data, watch, *_) in enumerate(prepared, 1):
        for p in weights:  # of which the stage before has taken out those that it did not reach
            p.requires_grad_(True)
        folder = out if number == len(prepared) else out / f"stage{number}"
        folder.mkdir(exist_ok=True)
        steps = max(1, train.max_steps * number // len(prepared) - before)
        fit(method, data, replace(train, max_steps=steps), folder, accelerator, watch, run.health_every_steps,
            data_options.max_bad_images, before)  # fmt: skip
        before += steps
        accelerator.free_memory()


def probe_parts(labelled, held_out):
    """What the linear probe is fitted and scored on; without training masks, one half of the held-out ones each."""
    if labelled is not None or held_out is None:
        return labelled, held_out
    return held_out.select(range(0, len(held_out), 2)), held_out.select(range(1, len(held_out), 2)) if len(held_out) > 1 else None


if __name__ == "__main__":
    main()
