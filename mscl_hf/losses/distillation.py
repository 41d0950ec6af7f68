"""Distillation by similarities: the student has as similar neighbors as the teacher.

Letters: N rows, M keys, E and F embeddings of student and teacher; leading dimensions are sets with keys of their own.
"""

import torch.nn.functional as F
from torch import Tensor

from .arguments import at_least_float32, without_autocast


@without_autocast
def similarity_divergence(
    student: Tensor, teacher: Tensor, student_keys: Tensor, teacher_keys: Tensor, temperature: float = 0.07
) -> Tensor:  # fmt: skip
    """Return the mean over the rows of KL(softmax(teacher teacher_keys' / t) || softmax(student student_keys' / t)).

    With a queue of the teacher's vectors as both keys it is SEED (Fang et al., ICLR 2021, arXiv:2101.04731); with the positions of an
    image as its rows and its keys it transfers their relations, whatever the two dimensions are.

    student (..., N, E), teacher (..., N, F), student_keys (..., M, E), teacher_keys (..., M, F): unit vectors. The teacher has no gradient.
    """
    rows = [at_least_float32(student), at_least_float32(teacher.detach())]
    keys = [at_least_float32(student_keys), at_least_float32(teacher_keys.detach())]
    own, target = ((row @ key.mT / temperature).log_softmax(-1).flatten(0, -2) for row, key in zip(rows, keys))
    return F.kl_div(own, target, reduction="batchmean", log_target=True)
