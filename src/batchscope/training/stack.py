"""Runs of one model side by side: their weights in one block of memory, and an update of all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from batchscope.errors import WorkloadError
from batchscope.records import Plan
from batchscope.schedule import rescale
from batchscope.seeding import derive, isolated
from batchscope.training.captured_update import captured_or_none
from batchscope.training.flat_graph import Flat
from batchscope.training.stacked_optimizer import StackedOptimizer
from batchscope.training.traced_step import TensorNames, batched, losses_and_gradients, traced, untraced
from batchscope.training.update import clip_rows
from batchscope.workload.workload import Batch, Workload

# Weights begin at multiples of this many elements, so that they lie as well in memory as tensors of their own.
ALIGNMENT = 16
# On CUDA the update is recorded once the optimiser has all of its state, and what is set up at first use is.
UPDATES_BEFORE_CAPTURE = 2


def unstackable(workload: Workload) -> str | None:
    """What a workload says of its loop that no stack does.

    Args:
        workload: What is to be trained.

    Returns:
        The reason, in a sentence without a full stop; None where there is nothing.

    Examples:
        >>> from dataclasses import replace
        >>> from batchscope.workload.digits import digits
        >>> unstackable(replace(digits(), compile=True))
        'a stack traces its updates itself, and compile=True asks for torch.compile'
    """
    if workload.precision == "fp16":
        return "the loss scaler of precision='fp16' skips updates of one run and not of another"
    if workload.compile:
        return "a stack traces its updates itself, and compile=True asks for torch.compile"
    return None


class Stack:
    """Replicas of a workload's model, each with its own seed and learning rate, and their optimiser.

    The weights of replica k are row k of one matrix, and so are the gradients. The models' own parameters are views of
    it, so that each is a live model. The step is traced once for the shape of a batch: through ``vmap`` for all
    replicas together, or for one of them and called for each in turn, which is faster where the arithmetic of a single
    one fills the processor. Where it cannot be traced, the function itself is called; so it is for a shape that comes
    once, as the short last batch does. On CUDA the whole update is recorded and replayed, where that can be done.

    Args:
        workload: What is trained.
        plans: One for each replica; only their learning rates may differ.
        seeds: Likewise.
        device: Where.
        example: A batch of one replica, of the size to come.
        in_turn: One replica after the other, instead of all in one batched pass.

    Raises:
        WorkloadError: A model that no stack can be made of.

    Attributes:
        models: The model of each replica, on its rows.
        names: Their tensors.
        weights: The trained tensors of all replicas, each with a leading dimension for the replica.
        others: All other tensors, likewise.
        form: How a batch is put together of its tensors.
    """

    def __init__(
        self,
        workload: Workload,
        plans: Sequence[Plan],
        seeds: Sequence[int],
        device: torch.device,
        *,
        example: Batch,
        in_turn: bool = False,
    ) -> None:
        if (reason := unstackable(workload)) is not None:
            raise WorkloadError(
                "runs of a stack are neither compiled nor in half precision with a scaler",
                got=reason,
                mend="train the runs by themselves",
            )
        self.workload, self.device, self.in_turn = workload, device, in_turn
        self.models: list[nn.Module] = []
        optimizers: list[torch.optim.Optimizer] = []
        for plan, seed in zip(plans, seeds, strict=True):
            with isolated(derive(seed, "weights"), device):
                model = workload.model().to(device)
                optimizer = workload.optimizer_for(model, plan.learning_rate)
            if plan.rescaled_from is not None:
                rescale(optimizer, from_batch_size=plan.rescaled_from, to_batch_size=plan.batch_size)
            self.models.append(model)
            optimizers.append(optimizer)
        leaves, self.form = pytree.tree_flatten(example)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise WorkloadError(
                "a batch in a stack must be made of tensors alone",
                got=", ".join(sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)})),
            )
        self._example = [leaf.detach() for leaf in leaves]
        used = self._used(example)
        parameters = dict(self.models[0].named_parameters())
        position = {id(p): i for i, p in enumerate(p for g in optimizers[0].param_groups for p in g["params"])}
        trained = sorted(
            (name for name in used if id(parameters[name]) in position), key=lambda name: position[id(parameters[name])]
        )
        kinds = {parameters[name].dtype for name in trained}
        if len(kinds) != 1:
            raise WorkloadError("the weights of a stack must be of one type", got=", ".join(map(str, kinds)) or "none")
        self.names = TensorNames(trained, [name for name, _ in _tensors(self.models[0]) if name not in trained])
        chosen = {id(parameters[name]) for name in trained}
        self.optimizer = StackedOptimizer(optimizers, [identity in chosen for identity in position])
        self._steps: dict[torch.Size, Flat] = {}
        self._captured: Callable[[Sequence[Tensor]], Tensor] | None = None
        self._updates = 0
        self._place()

    @property
    def size(self) -> int:
        """Replicas in the stack."""
        return len(self.models)

    @property
    def tensors(self) -> list[Tensor]:
        """All that the replicas are made of, each tensor with a leading dimension for the replica."""
        return [self._block, *self.others]

    @property
    def is_batched(self) -> bool:
        """Whether all replicas pass together; one alone has nothing to be batched with."""
        return not self.in_turn and self.size > 1

    @torch.no_grad()
    def update(self, leaves: Sequence[Tensor]) -> Tensor:
        """Make an update of every replica.

        Args:
            leaves: The tensors of a batch, each with a leading dimension for the replicas.

        Returns:
            Each replica's loss before the update, on the device.
        """
        if self._captured is not None and leaves[0].shape == self._usual:
            return self._captured(leaves)
        losses = self._update(leaves)
        self._updates += 1
        if self.device.type == "cuda" and self._updates == UPDATES_BEFORE_CAPTURE and self.optimizer.is_capturable:
            self._captured = captured_or_none(self._update, leaves)
        return losses

    def _update(self, leaves: Sequence[Tensor]) -> Tensor:
        losses = self.gradient(leaves)
        clip_rows(self.workload, self._gradient_block)
        self.optimizer.step()
        return losses

    @torch.no_grad()
    def gradient(self, leaves: Sequence[Tensor]) -> Tensor:
        """Leave every replica's gradient where its optimiser finds it.

        Args:
            leaves: As for :meth:`update`.

        Returns:
            Each replica's loss.
        """
        shape = leaves[0].shape
        step = self._steps.get(shape)
        if step is None:
            step = self._steps[shape] = self._step(leaves)
        if self.is_batched:
            return step(*self.weights, *self.others, *leaves, *self._gradients)[0]
        losses = [
            step(*tensors, *(leaf[k] for leaf in leaves), *into)[0]
            for k, (tensors, into) in enumerate(zip(self._tensors_of, self._gradients_of, strict=True))
        ]
        return torch.stack(losses)

    def keep(self, replicas: Sequence[int]) -> None:
        """Go on with these replicas alone.

        Args:
            replicas: Their positions.
        """
        self.models = [self.models[k] for k in replicas]
        self.optimizer.keep(replicas)
        self._place()

    def _step(self, leaves: Sequence[Tensor]) -> Flat:
        """The step for batches of this shape, traced where it is the usual one."""
        one = losses_and_gradients(self.workload, self.models[0], self.names, self.form)
        given = len(self.names.trained)
        function = batched(one) if self.is_batched else one
        if leaves[0].shape[1:] == self._example[0].shape:
            own = self.is_batched
            tensors = [*self.weights, *self.others] if own else self._tensors_of[0]
            flat, _ = traced(
                self.workload,
                function,
                [*tensors, *(leaves if own else (leaf[0] for leaf in leaves))],
                self._gradients if own else self._gradients_of[0],
                key=("step", own, str(self.form), self.names.trained),
                written=slice(given, len(self.names)),
            )
            if flat is not None:
                return flat
        return untraced(function, given)

    def _used(self, example: Batch) -> list[str]:
        """Names of the parameters that get a gradient; an optimiser leaves the others alone, decay included."""
        with isolated(0, self.device):
            model = self.workload.model().to(self.device)
            wanted = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            with torch.enable_grad():
                loss = self.workload.loss(*self.workload.output_and_target(model, example))
                gradients = torch.autograd.grad(loss, [p for _, p in wanted], allow_unused=True)
        return [name for (name, _), gradient in zip(wanted, gradients, strict=True) if gradient is not None]

    def _place(self) -> None:
        """Copy every replica's tensors into blocks that begin with the first and end with the last of them."""
        all_of = [dict(_tensors(model)) for model in self.models]
        first = all_of[0]
        edges, places, width = [0], [], 0
        counts = iter(self.names.trained)
        for count in self.optimizer.segments():
            for name in (next(counts) for _ in range(count)):
                places.append(slice(width, width + first[name].numel()))
                width += -(-first[name].numel() // ALIGNMENT) * ALIGNMENT
            edges.append(width)
        like: dict[str, Any] = {"dtype": first[self.names.trained[0]].dtype, "device": self.device}
        weights, gradients = (torch.zeros(self.size, width, **like) for _ in range(2))
        self._block, self._gradient_block = weights, gradients

        def views(block: Tensor) -> list[Tensor]:
            return [
                block[:, place].view(self.size, *first[name].shape)
                for name, place in zip(self.names.trained, places, strict=True)
            ]

        self.weights, self._gradients = views(weights), views(gradients)
        self.others = [torch.stack([tensors[name].detach() for tensors in all_of]) for name in self.names.others]
        self._tensors_of, self._gradients_of = [], []
        for k, tensors in enumerate(all_of):
            own = [stacked[k] for stacked in (*self.weights, *self.others)]
            into = [stacked[k] for stacked in self._gradients]
            for place, name in zip(own, (*self.names.trained, *self.names.others), strict=True):
                place.copy_(tensors[name].detach())
                tensors[name].data = place
            for place, name in zip(into, self.names.trained, strict=True):
                tensors[name].grad = place
            self._tensors_of.append(own)
            self._gradients_of.append(into)
        self.optimizer.bind(weights, gradients, edges)
        usual = [leaf.expand(self.size, *leaf.shape).contiguous() for leaf in self._example]
        self._usual = usual[0].shape
        self._steps = {self._usual: self._step(usual)}
        self._captured, self._updates = None, 0


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
