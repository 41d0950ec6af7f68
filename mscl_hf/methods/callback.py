"""Train a method with transformers' Trainer."""

from transformers import TrainerCallback


class MethodCallback(TrainerCallback):
    """Set a method's `fraction_done`, and call it before and after each step, for schedules, frozen layers and EMA teachers.

    Trainer(method, arguments, callbacks=[MethodCallback()], ...)
    """

    def on_init_end(self, args, state, control, model=None, **_):
        model.unfreeze()

    def on_step_begin(self, args, state, control, model=None, **_):
        model.fraction_done = state.global_step / state.max_steps
        model.before_step()

    def on_step_end(self, args, state, control, model=None, **_):
        model.after_step(state.global_step / state.max_steps)
