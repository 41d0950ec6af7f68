"""Train a method with transformers' Trainer."""

from transformers import TrainerCallback


class MethodCallback(TrainerCallback):
    """Set a method's `fraction_done` and call its `after_step`, which update EMA teachers and schedules.

    Trainer(method, arguments, callbacks=[MethodCallback()], ...)
    """

    def on_step_begin(self, args, state, control, model=None, **_):
        model.fraction_done = state.global_step / state.max_steps

    def on_step_end(self, args, state, control, model=None, **_):
        model.after_step(state.global_step / state.max_steps)
