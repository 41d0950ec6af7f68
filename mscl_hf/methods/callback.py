"""For transformers' Trainer: what the training loop of mscl_hf does around a step."""

from transformers import TrainerCallback


class MethodCallback(TrainerCallback):
    """Keeps a method's `progress` and calls its `after_step`: without, teachers stand still and schedules do not move.

    Trainer(method, arguments, callbacks=[MethodCallback()], ...)
    """

    def on_step_begin(self, args, state, control, model=None, **rest):
        model.progress = state.global_step / state.max_steps

    def on_step_end(self, args, state, control, model=None, **rest):
        model.after_step(state.global_step / state.max_steps)
