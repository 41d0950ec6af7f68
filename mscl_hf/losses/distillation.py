"""Distillation by similarities: the student's vectors have as similar neighbors as the teacher's.

Letters: N rows, M keys, E and F embeddings of student and teacher; leading dimensions are sets with keys of their own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, without_autocast
from .streamed import MASKED_SCORE


@without_autocast
def similarity_divergence(
    student: Tensor, teacher: Tensor, student_keys: Tensor, teacher_keys: Tensor, temperature: float = 0.07, exclude_self: bool = False
) -> Tensor:  # fmt: skip
    """Return the mean over the rows of KL(softmax(teacher teacher_keys' / t) || softmax(student student_keys' / t)).

    With a queue of the teacher's vectors as both keys it is the form of SEED's loss (Fang et al., ICLR 2021, arXiv:2101.04731). With the
    positions of an image as rows and keys it transfers their relations, whatever the two dimensions are.

    student (..., N, E), teacher (..., N, F), student_keys (..., M, E), teacher_keys (..., M, F): unit vectors. The teacher has no gradient.
    exclude_self: leave out key n of row n, for keys that are the rows: it is most similar in both, and would hide the others.
    """
    rows = [at_least_float32(student), at_least_float32(teacher.detach())]
    keys = [at_least_float32(student_keys), at_least_float32(teacher_keys.detach())]
    scores = [row @ key.mT / temperature for row, key in zip(rows, keys)]
    if exclude_self:
        diagonal = torch.eye(scores[0].shape[-1], dtype=torch.bool, device=scores[0].device)
        scores = [score.masked_fill(diagonal, MASKED_SCORE) for score in scores]
    log_student, log_teacher = (score.log_softmax(-1).flatten(0, -2) for score in scores)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
