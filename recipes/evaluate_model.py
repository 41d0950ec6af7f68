"""Measure a fine-tuned model: IoU per class, mean IoU, and pictures of predictions beside the masks.

mscl-evaluate --model runs/finetune --split test
mscl-evaluate --model OUT2 --dataset camvid --data-dir DIR --split test --output-dir OUT3
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from mscl_hf import data, evaluation, models, records, sharing, training
from mscl_hf.cli import command, flat, parse, print_table, write_config
from mscl_hf.config import DatasetConfig, EvaluateConfig
from mscl_hf.training.signals import leave_on_signal


@dataclass(frozen=True)
class EvaluateResult:
    """run: with the output folder. results: the content of results.json."""

    run: "training.Run"
    network: "models.MsclForSemanticSegmentation"
    results: dict


@command
@leave_on_signal("stopped; the same command measures anew")
def main() -> None:
    evaluate(parse(EvaluateConfig, __doc__.splitlines()[0]))


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Measure a model as the command does; results.json and pictures are written into config.run.output_dir."""
    config = sharing.pin_revisions(config)
    with training.start_run(config, resume=True) as run:  # the same command measures anew, also what was stopped
        if run.is_main:
            sharing.check_token(config.hub)
        network = models.open_fine_tuned(config.run.model)
        evaluation.scored_indices(  # raises an error for names that the model lacks
            [network.config.id2label[i] for i in range(network.config.num_labels)], config.run.score_classes
        )
        record = sharing.read_provenance(config.run.model, run.log)
        config, images, warnings = open_data(config, network, record, run)
        config = replace(config, hub=replace(config.hub, license=config.hub.license or record["license"]))
        results = measure(network, images, warnings, config, run)
        publish(network, results, record, config, run)
        run.log(f"new images: {sharing.next_command('mscl-predict', config.run.model)} --images FOLDER")
        run.log(f"next: {sharing.next_command('mscl-demo', config.run.model)}")
    return EvaluateResult(run, network, results)


def open_data(config: EvaluateConfig, network: "models.MsclForSemanticSegmentation", record: dict, run: "training.Run") -> tuple:
    """The configuration with labels, image range, bands and size of the model, the images to measure on, and warnings about them (logged).

    record: the provenance of the model.
    """
    model = network.config
    options = config.data.with_range_of(config.run.model, model.image_range)
    options = options.with_bands_of(config.run.model, model.bands, model.num_channels)
    options, warnings = data.with_labels_of_model(options, model.label_map, model.reduce_labels, run.log)
    classes = tuple(model.id2label[i] for i in range(model.num_labels))
    options = data.with_colors_of_model(options, model.class_colors, classes, run.log)
    images = open_scored_split(options, config.run.split, classes, data.split_of_model(options, config.run.model), run.log)
    trained_on = next((f", trained on {stage['facts']['data']}," for stage in record["stages"][::-1] if "data" in stage["facts"]), "")
    evaluation.check_classes(network, images, f"--model {config.run.model}{trained_on}")
    warnings += data.label_warnings([], images, options) if run.is_main else []
    run.warn(warnings)
    inference = evaluation.with_size_of(network, config.inference)
    return replace(config, data=options, inference=inference), images, warnings


def open_scored_split(
    options: DatasetConfig, split: str, classes: tuple[str, ...], held_out: str | None, log: Callable[[str], None]
) -> "data.SegmentationData":
    """The usable images of a split. Raises ValueError, which lists the splits of the data, where it has no such one.

    held_out: list of the images that the model's training held out, which are the split val where the data has none.
    """
    try:
        images = data.open_held_out_split(options, split, classes, held_out)
    except data.UnknownSplit as error:
        if not error.available:  # another layout, which the error describes
            raise
        if len(error.available) == 1:
            advice = f"{error.available[0]}, the only split of the data. Choose it if the model was not trained on it, or add a split."
        else:
            advice = f"one of {', '.join(error.available)}. Choose one of them."
        raise ValueError(f"--split is {split}; expected {advice}") from error
    data.check_values(images, log)
    return data.usable(images, options, log)


def measure(network, images: "data.SegmentationData", warnings: list[str], config: EvaluateConfig, run: "training.Run") -> dict:
    """Measure the model; results.json and the pictures are written into the output folder."""
    if run.is_main:
        sharing.check_can_push(config.hub)
        write_config(config, run.out / records.CONFIG)
    options = config.run
    results = evaluation.evaluate_model(
        network, images, run.accelerator, config.inference, seed=options.seed, config=flat(config), score_classes=options.score_classes,
        pictures_dir=run.out if options.pictures else None, num_pictures=options.pictures, by_evaluate=options.by_evaluate,
    )  # fmt: skip
    results |= {"warnings": warnings, "commit": records.commit(), "model": config.run.model}
    if run.is_main:
        records.write_json(run.out / "results.json", results)  # first: nothing that fails later can lose the figures
        print_table(evaluation.class_table(results))
        print("\n".join([*evaluation.in_sentences(results), f"pictures and results.json: {run.out}"]))
    return results


def publish(network, results: dict, record: dict, config: EvaluateConfig, run: "training.Run") -> None:
    """With --push-to-hub, push a copy of the model with its new scores."""
    if run.is_main and config.hub.push_to_hub:
        sharing.write_model(network, run.out)
        sharing.copy_pictures_and_processor(config.run.model, run.out)
        sharing.write_card(run.out, network, sharing.with_evaluation(record, results, config.data) | {"license": config.hub.license})
    run.accelerator.end_training()
    if run.is_main:
        sharing.push_result(run.out, config.hub)


if __name__ == "__main__":
    main()
