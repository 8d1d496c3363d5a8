"""PruningTrainer: the Trainer of transformers, with a pruning session and a teacher.

Data-parallel training, mixed precision, accumulation, logging and resuming are the Trainer's own.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from secateurs.data.batches import class_logits, token_weights
from secateurs.errors import CheckpointError, DataError
from secateurs.pruning.run_folders import is_whole, newest_whole, seal
from secateurs.pruning.session import Session

STATE = "pruning.pt"


@dataclass(frozen=True)
class Distillation:
    """Targets of a student beside its labels; a weight of 0 leaves a term out.

    Args:
        logits: Kullback-Leibler divergence to the teacher's classes at `temperature`, times its
            square (Hinton et al. 2015, arXiv 1503.02531); with one output, squared difference.
        hidden: squared distance of the hidden states after each layer over their squared length, on
            real tokens.
        attention: mean squared difference of the attention maps of real queries; needs models with
            `attn_implementation="eager"`.
        labels: of the loss against the labels.
    """

    logits: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    labels: float = 1.0
    temperature: float = 2.0

    def inputs(self) -> dict[str, bool]:
        """Return what both models are asked for."""
        wanted = {"output_hidden_states": self.hidden, "output_attentions": self.attention}
        return {name: True for name, weight in wanted.items() if weight}

    def loss(self, given: Any, wanted: Any, batch: Mapping[str, Any]) -> Tensor:
        """How far the student's output is from the teacher's. Raises DataError for two models of
        different shapes."""
        terms: list[Tensor] = []
        if self.logits:
            terms.append(self.logits * self._of_logits(class_logits(given), class_logits(wanted)))
        if self.hidden:
            pairs = _pairs(given, wanted, "hidden_states")[1:]
            terms += [self.hidden * _relative(*pair, batch) for pair in pairs]
        if self.attention:
            pairs = _pairs(given, wanted, "attentions")
            terms += [self.attention * _of_maps(*pair, batch) / len(pairs) for pair in pairs]
        return torch.stack(terms).sum()

    def _of_logits(self, given: Tensor, wanted: Tensor) -> Tensor:
        if given.shape != wanted.shape:
            raise DataError(
                f"expected a teacher with outputs of {tuple(given.shape)} as the student has, got "
                f"{tuple(wanted.shape)}"
            )
        if given.shape[-1] == 1:
            return F.mse_loss(given, wanted)
        t = self.temperature
        target = (wanted / t).log_softmax(-1)
        divergence = F.kl_div((given / t).log_softmax(-1), target, log_target=True, reduction="sum")
        return divergence * t**2 / given[..., 0].numel()


def _pairs(given: Any, wanted: Any, name: str) -> list[tuple[Tensor, Tensor]]:
    mine, yours = getattr(given, name, None) or (), getattr(wanted, name, None) or ()
    if not mine or [t.shape for t in mine] != [t.shape for t in yours]:
        raise DataError(
            f"expected {name} of one shape from student and teacher, got {len(mine)} and "
            f"{len(yours)} of {tuple(mine[0].shape) if mine else None} and "
            f"{tuple(yours[0].shape) if yours else None}"
        )
    return list(zip(mine, yours, strict=True))


def _relative(given: Tensor, wanted: Tensor, batch: Mapping[str, Any]) -> Tensor:
    weight = token_weights(wanted, batch)
    length = (wanted.square() * weight).sum().clamp_min(torch.finfo(wanted.dtype).tiny)
    return ((given - wanted).square() * weight).sum() / length


def _of_maps(given: Tensor, wanted: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """`[B, H, T, T]`, mean over the rows of real queries."""
    weight = token_weights(wanted.transpose(1, 2), batch).transpose(1, 2)
    count = weight.expand(*wanted.shape[:3], 1).sum() * wanted.shape[-1]
    return ((given - wanted).square() * weight).sum() / count


class PruningTrainer(Trainer):
    """The Trainer of transformers, driving a `Session` and imitating a teacher.

    Args:
        session: already entered, on the `model` given; None trains without pruning. Leave it once
            all training and evaluation with its gates is over.
        teacher: a dense model to imitate.
        distillation: how; by default its logits.

    Checkpoints hold the session's state beside the model's, and digests of all their files;
    resuming from one goes on exactly. With `resume_from_checkpoint=True` it is the last whole one.

    Raises CheckpointError for a checkpoint that was not written to its end, has lost a file since,
    is without a session's state, or of another session.
    """

    def __init__(
        self,
        *args: Any,
        session: Session | None = None,
        teacher: nn.Module | None = None,
        distillation: Distillation | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.session, self.teacher = session, teacher
        # Classifiers take `num_items_in_batch` and ignore it: their loss is a mean over the batch
        # at hand, as are a penalty and a distance, and all are divided under accumulation.
        self.model_accepts_loss_kwargs = False
        self.distillation = distillation or Distillation()
        if teacher is not None:
            teacher.eval().requires_grad_(False).to(self.args.device)
        if session is not None:
            self.add_callback(_Steps(session))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any
    ) -> Any:
        checkpoint = self._whole(resume_from_checkpoint) if resume_from_checkpoint else None
        try:
            return super().train(checkpoint, *args, **options)
        finally:  # mixed precision wraps the model's forward pass, and would outlast the training;
            # and a model still marked as prepared would not get the precision of the next one
            model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            vars(model).pop("_is_accelerate_prepared", None)

    def _whole(self, checkpoint: str | Path | Literal[True]) -> str:
        """The checkpoint asked for; the Trainer itself would pass over files that it misses."""
        whole: Path | None
        if checkpoint is True:
            checkpoint = Path(cast(str, self.args.output_dir))
            whole = newest_whole(checkpoint)
        else:
            whole = Path(checkpoint) if is_whole(checkpoint) else None
        if whole is None:
            raise CheckpointError(
                f"expected a whole checkpoint of PruningTrainer in {checkpoint}, got none: it was "
                "not written to its end, or files of it are missing or altered"
            )
        return str(whole)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.session is not None:
            groups = self.session.pruner.parameter_groups()
            cls, settings = self.get_optimizer_cls_and_kwargs(self.args, cast(Any, self.model))
            if groups and not self.session.pruner.trains_model:
                self.optimizer = cls(groups, **settings)
                return self.optimizer
            optimizer = super().create_optimizer(model)
            for group in groups:
                optimizer.add_param_group(group)
            return optimizer
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, *args: Any, **options: Any) -> Any:
        if self.session is not None and self.optimizer is not None:
            self.session.begin(num_training_steps)
            groups = self.session.pruner.parameter_groups()  # a rate may follow from the steps
            own = {id(group["params"][0]): group for group in groups}
            for group in self.optimizer.param_groups:
                group.update(own.get(id(next(iter(group["params"]), None)), {}))
        return super().create_scheduler(num_training_steps, *args, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        teacher = self.teacher if model.training else None
        if teacher is not None:
            inputs = {**inputs, **self.distillation.inputs()}
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(**{k: v for k, v in inputs.items() if k != "labels"})
            loss = self.distillation.labels * loss
            loss = loss + self.distillation.loss(outputs, wanted, inputs)
        if self.session is not None and model.training:
            loss = loss + self.session.penalty()
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:  # unscales the gradients, and clips them to infinity: not at all
            grad_norm = super()._get_grad_norm(model)  # type: ignore[no-untyped-call]
            if self.session is not None:
                self.session.after_backward(finite=math.isfinite(grad_norm))
        return grad_norm

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = self._get_grad_norm(model)
        nn.utils.clip_grads_with_norm_(
            model.parameters(), self.args.max_grad_norm, torch.as_tensor(norm)
        )
        return norm

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        if self.session is not None and self.is_in_train:
            logs = {**logs, **self.session.pruner.figures()}
        super().log(logs, *args, **options)

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        # The older checkpoint may go only once the new one is whole.
        most, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(*args, **options)
        finally:
            self.args.save_total_limit = most
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=None))
            if not self.args.save_only_model:
                seal(folder / f"checkpoint-{self.state.global_step}")
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(folder), most, best, use_mtime=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.session is not None and self.args.should_save:
            torch.save(self.session.state_dict(), Path(output_dir) / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.session is not None:
            path = Path(checkpoint) / STATE
            try:
                state = torch.load(path, weights_only=True)
            except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise CheckpointError(
                    f"expected the state of a pruning session in {path}, got {error}"
                ) from error
            self.session.load_state_dict(state)
        super()._load_optimizer_and_scheduler(checkpoint)


class _Steps(TrainerCallback):
    """Tells a session how long the training is, and when the weights have moved."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._session.begin(state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._session.after_step()
