"""Fine-tune a pre-trained model folder on masks by cross-entropy or another loss, and measure mean IoU on the held-out split.

mscl-finetune --model runs/pretrain
mscl-finetune --model OUT --dataset camvid --data-dir DIR --train-count 37 --output-dir OUT2
mscl-finetune ... --train-count 37 --unlabelled rest --semi-supervised fixmatch
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from mscl_hf import data, evaluation, methods, models, records, sharing, training, transforms
from mscl_hf.cli import command, flat, parse, print_table, printable, write_config
from mscl_hf.config import FinetuneConfig, InferenceConfig
from mscl_hf.training.signals import leave_on_signal


@dataclass(frozen=True)
class FinetuneResult:
    """run: with the output folder, and the steps after training that failed. results: the scores on the held-out split, if there is one."""

    run: "training.Run"
    network: "models.MsclForSemanticSegmentation"
    results: dict | None


@command
@leave_on_signal("stopped; the same command with --resume continues")
def main() -> None:
    config = parse(FinetuneConfig, __doc__.splitlines()[0])
    if config.run.list_losses:
        print_table(methods.loss_table())
        return
    if config.run.list_semi_supervised:
        print_table(methods.semi_supervised_table())
        return
    finetune(config).run.exit_if_failed()


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Fine-tune a model as the command does; the new model folder is config.run.output_dir."""
    methods.check_options(config.loss, config.run.class_weights is not None)
    config = sharing.pin_revisions(config)
    with training.start_run(config, config.training.resume) as run:
        methods.check_semi_supervised(config.unlabelled_images, config.training, run.accelerator.num_processes)
        if run.is_main:
            sharing.check_token(config.hub)
        config = replace(config, data=data.with_val_split(config.data, run.out, config.run.model, run.log))
        config = resolved(config, run.log)
        images, held_out = open_data(config, run.log)
        config = replace(config, training=config.training.with_steps(images.labelled_images, run.log).with_used_warmup(run.log))
        network, is_new = open_network(config, images.labelled.classes, run.log)
        history = data.run_once(lambda: sharing.read_provenance(config.run.model, run.log)["stages"])
        options = config.training.for_backbone(models.has_batch_norm(network.backbone), sharing.has_weights(history), run.log)
        config = replace(config, training=options)
        weights = weights_of_classes(images, config, run.log)
        record = describe(images, held_out, network, config, run, weights, history)
        if rank := config.training.lora_rank:
            count = models.attach_lora(network.backbone, rank)
            record["stages"][-1]["facts"]["LoRA"] = f"rank {rank} in {count} linear layers of the backbone, merged"
        run_size = methods.RunSize(images.images, config.training.batch_size, config.training.max_steps)
        method = methods.create_training(network, config.loss, weights, config.unlabelled_images, run_size, run.log)
        method.freeze(config.training.freeze, config.training.freeze_steps, config.training.max_steps)
        for name, value in method.facts().items():
            run.log(f"{name}: {value}")
        record["stages"][-1]["facts"] |= method.facts()
        done = training.is_complete(run.out, config.training.max_steps)
        check = None
        if images.unlabelled is not None:
            check = training.PseudoLabelCheck.of(images, network.config, lambda text: run.warn([text]))
        best = best_step(held_out, config, run, check)
        train(method, images, is_new, config, run, best, check)
        if best:
            record["stages"][-1]["facts"]["published weights"] = best.in_words(held_out.split)
            run.log(f"published weights: {best.in_words(held_out.split)}")
        publish(network, held_out or images.stored, run)
        if check and run.is_main:
            with run.step("picture of the teacher's labels"):
                training.draw_pseudo_labels(method, check.images, images.labelled.classes, run.out)
        results = score(network, held_out, record, config, run, done, best)
        for sentence in training.longer_run(run.out, config.training, images.labelled_images, config.data.dataset):
            run.log(sentence)
        run.log(f"next: {next_command(held_out, config, images.labelled.classes)}")
    sharing.push_run(run, config.hub)
    return FinetuneResult(run, network, results)


def resolved(config: FinetuneConfig, log: Callable[[str], None]) -> FinetuneConfig:
    """The configuration with the sizes and the image range of the model where none are given."""
    crops, model = config.crops, models.open_model(models.MsclConfig, config.run.model)
    scale = config.data.scale_of_tiles(crops.base_size)
    sizes = {
        "image_size": model.image_size if crops.image_size is None else crops.image_size,
        "image_width": crops.image_width or (model.image_width if crops.image_size is None else None),
        "base_size": model.base_size if crops.base_size is None and config.data.tile is None else scale,
    }
    options = config.data.with_range_of(config.run.model, model.image_range)
    options = options.with_bands_of(config.run.model, model.bands, model.num_channels)
    unlabelled = config.unlabelled_images
    options = data.with_image_range(options, "none" if unlabelled.unlabelled_streaming else unlabelled.unlabelled, log)
    return replace(config, crops=replace(crops, **sizes), data=options)


def open_data(config: FinetuneConfig, log: Callable[[str], None]) -> tuple["data.TrainingData", "data.SegmentationData | None"]:
    """The labelled images to train on, and the held-out ones with the same classes. Raises ValueError."""
    crops, train, semi = config.crops, config.training, config.unlabelled_images
    sizes = crops.image_size, crops.base_size, (crops.min_scale, crops.max_scale), crops.color_strength, crops.image_width
    view, count, options = transforms.TrainView(*sizes), train.batch_size, {}
    if semi.semi_supervised != "none":
        row, added = methods.used_row(semi), semi.unlabelled_batch_size or train.batch_size
        view = transforms.SemiSupervisedView(*sizes, strong_views=row.strong_views, cutmix=row.cutmix_probability)
        options = {"unlabelled": semi.unlabelled, "unlabelled_streaming": semi.unlabelled_streaming}
        count, options = count + added, options | {"labelled_share": count / (count + added)}
    images = data.open_training_data(config.data, view, count, train.seed, log, **options)
    if options:
        data.require_unlabelled(images.labelled, images.unlabelled, semi.unlabelled)
    classes = images.labelled.classes
    held_out = data.open_held_out(config.data, log, classes)
    if held_out is not None and held_out.classes != classes:
        raise ValueError(f"{held_out.name} has {len(classes)} classes to train on and {held_out.num_classes} held out. Give --classes.")
    data.require_two_classes(images.labelled, held_out)
    masks, unlabelled = images.counts.values()
    others = f" and {unlabelled}{' of' if semi.unlabelled_streaming else ''} images without masks" if options else ""
    log(f"fine-tuning on {masks} masks{others} of {sharing.data_name(config.data)}, {images.sources[0].split}")
    return images, held_out


def open_network(
    config: FinetuneConfig, classes: Sequence[str], log: Callable[[str], None]
) -> tuple["models.MsclForSemanticSegmentation", bool]:
    """The network, and whether its classifier is new; how the masks are read becomes part of its configuration."""
    run, crops = config.run, config.crops
    fields = {
        "use_auxiliary_head": run.auxiliary_loss_weight > 0,
        "auxiliary_loss_weight": run.auxiliary_loss_weight,
        "decoder_dropout": run.dropout,
        "image_range": config.data.image_range,
        "bands": config.data.bands,
        **{name: getattr(crops, name) for name in ("image_size", "image_width", "base_size")},
        **data.label_fields(config.data),
    }
    return models.open_segmenter(run.model, classes, log, **fields)


def weights_of_classes(images: "data.TrainingData", config: FinetuneConfig, log: Callable[[str], None]) -> list[float] | None:
    """The weights of the classes, which are logged; None where --class-weights is not given."""
    if config.run.class_weights is None:
        return None
    weights = data.weights_of_classes(config.run.class_weights, images.labelled)
    log(f"class weights: {data.weights_in_words(weights, images.labelled.classes)}")
    return weights


def describe(
    images: "data.TrainingData", held_out: "data.SegmentationData | None", network, config: FinetuneConfig, run,
    weights: Sequence[float] | None, history: list[dict],
) -> dict:  # fmt: skip
    """The record of this training for the model card. Logs warnings about the data, and writes config.yaml.

    weights: of the classes. history: the stages of training before this one.
    """
    warnings = data.label_warnings(images.sources, held_out, config.data) if run.is_main else []
    sizes = config.crops.image_size, config.crops.base_size, network.backbone.strides[-1]
    warnings += data.size_warnings(images.sources, *sizes) if run.is_main else []
    run.warn(warnings)
    for sentence in transforms.left_out(network.config.num_channels):
        run.log(sentence)
    if run.is_main:
        sharing.check_can_push(config.hub)
        write_config(config, run.out / records.CONFIG)
    options = asdict(config.loss) | {"loss": None, "auxiliary_loss_weight": config.run.auxiliary_loss_weight}
    what = {"loss": config.loss.loss, "options": sharing.describe_options(options)}
    what |= {} if weights is None else {"class weights": data.weights_in_words(weights, images.labelled.classes)}
    model = config.run.model
    stage = sharing.stage_record("Fine-tuning", what, images, config, network.config, run.accelerator, model, warnings=warnings)
    title = f"{network.config.backbone}, fine-tuned on {sharing.data_name(config.data)}"
    if note := sharing.fewer_masks(history, stage):
        run.log(f"note: {model} was {note}")
    return {"title": title, "license": config.hub.license, "stages": [*history, stage], "evaluations": []}


def best_step(
    held_out: "data.SegmentationData | None", config: FinetuneConfig, run, check: "training.PseudoLabelCheck | None" = None
) -> "training.BestStep | None":
    """What keeps the best step by the mean IoU on the held-out images; None where --eval-steps is 0. Raises ValueError."""
    options = config.training
    if not options.eval_steps:
        return None
    if held_out is None or not held_out.labels.present:
        raise ValueError(f"--eval-steps is {options.eval_steps}, and no held-out image has labels. Give --val-split, or leave it out.")

    def scores(network: "models.MsclForSemanticSegmentation") -> training.Scores:
        results = evaluation.evaluate_model(network, held_out, run.accelerator, inference_of(network, config))
        return training.Scores(results["mean_iou"], results["per_class_iou"])

    def of_teacher(method: "methods.SemiSupervisedTraining") -> training.Scores:
        of_step = scores(method.teacher.network)
        check.add_score(of_step.mean_iou)
        return of_step

    def of_network(method: "methods.SegmentationTraining") -> training.Scores:
        return scores(method.network)

    has_teacher = check is not None and methods.used_row(config.unlabelled_images).ema_momentum > 0
    measures = {"network": of_network} | ({"teacher": of_teacher} if has_teacher else {})
    measure = measures.pop(config.unlabelled_images.publish if has_teacher else "network")
    return training.BestStep(measure, options.eval_steps, options.early_stopping, measures, options.publish_step)


def inference_of(network: "models.MsclForSemanticSegmentation", config: FinetuneConfig) -> InferenceConfig:
    """How held-out images are predicted: whole, or with --tile by windows of that size, so that each pixel counts once."""
    if config.data.tile is None:
        return InferenceConfig(base_size=network.config.base_size)
    size, overlap = config.data.tile
    return InferenceConfig(base_size=network.config.base_size, mode="slide", window=size, stride=size - overlap)


def train(
    method: "methods.SegmentationTraining", images: "data.TrainingData", is_new: bool, config: FinetuneConfig, run,
    best: "training.BestStep | None", check: "training.PseudoLabelCheck | None" = None,
) -> None:  # fmt: skip
    """Fit a new classifier on frozen features, then train the whole network."""
    run.accelerator.init_trackers("mscl_hf", printable(config))
    if config.run.probe_batches and is_new and not training.completed_steps(run.out):
        accuracy = training.start_classifier(method.to(run.accelerator.device), images, config.run.probe_batches)
        fitted = f"new classifier, fitted alone before training: right on {accuracy or 0:.1%} of the labelled positions of the feature maps"
        run.log("no labelled pixel to fit the classifier on" if accuracy is None else fitted)
        method.restart_teacher()
    training.fit(
        method, images, config.training, run.out, run.accelerator, max_bad_images=config.data.max_bad_images, best=best,
        health_check=check, health_steps=config.training.eval_steps or max(1, config.training.max_steps // 10),
    )  # fmt: skip
    method.finish()
    if config.training.lora_rank:
        models.merge_lora(method.network.backbone)


def publish(network: "models.MsclForSemanticSegmentation", images: "data.SegmentationData | None", run) -> None:
    """Write the model; images: those that the image processor's size is chosen by."""
    size = sharing.typical_size(images, network.config.base_size)
    training.together(run.accelerator, lambda: sharing.write_model(network, run.out, size), "writing the model")
    run.log(f"fine-tuned model: {run.out}")


def score(network, held_out: "data.SegmentationData | None", record: dict, config: FinetuneConfig, run, done: bool, best) -> dict | None:
    """Measure the model, draw its pictures and write its card. A step that fails does not stop the others.

    done: training was complete before; what an earlier attempt has measured is kept. best: the step whose weights the network has, if
    steps were compared. Returns the scores, or None without held-out images.
    """
    out, file = run.out, run.out / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if done and file.is_file() else {}
    results = results if {"classes_scored", "confusion"} <= results.keys() else None  # an earlier version counted less
    is_scored = not training.any_process(run.accelerator, results is None)  # the same on all processes, which score together
    inference = inference_of(network, config)
    with run.step("scoring"):
        if held_out is not None and not is_scored:
            fields = {"seed": config.training.seed, "config": flat(config)}
            results = evaluation.evaluate_model(network, held_out, run.accelerator, inference, **fields)
            results |= {"warnings": record["stages"][-1]["warnings"], "commit": records.commit(), "model": config.run.model}
            results |= {} if best is None else {"step": best.published_step, "last_step": best.last_step}
            if run.is_main:
                records.write_json(file, results)
        if results and run.is_main:
            print_table(evaluation.class_table(results))
        for sentence in evaluation.in_sentences(results) if results else ():
            run.log(sentence)
    if run.is_main:
        with run.step("pictures"):
            training.draw_training(out, record["title"])
            if held_out is not None and not (is_scored and (out / "predictions.png").is_file()):
                evaluation.draw_predictions(network, held_out, run.accelerator, out, inference)
            if results:
                evaluation.draw_confusion(results, out)
        with run.step("model card"):
            sharing.write_card(out, network, sharing.with_evaluation(record, results, config.data) if results else record)
    with run.step("trackers"):
        run.accelerator.end_training()
    return results


def next_command(held_out: "data.SegmentationData | None", config: FinetuneConfig, classes: tuple[str, ...]) -> str:
    """The command that measures the model on masks that it was not trained on, or predicts images where there are none."""
    options, out = config.data, config.run.output_dir
    if options.val_fraction:
        return sharing.next_command("mscl-evaluate", out, options, "val")
    if data.has_masks(options, "test", classes):
        return sharing.next_command("mscl-evaluate", out, options)
    if held_out is not None:
        return sharing.next_command("mscl-evaluate", out, options, options.val_split or held_out.split)
    return f"{sharing.next_command('mscl-predict', out)} --images FOLDER"


if __name__ == "__main__":
    main()
