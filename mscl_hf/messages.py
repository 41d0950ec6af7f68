"""Parts of error messages: spelling of flags, similar names, and the equivalents of other libraries' options."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

# {former name of an option: current name}
RENAMED = {
    "lr": "learning-rate", "schedule": "lr-scheduler-type", "optimizer": "optim", "precision": "mixed-precision",
    "compile": "torch-compile", "num-workers": "dataloader-num-workers", "clip-norm": "max-grad-norm",
    "save-every-steps": "save-steps", "log-every-steps": "logging-steps", "health-every-steps": "health-steps",
    "keep-checkpoints": "save-total-limit", "decoded-cache-gb": "image-cache-gb", "colour": "color-strength", "queue": "queue-size",
    "reduce": "pixel-reduction", "label-down": "label-downsampling",
    **{f"tau-{scale[0]}": f"{scale}-temperature" for scale in ("global", "local", "pixel")},
    **{f"lambda-{scale[0]}": f"{scale}-weight" for scale in ("global", "local", "pixel")},
}  # fmt: skip
# (options of other libraries, the option that a command must have for the advice to apply (None: any command), the advice). The first
# row that applies is used.
ADVICE = (
    ("num-epochs max-epochs train-epochs num-train-epochs n-epochs", "epochs", "Give --epochs, or --max-steps in optimizer steps"),
    ("iters iterations max-iters num-iters total-steps num-steps max-iterations train-steps", "max-steps", "Give --max-steps"),
    ("device devices gpus gpu gpu-ids cuda cpu no-cuda use-cpu ngpus n-gpus num-gpus local-rank world-size distributed multi-gpu", None,
     "Choose devices outside the command: CUDA_VISIBLE_DEVICES=0, or accelerate launch --num_processes N for several"),
    ("amp fp16 bf16 half use-amp autocast dtype", "mixed-precision", "Give --mixed-precision bf16, or fp16 on GPUs without bf16"),
    ("workers j num-worker dataloader-workers n-workers", "dataloader-num-workers", "Give --dataloader-num-workers"),
    ("data dataset-dir dataset-path data-path data-root datadir train-dir", "data-dir", "Give --data-dir, and --dataset for its layout"),
    ("channels num-channels n-channels in-chans in-channels input-channels", "bands",
     "Give --bands, the numbers of the bands to read, such as 1 2 3 4"),
    ("tile-size tiles tiling patch-size tile-overlap", "tile", "Give --tile SIZE OVERLAP"),
    ("train-data-dir train-images img-dir images-dir", "image-dir", "Give --image-dir"),
    ("masks labels mask-path masks-dir label-dir labels-dir annotations ann-dir", "mask-dir", "Give --mask-dir"),
    ("weights checkpoint ckpt pretrained-weights load-from model-path init-weights from-pretrained", "backbone-weights",
     "Give --backbone-weights FILE for a backbone's weights, or --start-from FOLDER for a model of mscl-pretrain"),
    ("weights checkpoint ckpt pretrained-weights load-from start-from model-path backbone from-pretrained arch", "model",
     "Give --model FOLDER, the output folder of a finished run"),
    ("arch encoder model model-name network backbone-name net", "backbone", "Give --backbone, the name of a timm model"),
    ("resume-from resume-from-checkpoint resume-path auto-resume continue", "resume", "Give --resume and the --output-dir of the run"),
    ("img-size imgsz crop-size input-size img image-height img-height resolution", "image-size", "Give --image-size"),
    ("img-size imgsz crop-size input-size img image-height img-height resolution image-size", "base-size",
     "Give --base-size, to which the short side is scaled"),
    ("base-lr lr0 init-lr max-lr", "learning-rate", "Give --learning-rate"),
    ("wd l2", "weight-decay", "Give --weight-decay"),
    ("scheduler lr-scheduler lr-schedule sched", "lr-scheduler-type", "Give --lr-scheduler-type cosine or polynomial"),
    ("warmup warmup-epochs warmup-iters num-warmup-steps warmup-ratio", "warmup-steps", "Give --warmup-steps"),
    ("batch bs train-batch-size batchsize per-device-train-batch-size samples-per-gpu", "batch-size",
     "Give --batch-size, which counts the images of all processes"),
    ("grad-accum accumulate gradient-accumulation accum-iter accumulate-grad-batches", "gradient-accumulation-steps",
     "Give --gradient-accumulation-steps"),
    ("grad-clip clip clip-grad gradient-clip-val", "max-grad-norm", "Give --max-grad-norm"),
    ("output out output-path out-dir save-dir save-path work-dir log-dir logdir exp-dir", "output-dir", "Give --output-dir"),
    ("nc n-classes num-labels class-num nclass", "num-classes", "Give --num-classes, or --classes with names"),
    ("ignore-index ignore-label", "label-map", "255 is ignored: map other ids to it by --label-map, such as 0:255"),
    ("palette colormap color-map class-dict colors", "class-colors", "Give --class-colors FILE, the color of each class"),
    ("val-ratio val-size validation-fraction test-size", "val-fraction", "Give --val-fraction, the share of images to hold out"),
    ("ann-file annotation-file annotation annotations-file json", "annotations", "Give --annotations FILE with --dataset coco or cvat"),
    ("tau temp", "pixel-temperature", "Each loss has its own: give --global-temperature, --local-temperature or --pixel-temperature"),
    ("log-interval print-freq log-every", "logging-steps", "Give --logging-steps"),
    ("save-freq save-interval checkpoint-interval save-every", "save-steps", "Give --save-steps"),
    ("max-keep", "save-total-limit", "Give --save-total-limit"),
    ("wandb tensorboard logger use-wandb", "report-to", "Give --report-to tensorboard, trackio or wandb"),
    ("eval eval-only evaluate test test-only val-only", "max-steps", "Use mscl-evaluate to measure a model"),
    ("image img input inputs input-dir source src path data data-dir dataset-dir image-dir img-dir images-dir test-dir", "images",
     "Give --images FILE, FOLDER or PATTERN"),
    ("batch-size batch bs workers num-workers dataloader-num-workers", "images", "Images are predicted one at a time: leave it out"),
    ("save-overlay save-overlays overlay vis visualize show", "overlays", "Give --overlays"),
    ("save-prob save-probs probs softmax save-logits", "probabilities", "Give --probabilities"),
    ("tile tiles tile-size patch-size window-size", "window", "Give --mode slide and --window"),
    ("batch-size batch bs workers num-workers dataloader-num-workers", "score-classes", "Images are evaluated one at a time: leave it out"),
    ("train-count train-fraction subset-seed", "score-classes", "All images of --split are measured: leave it out"),
    ("eval-split test-split train-split val-split", "split", "Give --split"),
    ("eval-split validation-split test-split", "val-split", "Give --val-split"),
    ("tta flip-test test-time-augmentation", "flip", "Give --flip, --scales or both"),
    ("push hub repo-id hub-model-id", "push-to-hub", "Give --push-to-hub NAMESPACE/NAME"),
)  # fmt: skip
LAYOUTS = {
    "roboflow": "Give --dataset coco for an export in COCO format.",
    "csv": "Give --dataset list.",
    "json": "Give --dataset coco, labelme or list.",
    "voc": "Give --dataset voc2012.",
    "pascal": "Give --dataset voc2012.",
    "ade": "Give --dataset ade20k.",
    "cityscape": "Give --dataset cityscapes.",
    "imagefolder": "Give --dataset folder.",
    "custom": "Give --dataset folder.",
    "huggingface": "Give --dataset hf.",
}


def flag(name: str) -> str:
    """Return an option as it is spelled on the command line: --max-steps for max_steps."""
    return "--" + name.replace("_", "-")


def near_names(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean ...?" with up to three known names that are similar to `name`; "" where none is."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    similarity = [difflib.SequenceMatcher(None, match, name).ratio() for match in matches]
    matches = [match for match, ratio in zip(matches, similarity) if ratio > similarity[0] - 0.15]  # no poor match beside a good one
    return f"Did you mean {' or '.join(matches)}?" if matches else ""


def first_three(items: Sequence[str]) -> str:
    """Return the first three items and the number of the others."""
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def unknown_option(word: str, known: Sequence[str], commands: Mapping[str, Iterable[str]]) -> str:
    """Return the message for an unknown option.

    word: --x, --x=1 or x. known: options of the command in the same spelling. commands: {command: its options}.
    """
    name, flags = _plain(word), {_plain(option): option.replace("_", "-") for option in known}
    shown = word.split("=")[0] if word and word.isprintable() else repr(word)
    if RENAMED.get(name) in flags:
        return f"{shown} was renamed. Give {flags[RENAMED[name]]}."
    advice = next((text for words, wanted, text in ADVICE if name in words.split() and (wanted is None or wanted in flags)), None)
    if advice:
        return f"{shown} is not an option of this command. {advice}."
    if owners := [command for command, options in commands.items() if name in map(_plain, options)]:
        return f"{shown} is not an option of this command. It is an option of {' and '.join(owners)}."
    similar = near_names("--" + name if word.startswith("--") else name, flags.values())
    return f"{shown} is not an option of this command. {similar or 'See --help.'}"


def layout_advice(name: str) -> str:
    """Return what to use instead of a data layout that is not supported or has another name; "" where that is unknown."""
    word = re.sub(r"[\W_]", "", name.lower())
    return next((text for key, text in LAYOUTS.items() if word.startswith(key)), "")


def _plain(option: str) -> str:
    return option.split("=")[0].lstrip("-").replace("_", "-").lower()
