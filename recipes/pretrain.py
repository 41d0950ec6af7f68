"""Pre-train a segmentation network on images and the few masks there are, and write a model folder in Hugging Face format.

mscl-pretrain
mscl-pretrain --dataset camvid --data-dir DIR --train-count 37 --unlabelled rest --output-dir OUT
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from mscl_hf import data, methods, models, records, sharing, training, transforms
from mscl_hf.cli import command, parse, print_table, printable, write_config
from mscl_hf.config import NetworkConfig, PretrainConfig
from mscl_hf.config.contrast import TERMS
from mscl_hf.messages import flag
from mscl_hf.training.signals import leave_on_signal


@dataclass
class Stage:
    """One method with its training data. held_out: masks for health checks; preview_images: for pictures and health checks."""

    method: "methods.Method"
    train_data: "data.TrainingData"
    held_out: "data.SegmentationData | None"
    preview_images: "data.SegmentationData | None"


@dataclass(frozen=True)
class PretrainResult:
    """run: with the output folder, and the steps after training that failed. checks: health checks before and after training."""

    run: "training.Run"
    network: "models.MsclForPreTraining"
    checks: "training.Checks"


@command
@leave_on_signal("stopped; the same command with --resume continues")
def main() -> None:
    config = parse(PretrainConfig, __doc__.splitlines()[0])
    if config.run.list_methods:
        print_table(methods.table())
        return
    pretrain(config).run.exit_if_failed()


def pretrain(config: PretrainConfig) -> PretrainResult:
    """Pre-train a network as the command does; the model folder is config.run.output_dir."""
    check_options(config)
    config = replace(config, network=data.with_known_sizes(config.network, config.data, config.training.resume, config.run.output_dir))
    model_config = model_config_of(config)
    config = sharing.pin_revisions(config)
    with training.start_run(config, config.training.resume) as run:
        if run.is_main:
            sharing.check_token(config.hub)
        config = replace(config, data=data.with_val_split(config.data, run.out, config.run.start_from, run.log))
        if config.network.image_size is None:
            config = with_sizes(config, run)
            model_config = model_config_of(config)
        network = start_network(config, model_config)
        config = with_image_range(config, network, run.log)
        config = with_rates(config, network, run.log)
        method_classes = methods.stages_of(config.run.method)
        images = [open_images(method_cls, config, network, run.log) for method_cls in method_classes]
        config = replace(config, training=config.training.with_steps(images[-1].images, run.log).with_used_warmup(run.log))
        stages = [open_stage(*parts, config, network, run.log) for parts in zip(method_classes, images)]
        record = describe(stages, config, run)
        if stages[-1].method.trains:
            train(stages, config, run)
        publish(stages[-1], record, run)
        checks = training.read_checks(run.out)
        train_images = stages[-1].train_data.images if stages[-1].method.trains else None
        for sentence in [*checks.in_sentences(), *training.longer_run(run.out, config.training, train_images, config.data.dataset)]:
            run.log(sentence)
        run.log(f"next: {sharing.next_command('mscl-finetune', run.out, config.data)}")
    sharing.push_run(run, config.hub)
    return PretrainResult(run, network, checks)


def check_options(config: PretrainConfig) -> None:
    """Raise ValueError for options that the method, its views or its batches do not read. Methods that train nothing are not checked."""
    options, stages = config.run, methods.stages_of(config.run.method)
    if not stages[-1].trains:
        return
    methods.check_method_options(config)
    transforms.check_view_options([(stage.views, stage.preset) for stage in stages], config.views)
    if config.network.bn_views and not any(stage.bn_views for stage in stages):
        raise ValueError(f"--bn-views is {config.network.bn_views}; --method {options.method} has one view per network. Leave it out.")
    for field, value in config.network.changed().items():
        name = field.split("_")[0]
        has_head = any(name in stage.heads for stage in stages)
        reader = f"--losses {config.contrast.losses}" if has_head else f"--method {options.method}"
        if name in TERMS and not (has_head and name in config.contrast.terms) and value != getattr(stages[-1], field, None):
            raise ValueError(f"{flag(field)} is not an option of {reader}, which has no {name} head. Leave it out.")
    if options.unlabelled == "none" and "labelled_share" in options.changed():
        raise ValueError(f"--labelled-share is {options.labelled_share}, and batches have no unlabelled images. Give --unlabelled as well.")
    if options.unlabelled != "none" and not any(stage.uses_unlabelled(config.contrast) for stage in stages):
        raise ValueError(f"--unlabelled is {options.unlabelled}; --method {options.method} reads labelled images only. Leave it out.")


def network_options(config: PretrainConfig, names: Sequence[str] = ("bn_views", "two_towers", "pixel_layers")) -> NetworkConfig:
    """The options of the network, with the method's own values for those of these names that are left open."""
    method_cls = methods.METHODS[config.run.method]
    return replace(config.network, **{name: getattr(config.network, name) or getattr(method_cls, name) for name in names})


def with_sizes(config: PretrainConfig, run: "training.Run") -> PretrainConfig:
    """The configuration with sizes derived from the training images."""
    device, batch_size = run.accelerator.device, config.training.batch_size
    batch_size //= run.accelerator.num_processes if device.type == "cuda" else 1
    limit = data.run_once(lambda: data.machine_limit(device, batch_size))  # processes may run on different machines
    uses_labels = any(stage.uses_labels(config.contrast) for stage in methods.stages_of(config.run.method))
    return replace(config, network=data.with_derived_sizes(config.network, config.data, limit, run.log, uses_labels))


def model_config_of(config: PretrainConfig) -> "models.MsclConfig":
    """The configuration of the network."""
    bands = config.data.bands
    channels = {} if bands is None else {"num_channels": len(bands), "bands": bands}
    options = network_options(config)
    options = replace(options, base_size=config.data.scale_of_tiles(options.base_size))
    return models.config_of(options, heads=list(methods.METHODS[config.run.method].heads), **channels)


def start_network(config: PretrainConfig, model_config: "models.MsclConfig") -> "models.MsclForPreTraining":
    """A new network, one with timm's weights, or that of a model folder."""
    options, start = config.network, config.run.start_from
    pretrained = options.pretrained or config.run.method == "imagenet"
    if start is None:
        network = models.MsclForPreTraining(model_config)
        models.load_timm_weights(network, pretrained, options.backbone_weights)
        return network
    if pretrained or options.backbone_weights:
        raise ValueError(f"--start-from is {start}, a model with weights. Leave out --pretrained, --backbone-weights, --method imagenet.")
    found = models.open_model(models.MsclConfig, start)
    for name in ("backbone", "two_towers", "out_indices", "decoder_type", "decoder_channels"):
        if getattr(found, name) != getattr(model_config, name):
            raise ValueError(f"--start-from is {start} with {name} {getattr(found, name)}; expected {getattr(model_config, name)}.")
    bands = config.data.with_bands_of(start, found.bands, found.num_channels).bands
    if bands is not None:
        for name in ("num_channels", "image_mean", "image_std"):
            setattr(model_config, name, getattr(found, name))
        model_config.bands = bands
    return models.open_model(models.MsclForPreTraining, start, config=model_config)


def with_rates(config: PretrainConfig, network: "models.MsclForPreTraining", log) -> PretrainConfig:
    """The configuration with optimizer and learning rates, by the backbone and its weights where none are given."""
    has_weights = config.network.pretrained or config.network.backbone_weights is not None
    if start := config.run.start_from:  # on the main process: on another one the Hub may be out of reach
        has_weights = data.run_once(lambda: sharing.has_weights(sharing.read_provenance(start)["stages"]))
    log = log if methods.METHODS[config.run.method].trains else lambda text: None
    return replace(config, training=config.training.for_backbone(models.has_batch_norm(network.backbone), has_weights, log))


def with_image_range(config: PretrainConfig, network: "models.MsclForPreTraining", log) -> PretrainConfig:
    """The configuration with the image range of the training images, which becomes the network's, and with the network's bands.

    A new network of other than three channels is normalized by mean and standard deviation of the training images.
    """
    start, model = config.run.start_from, network.config
    options = config.data.with_bands_of(start, model.bands, model.num_channels)
    model_range = models.open_model(models.MsclConfig, start).image_range if start else None
    unlabelled = config.run.unlabelled if methods.METHODS[config.run.method].trains else "none"
    options = data.with_image_range(options.with_range_of(start, model_range), unlabelled, log)
    model.image_range = options.image_range
    if start is None and model.num_channels != 3:
        model.image_mean, model.image_std = data.band_statistics_of(options, unlabelled, log)
    return replace(config, data=options)


def open_images(method_cls: type, config: PretrainConfig, network: "models.MsclForPreTraining", log) -> "data.TrainingData":
    """The images of a method, checked."""
    options, training_options, model = config.run, config.training, network.config
    views = replace(config.views, geometry=config.views.geometry or method_cls.geometry)
    view = transforms.make_view(method_cls.views, method_cls.preset, model.image_size, model.base_size, views, model.image_width)
    return data.open_training_data(
        config.data, view, training_options.batch_size, training_options.seed, log,
        unlabelled=options.unlabelled if method_cls.trains else "none", labelled_share=options.labelled_share,
        uses_labels=method_cls.uses_labels(config.contrast), advice=data.OTHER_METHODS,
    )  # fmt: skip


def open_stage(
    method_cls: type, train_data: "data.TrainingData", config: PretrainConfig, network: "models.MsclForPreTraining", log
) -> Stage:
    """A method with its images and its loss, all checked."""
    options, training_options, masked = config.run, config.training, train_data.labelled
    wrong = [c for c in config.contrast.exclude_classes if masked and not 0 <= c < masked.num_classes]
    if wrong:
        raise ValueError(f"--exclude-classes is {wrong[0]}; expected class ids of {masked.name}, 0..{masked.num_classes - 1}.")
    held_out = data.open_held_out(config.data, log, masked.classes if masked else ())
    data.require_two_classes(masked, held_out)
    loss = methods.MultiScaleLoss(**asdict(config.contrast))
    run_size = methods.RunSize(train_data.images, training_options.batch_size, training_options.max_steps)
    method = methods.create_method(options.method, method_cls, network, config.method_options(), loss, run_size, log)
    method.check_data(train_data)
    return Stage(method, train_data, held_out, held_out or train_data.stored)


def describe(stages: list[Stage], config: PretrainConfig, run: "training.Run") -> dict:
    """The record of this training for the model card. Logs warnings about the data, and writes config.yaml."""
    stage, start = stages[-1], config.run.start_from
    method = stage.method
    for sentence in next((each.train_data.repeats() for each in stages if each.method.min_batch > 1), ()):
        run.log(sentence)
    sources, network = stage.train_data.sources, method.network.config
    for sentence in transforms.left_out(network.num_channels) if method.trains else ():
        run.log(sentence)
    warnings = data.label_warnings(sources, stage.held_out, config.data) if run.is_main else []
    if run.is_main and method.trains:
        warnings += data.size_warnings(sources, network.image_size, network.base_size, method.network.backbone.strides[-1])
    run.warn(warnings)
    if run.is_main:
        sharing.check_can_push(config.hub)
        write_config(resolved(config, method), run.out / records.CONFIG)
    history = sharing.read_provenance(start, run.log)["stages"] if start else []
    what = {"method": f"{method.title} ({method.paper})"} | (sharing.method_facts(method.network.config.contrast) if method.trains else {})
    what |= method.facts()
    start = start or models.weights_name(config.network, config.run.method == "imagenet")
    record = sharing.stage_record("Pre-training", what, stage.train_data, config, network, run.accelerator, start, method.trains, warnings)
    title = f"{network.backbone}, {method.title} on {sharing.data_name(config.data)}"
    return {"title": title, "license": config.hub.license, "stages": [*history, record], "evaluations": []}


def resolved(config: PretrainConfig, method: "methods.Method | None" = None) -> PretrainConfig:
    """The configuration with the values of the method for the options that were left to it.

    method: as created, with values that are scaled to the data set; None for those of its paper.
    """
    stages = methods.stages_of(config.run.method)
    defaults = {name: value for stage in stages for name, value in methods.defaults_of(stage).items()}
    used = (method.network.config.contrast if method else defaults) | config.method_options()
    sections = {name: {option: used[option] for option in used.keys() & vars(getattr(config, name))} for name in ("method", "contrast")}
    last = stages[-1]
    views = {"geometry": config.views.geometry or last.geometry} if last.views == "pair" else {}
    views |= {"preset": config.views.preset or last.preset} if last.preset else {}
    network = network_options(config, ("bn_views", "two_towers", "pixel_layers") if "pixel" in last.heads else ("bn_views", "two_towers"))
    options = {name: replace(getattr(config, name), **values) for name, values in (sections | {"views": views}).items()}
    return replace(config, network=network, **options)


def train(stages: list[Stage], config: PretrainConfig, run: "training.Run") -> None:
    """Train the network by one method after another, each for its share of the steps; all but the last in a folder of its own."""
    run.accelerator.init_trackers("mscl_hf", printable(config))
    weights = [p for p in stages[0].method.network.parameters() if p.requires_grad]
    steps_before = 0
    for number, stage in enumerate(stages, 1):
        for p in weights:  # the stage before may have frozen those that its loss did not reach
            p.requires_grad_(True)
        folder = run.out if number == len(stages) else run.out / f"stage{number}"
        folder.mkdir(exist_ok=True)
        steps = max(1, config.training.max_steps * number // len(stages) - steps_before)
        checks = health_check(stage, run.log)
        if checks and number == 1:
            training.check_untrained(checks, stage.method, folder, run.accelerator)
        training.fit(
            stage.method, stage.train_data, replace(config.training, max_steps=steps), folder, run.accelerator,
            health_check=checks, health_steps=config.run.health_steps,
            max_bad_images=config.data.max_bad_images, steps_before=steps_before,
        )  # fmt: skip
        steps_before += steps
        run.accelerator.free_memory()


def health_check(stage: Stage, log) -> "training.HealthCheck | None":
    """Checks of the embeddings, and a linear probe: fitted on the training masks, or on one half of the held-out ones."""
    if stage.preview_images is None:  # streamed, and nothing is held out
        return None
    fitted, scored, model = stage.train_data.stored if stage.train_data.labelled else None, stage.held_out, stage.method.network.config
    if fitted is None and scored is not None:
        count = len(scored)
        fitted, scored = scored.select(range(0, count, 2)), scored.select(range(1, count, 2)) if count > 1 else None
    return training.HealthCheck(fitted, scored, stage.preview_images, model.image_size, model.base_size, log)


def publish(stage: Stage, record: dict, run: "training.Run") -> None:
    """Write the model, then its pictures and its card. A step that fails does not stop the others."""
    network, out = stage.method.network, run.out
    size = sharing.typical_size(stage.preview_images, network.config.base_size)
    training.together(run.accelerator, lambda: sharing.write_model(network, out, size), "writing the model")
    run.log(f"pre-trained model: {out}{training.reached(out)}")
    if run.is_main:
        with run.step("pictures"):
            training.draw_training(out, record["title"])
            if stage.preview_images:
                training.draw_features(stage.method, stage.preview_images, out)
        with run.step("model card"):
            sharing.write_card(out, network, record)
    with run.step("trackers"):
        run.accelerator.end_training()


if __name__ == "__main__":
    main()
