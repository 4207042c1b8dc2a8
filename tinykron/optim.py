"""Optimisers, learning-rate schedules and gradient clipping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import Any

from tinykron.backend import Array, xp_of
from tinykron.errors import CheckpointError, TinykronError
from tinykron.nn import Module, Parameter
from tinykron.threads import by_rows


@dataclass
class Group:
    """Parameters that are updated alike. `scale` multiplies the learning rate."""

    parameters: list[Parameter]
    weight_decay: float = 0.0
    scale: float = 1.0


def decay_groups(model: Module, weight_decay: float) -> list[Group]:
    """Return two groups: matrices decay, vectors (biases, norms) do not. Loshchilov & Hutter 2019; GPT-2's practice.

    A frozen parameter, which requires no gradient, is in neither.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        Group([p for p in parameters if p.ndim > 1], weight_decay),
        Group([p for p in parameters if p.ndim <= 1], 0.0),
    ]


class Optimiser:
    """What SGD and AdamW share: groups, the learning rate, and a state that can be saved."""

    SLOTS: tuple[str, ...] = ()  # the arrays kept per parameter

    def __init__(self, parameters: Sequence[Parameter] | Sequence[Group], lr: float) -> None:
        if lr < 0:
            raise TinykronError(f"learning rate: found {lr}, expected at least 0")
        groups = list(parameters)
        self.groups: list[Group] = groups if groups and isinstance(groups[0], Group) else [Group(groups)]  # type: ignore
        self.lr, self.steps = lr, 0
        flat = [p for group in self.groups for p in group.parameters]
        if not flat or len({id(p) for p in flat}) != len(flat):
            raise TinykronError("optimiser: expected parameters, each of them once")
        self.state: list[dict[str, Array]] = [
            {slot: xp_of(p.data).zeros(p.shape, dtype=p.dtype) for slot in self.SLOTS} for p in flat
        ]

    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        self.steps += 1
        states = iter(self.state)
        for group in self.groups:
            for parameter in group.parameters:
                state = next(states)
                if parameter.grad is not None:
                    if not parameter.data.flags.c_contiguous:  # the update goes through a flat view of its memory
                        parameter.data = xp_of(parameter.data).ascontiguousarray(parameter.data)
                    arrays = [parameter.data, parameter.grad, *(state[slot] for slot in self.SLOTS)]
                    self.update(xp_of(parameter.data), group, [array.reshape(-1) for array in arrays])

    def update(self, xp: Any, group: Group, arrays: list[Array]) -> None:
        """Update one parameter: `arrays` are its values, its gradient and its slots, flat."""
        raise TinykronError(f"{type(self).__name__} defines no update")

    def state_dict(self) -> dict[str, Array]:
        """Return the slots by name, in the order of the parameters: "0.momentum", "1.momentum", ..."""
        return {f"{i}.{slot}": array for i, state in enumerate(self.state) for slot, array in state.items()}

    def load_state_dict(self, arrays: Mapping[str, Array], steps: int) -> None:
        """Take over slots and the number of steps done. Raises CheckpointError if they do not fit."""
        own = self.state_dict()
        if {name: tuple(array.shape) for name, array in arrays.items()} != {n: tuple(a.shape) for n, a in own.items()}:
            raise CheckpointError(
                f"optimiser state: found {len(arrays)} arrays that do not fit the {len(own)} expected"
            )
        for name, array in own.items():
            array[...] = xp_of(array).asarray(arrays[name])
        self.steps = steps


class SGD(Optimiser):
    """p -= lr * v, with v = momentum * v + gradient + weight_decay * p."""

    SLOTS = ("velocity",)

    def __init__(
        self, parameters: Sequence[Parameter] | Sequence[Group], lr: float = 0.01, momentum: float = 0.0
    ) -> None:
        super().__init__(parameters, lr)
        self.momentum = momentum

    def update(self, xp, group, arrays):
        lr = self.lr * group.scale

        def rows(p, g, velocity):
            velocity *= self.momentum
            velocity += g
            if group.weight_decay:
                velocity += group.weight_decay * p
            p -= lr * velocity

        by_rows(rows, *arrays)


class AdamW(Optimiser):
    """Adam with decoupled weight decay. Kingma & Ba 2015; Loshchilov & Hutter 2019, algorithm 2.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr * (weight_decay p + m' / (sqrt(v') + eps)),
    where m' and v' are m and v divided by 1 - b1^t and 1 - b2^t.
    """

    SLOTS = ("first", "second")

    def __init__(
        self,
        parameters: Sequence[Parameter] | Sequence[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, lr)
        self.betas, self.eps = betas, eps

    def update(self, xp, group, arrays):
        b1, b2 = self.betas
        lr = self.lr * group.scale
        root = sqrt(1.0 - b2**self.steps)  # the two corrections of the averages go into two numbers
        step, eps = lr * root / (1.0 - b1**self.steps), self.eps * root

        def rows(p, g, first, second):
            scratch = g * (1.0 - b1)
            first *= b1
            first += scratch
            xp.multiply(g, g, out=scratch)
            scratch *= 1.0 - b2
            second *= b2
            second += scratch
            xp.sqrt(second, out=scratch)
            scratch += eps
            xp.divide(first, scratch, out=scratch)
            scratch *= step
            if group.weight_decay:
                p *= 1.0 - lr * group.weight_decay
            p -= scratch

        by_rows(rows, *arrays, block=16384)  # five arrays pass through the cache together


def clip_gradients(parameters: Sequence[Parameter], limit: float) -> float:
    """Scale all gradients so that their joint Euclidean norm is at most `limit`; return the norm before.

    Pascanu et al. 2013. A norm that is NaN or infinite scales nothing: the caller sees it in the result.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise TinykronError("clip_gradients: no parameter has a gradient; call backward first")
    flat = [gradient.reshape(-1) for gradient in gradients]
    norm = sqrt(float(sum(gradient @ gradient for gradient in flat)))
    if limit < norm < float("inf"):
        scale = limit / norm
        for gradient in gradients:
            gradient *= scale
    return norm


Schedule = Callable[[int], float]


def schedule(kind: str, steps: int, warmup: int = 0, floor: float = 0.0) -> Schedule:
    """Return the factor of the learning rate at step 0, 1, ..., steps - 1.

    kind    "constant", "linear" or "cosine": how it falls from 1 to `floor` after the warm-up
    warmup  steps over which it first rises in a line, from 1 / warmup to 1
    """
    if kind not in ("constant", "linear", "cosine"):
        raise TinykronError(f'schedule: found "{kind}", expected "constant", "linear" or "cosine"')
    if not 0 <= warmup <= steps:
        raise TinykronError(f"schedule: a warm-up of {warmup} steps does not fit into {steps}")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        fall = {"constant": 0.0, "linear": done, "cosine": (1.0 - cos(pi * done)) / 2.0}[kind]
        return 1.0 - (1.0 - floor) * fall

    return factor
