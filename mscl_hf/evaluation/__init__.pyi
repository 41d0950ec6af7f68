from .evaluate import draw_predictions as draw_predictions
from .evaluate import evaluate_model as evaluate_model
from .evaluate import in_sentences as in_sentences
from .inference import predict_ids as predict_ids
from .inference import predict_logits as predict_logits
from .metrics import MeanIoU as MeanIoU
