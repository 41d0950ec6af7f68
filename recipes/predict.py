"""Predict images with a fine-tuned model: a mask for each image, and a table with the share of each class.

mscl-predict --model runs/finetune --images FOLDER --output-dir OUT --overlays
mscl-predict --model OUT2 --images 'scans/*.tif' --output-dir OUT3 --mode slide --window 512
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mscl_hf import data, evaluation, models, records, sharing, training
from mscl_hf.cli import command, parse, write_config
from mscl_hf.config import DatasetConfig, PredictConfig
from mscl_hf.progress_bar import progress_bar
from mscl_hf.training.signals import leave_on_signal


@dataclass(frozen=True)
class PredictResult:
    """run: with the output folder. classes: names by id. images: of all predicted images. failed: {image: reason} of the others.

    skipped: number of images that an earlier run had predicted.
    """

    run: "training.Run"
    network: "models.MsclForSemanticSegmentation"
    classes: tuple[str, ...]
    images: "list[evaluation.PredictedImage]"
    failed: dict[Path, str]
    skipped: int


@command
@leave_on_signal("stopped; the same command predicts the missing images")
def main() -> None:
    result = predict(parse(PredictConfig, __doc__.splitlines()[0]))
    result.run.accelerator.end_training()
    if result.failed and result.run.is_main:  # a launcher stops the other processes once one of them fails
        raise ValueError(evaluation.failure_message(result.failed, len(result.failed) + len(result.images)))


def predict(config: PredictConfig) -> PredictResult:
    """Predict images as the command does; masks and tables are written into config.run.output_dir."""
    config = sharing.pin_revisions(config)
    with training.start_run(config, resume=True) as run:  # the same command predicts the missing images
        listed = data.run_once(lambda: data.list_inputs(config.run.images, run.out))  # the same on all processes
        network = models.open_fine_tuned(config.run.model)
        config = resolved(config, network)
        classes = tuple(network.config.id2label[i] for i in range(network.config.num_labels))
        kinds = tuple(kind for kind in evaluation.OUTPUT_KINDS if getattr(config.run, kind))
        folder = evaluation.PredictionFolder(run.out, classes, kinds, config.run.max_pixels)
        if run.is_main:
            folder.write_classes()
            write_config(config, run.out / records.CONFIG)
        for note in listed.notes:
            run.log(note)
        finished = data.run_once(lambda: [folder.finished(path, name) for path, name in zip(listed.paths, listed.names)])
        pending = [i for i, image in enumerate(finished) if image is None]
        if len(pending) < len(finished):
            run.log(f"{len(finished) - len(pending)} of {len(finished)} images were predicted before")
        done, failed = predict_pending(network, listed, pending, folder, config, run)
        images = [image or done.get(i) for i, image in enumerate(finished)]
        result = PredictResult(run, network, classes, [i for i in images if i], failed, len(finished) - len(pending))
        report(result, folder)
    return result


def resolved(config: PredictConfig, network: "models.MsclForSemanticSegmentation") -> PredictConfig:
    """Return the configuration with image range, bands and size of the model, where it leaves them open."""
    name, model = config.run.model, network.config
    options = DatasetConfig(image_range=config.run.image_range, bands=config.run.bands).with_range_of(name, model.image_range)
    bands = options.with_bands_of(name, model.bands, model.num_channels).bands
    inference = evaluation.with_size_of(network, config.inference)
    return replace(config, run=replace(config.run, image_range=options.image_range, bands=bands), inference=inference)


def predict_pending(
    network: "models.MsclForSemanticSegmentation", listed: "data.ImageList", pending: Sequence[int],
    folder: "evaluation.PredictionFolder", config: PredictConfig, run: "training.Run",
) -> tuple[dict, dict]:  # fmt: skip
    """Predict the images at the pending indices, process r of n every n-th one; return {index: result} and {path: reason} of all."""
    accelerator = run.accelerator
    mine = pending[accelerator.process_index :: accelerator.num_processes]

    def work() -> list[tuple]:
        rows = []
        paths, names = ([of_all[i] for i in mine] for of_all in (listed.paths, listed.names))
        with evaluation.evaluating(network.to(accelerator.device)):
            predictor = evaluation.Predictor(
                evaluation.finite(network), network.config, accelerator.device, config.inference, accelerator.autocast
            )
            pipeline = evaluation.PredictionPipeline(
                predictor, folder, config.run.image_range, config.run.bands, config.inference.eval_threads
            )
            results, hidden = pipeline.run(paths, names), None if run.is_main else True
            for number, result in progress_bar(results, total=len(mine), desc="predict", unit="image", disable=hidden):
                if isinstance(result, str):
                    print(f"skipped: {result}", flush=True)
                rows.append((mine[number], result))
        return rows

    from accelerate.utils import gather_object  # here: it imports torch, which --help does not wait for

    rows = sorted(gather_object(training.together(accelerator, work, "predicting images", on_all=True)), key=lambda row: row[0])
    failed = {listed.paths[i]: result for i, result in rows if isinstance(result, str)}
    return {i: result for i, result in rows if not isinstance(result, str)}, failed


def report(result: PredictResult, folder: "evaluation.PredictionFolder") -> None:
    """Write the tables, and print where the results are."""
    if not result.run.is_main:
        return
    folder.write_table(result.images, result.failed)
    written = ", ".join(("masks", *folder.kinds))
    print(f"predicted: {len(result.images)} of {len(result.images) + len(result.failed)} images")
    print(f"{written}, predictions.csv and classes.csv: {folder.folder}")


if __name__ == "__main__":
    main()
