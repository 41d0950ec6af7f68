"""Options that other libraries have and these commands do not: what to use instead."""

import re
from collections.abc import Sequence

# Names of options, the option of ours (None = every command), and what to say. The first row whose option a command has is taken.
ROWS = (
    ("epochs num-epochs max-epochs train-epochs num-train-epochs n-epochs", "max-steps",
     "training length is given in optimizer steps; use --max-steps (epochs x images / --batch-size)"),
    ("iters iterations max-iters num-iters total-steps num-steps max-iterations train-steps", "max-steps", "give --max-steps"),
    ("device devices gpus gpu gpu-ids cuda cpu no-cuda use-cpu ngpus n-gpus num-gpus local-rank world-size distributed multi-gpu", None,
     "choose devices outside the command: CUDA_VISIBLE_DEVICES=0, or accelerate launch --num_processes N for several"),
    ("amp fp16 bf16 half use-amp mixed-precision autocast dtype", "precision", "give --precision bf16; fp16 is not supported"),
    ("workers j num-worker dataloader-num-workers dataloader-workers n-workers", "num-workers", "give --num-workers"),
    ("data dataset-dir dataset-path data-path data-root datadir train-dir", "data-dir",
     "give --data-dir, and --dataset for its layout"),
    ("train-data-dir train-images img-dir images-dir", "image-dir", "give --image-dir"),
    ("masks labels mask-path masks-dir label-dir labels-dir annotations ann-dir", "mask-dir", "give --mask-dir"),
    ("weights checkpoint ckpt pretrained-weights load-from model-path init-weights from-pretrained", "backbone-weights",
     "give --backbone-weights FILE for a backbone's weights, or --start-from FOLDER for a model of mscl-pretrain"),
    ("weights checkpoint ckpt pretrained-weights load-from start-from model-path backbone from-pretrained arch", "model",
     "give --model FOLDER, the output folder of a finished run"),
    ("arch encoder model model-name network backbone-name net", "backbone", "give --backbone, the name of a timm model"),
    ("resume-from resume-from-checkpoint resume-path auto-resume continue", "resume",
     "give --resume and the --output-dir of the run to continue"),
    ("img-size imgsz crop-size input-size img image-height img-height resolution", "image-size", "give --image-size"),
    ("img-size imgsz crop-size input-size img image-height img-height resolution image-size", "base-size",
     "give --base-size, to which the short side is brought"),
    ("learning-rate base-lr lr0 init-lr max-lr", "lr", "give --lr"),
    ("wd l2", "weight-decay", "give --weight-decay"),
    ("optim", "optimizer", "give --optimizer"),
    ("scheduler lr-scheduler lr-schedule lr-scheduler-type sched", "schedule", "give --schedule cosine or poly"),
    ("warmup warmup-epochs warmup-iters num-warmup-steps warmup-ratio", "warmup-steps", "give --warmup-steps"),
    ("batch bs train-batch-size batchsize per-device-train-batch-size samples-per-gpu", "batch-size",
     "give --batch-size, which counts the images of all processes"),
    ("grad-accum accumulate gradient-accumulation accum-iter accumulate-grad-batches", "gradient-accumulation-steps",
     "give --gradient-accumulation-steps"),
    ("grad-clip clip max-grad-norm clip-grad gradient-clip-val", "clip-norm", "give --clip-norm"),
    ("output out output-path out-dir save-dir save-path work-dir log-dir logdir exp-dir", "output-dir", "give --output-dir"),
    ("nc n-classes num-labels class-num nclass", "num-classes", "give --num-classes, or --classes with names"),
    ("ignore-index ignore-label", "label-map", "255 is ignored: map other ids to it by --label-map, such as 0:255"),
    ("tau temp", "tau-p", "each loss has its own: give --tau-g, --tau-l or --tau-p"),
    ("log-interval print-freq logging-steps log-every", "log-every-steps", "give --log-every-steps"),
    ("save-freq save-interval save-steps checkpoint-interval save-every", "save-every-steps", "give --save-every-steps"),
    ("save-total-limit max-keep", "keep-checkpoints", "give --keep-checkpoints"),
    ("wandb tensorboard logger use-wandb", "report-to", "give --report-to tensorboard, trackio or wandb"),
    ("eval eval-only evaluate test test-only val-only", "max-steps", "mscl-evaluate measures a model"),
    ("batch-size batch bs workers num-workers", "score-classes", "images are measured one at a time: leave it out"),
    ("eval-split test-split", "split", "give --split"),
    ("eval-split validation-split test-split", "val-split", "give --val-split"),
    ("tta flip-test test-time-augmentation", "flip", "give --flip, --scales or both"),
    ("push hub repo-id hub-model-id", "push-to-hub", "give --push-to-hub NAMESPACE/NAME"),
)  # fmt: skip
FORMATS = {
    "coco": "polygons and RLE are not read: draw them as masks of one class id a pixel, and use --dataset folder",
    "voc": "use --dataset voc2012",
    "pascal": "use --dataset voc2012",
    "ade": "use --dataset ade20k",
    "cityscape": "use --dataset cityscapes",
    "imagefolder": "use --dataset folder",
    "custom": "use --dataset folder",
    "huggingface": "use --dataset hf",
}


def remedy_for(option: str, known: list[str]) -> str | None:
    """What to use instead of an option, --x or x, that a command lacks; None where nothing is known.

    known: the command's own options, in the same spelling.
    """
    name, names = _plain(option.split("=")[0]), {_plain(word) for word in known}
    return next((text for words, wanted, text in ROWS if name in words.split() and (wanted is None or wanted in names)), None)


def dataset_remedy(name: str) -> str | None:
    """What to use for a data set or format that is known by another name, or not read; None where nothing is known."""
    word = re.sub(r"[\W_]", "", name.lower())
    return next((text for key, text in FORMATS.items() if word.startswith(key)), None)


def _plain(option: str) -> str:
    return option.lstrip("-").replace("_", "-").lower()

def first_three(items: Sequence[str]) -> str:
    """The first three items and how many there are."""
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
