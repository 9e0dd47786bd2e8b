"""The contract of a backend, and its reference: backpropagation over any module with NumPy's interface.

Every method is written here once, for reading; a backend sets `xp` and overrides a method only for speed, with the
same arguments and the same side effects. Rows are samples. ``out`` arguments are written, all others are only read,
but for `update`, whose name says so. Arguments that do not fit together raise ValueError: see
`bpgpu.backends.contract`.
"""

import functools
import math
from typing import Any

import numpy as np

from bpgpu.backends import contract, sums
from bpgpu.backends.data import Batch, Data, Dropout
from bpgpu.backends.memory import Array
from bpgpu.backends.non_finite import first_fault, first_layer
from bpgpu.backends.plan import Plan, Room
from bpgpu.backends.softmax import any_cost, binary_cross_entropy, cross_entropy, softmax
from bpgpu.errors import NonFiniteError
from bpgpu.interop import is_sparse
from bpgpu.kernels import formulas, philox
from bpgpu.model.activations import IDENTITY, Activation
from bpgpu.model.costs import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, Cost, output_formulas
from bpgpu.model.optimizers import Optimizer
from bpgpu.sparse import frozen, is_checked


class Backend(Room):
    """Backpropagation on one device.

    Attributes
    ----------
    name, xp, device, takes_sparse
        As of `Room` and its `Memory`.
    """

    def __repr__(self) -> str:
        return f"<bpgpu backend {self.name} on {self.device}>"

    # Data

    def prepare(self, plan: Plan, data: Data, parameters: Array) -> None:
        """Allocate on the device what else the epochs of a plan with these placed data need."""

    def place(self, data: Data, plan: Plan) -> Data:
        """Return the data where batches are best taken from: on the device, if they fit beside what a plan needs.

        Parameters
        ----------
        data : Data
            In NumPy arrays or, X and y, in the backend's own.
        plan : Plan

        Raises
        ------
        MemoryError
            If there is not even room for the batches under way.
        """
        return data

    # Forward

    def forward(
        self,
        a_prev: Array,
        W: Array,
        b: Array | None,
        activation: Activation,
        *,
        out: Array,
        out_z: Array | None = None,
    ) -> None:
        """Compute ``z = a_prev W + b`` and ``a = sigma(z)`` for a batch.

        Parameters
        ----------
        a_prev : array, shape (B, n_{l-1})
            Also CSR, if the backend takes it.
        W : array, shape (n_{l-1}, n_l)
        b : array, shape (n_l,), optional
        activation : Activation
        out : array, shape (B, n_l)
            Receives a.
        out_z : array, shape (B, n_l), optional
            Receives z.
        """
        contract.forward(a_prev, W, b, activation, out, out_z)
        z = sums.product(self.xp, a_prev, W, out=out if out_z is None else out_z)
        if b is not None:
            z += b
        out[...] = softmax(self.xp, z) if activation.rowwise else self._evaluate(activation.value, z=z)

    def dropout(self, x: Array, dropout: Dropout, *, out: Array) -> None:
        """Compute ``x / (1 - rate)`` where the element is kept and 0 where it is dropped, whatever it was.

        The same `dropout` drops the same elements, in activations on the way forward and in errors on the way back;
        `bpgpu.kernels.philox.keep_mask` says which.

        Parameters
        ----------
        x : array, shape (B, n_l)
        dropout : Dropout
        out : array, shape (B, n_l)
            May be `x`.
        """
        contract.dropout(x, out)
        keep = self.xp.asarray(philox.keep_mask(x.shape, **vars(dropout)))
        scaled = x * x.dtype.type(1 / (1 - dropout.rate))
        out[...] = self.xp.where(keep, scaled, x.dtype.type(0))  # a product with 0 would be NaN where x is infinite

    # Error

    def output_delta(
        self,
        z: Array,
        y: Array,
        scale: Array,
        activation: Activation,
        cost: Cost,
        *,
        out_a: Array,
        out_delta: Array,
        out_cost: Array,
    ) -> None:
        """Compute activation, cost and ``delta_L = dC/dz_L`` of the output layer.

        Parameters
        ----------
        z : array, shape (B, n_L)
        y : array, shape (B, n_L)
            Targets.
        scale : array, shape (B,)
            Weight of each row in C: 1/B for all without sample weights.
        activation : Activation
        cost : Cost
        out_a, out_delta : array, shape (B, n_L)
        out_cost : array, shape (B,)
            Receives the cost of each row, without its scale.
        """
        contract.output_delta(z, y, scale, activation, cost, out_a, out_delta, out_cost)
        value, delta = output_formulas(activation, cost)
        if activation.rowwise:
            if cost == BINARY_CROSS_ENTROPY and z.shape[1] > 1:
                out_a[...], values, out_delta[...] = binary_cross_entropy(self.xp, z, y)
            elif cost == CROSS_ENTROPY:
                out_a[...], values, out_delta[...] = cross_entropy(self.xp, z, y)
            else:
                functions = (functools.partial(self._evaluate, formula) for formula in (value, delta))
                out_a[...], values, out_delta[...] = any_cost(self.xp, z, y, *functions)
        else:
            out_a[...] = self._evaluate(activation.value, z=z)
            values = self._evaluate(value, z=z, a=out_a, y=y)
            out_delta[...] = self._evaluate(delta, z=z, a=out_a, y=y)
        out_delta *= scale[:, None]
        self.xp.sum(values, axis=1, out=out_cost)
        if cost.reduction == "mean":
            out_cost /= z.shape[1]
            out_delta /= z.shape[1]

    def hidden_delta(
        self,
        delta: Array,
        W: Array,
        a: Array,
        activation: Activation,
        *,
        out: Array,
        z: Array | None = None,
        dropout: Dropout | None = None,
    ) -> None:
        """Compute ``delta_l = (delta_{l+1} W_{l+1}^T) ⊙ sigma_l'(z_l)``, dropout in between.

        Parameters
        ----------
        delta : array, shape (B, n_{l+1})
        W : array, shape (n_l, n_{l+1})
        a : array, shape (B, n_l)
            a_l, before dropout.
        activation : Activation
            sigma_l.
        out : array, shape (B, n_l)
        z : array, shape (B, n_l), optional
            z_l, where ``activation.derivative_needs_z``.
        dropout : Dropout, optional
            What was dropped from a_l.
        """
        contract.hidden_delta(delta, W, a, z, activation, out)
        sums.product(self.xp, delta, W.T, out=out)
        if dropout is not None:
            self.dropout(out, dropout, out=out)
        if activation.rowwise:
            out *= a
            out -= a * out.sum(axis=1, keepdims=True)
        else:
            out *= self._evaluate(activation.derivative, z=z, a=a)

    # Gradient

    def weight_gradient(
        self,
        a_prev: Array,
        delta: Array,
        *,
        out_W: Array,
        out_b: Array | None = None,
        W: Array | None = None,
        decay: float = 0.0,
        mask: Array | None = None,
    ) -> None:
        """Compute ``dC/dW_l = a_{l-1}^T delta_l + decay W_l`` and ``dC/db_l``, the column sums of delta_l.

        Parameters
        ----------
        a_prev : array, shape (B, n_{l-1})
            Also CSR, if the backend takes it.
        delta : array, shape (B, n_l)
        out_W : array, shape (n_{l-1}, n_l)
        out_b : array, shape (n_l,), optional
        W : array, shape (n_{l-1}, n_l), optional
            What `decay` is of; without it there is no penalty.
        decay : float
            lambda / m of the penalty.
        mask : array, shape (n_{l-1}, n_l), optional
            Connectivity: the gradient is 0 where it is 0.
        """
        contract.weight_gradient(a_prev, delta, W, mask, out_W, out_b)
        sums.product(self.xp, a_prev.T, delta, out=out_W)
        if decay and W is not None:
            out_W += decay * W
        if mask is not None:
            out_W *= mask
        if out_b is not None:
            sums.column_sums(self.xp, delta, out=out_b)

    # Update

    def update(
        self,
        rule: Optimizer,
        parameters: Array,
        gradients: Array,
        state: list[Array],
        *,
        t: int,
        learning_rate: float,
        n_weights: int,
    ) -> None:
        """Take one step of `rule`, in place on `parameters`, `state` and, if it clips, `gradients`.

        Parameters
        ----------
        rule : Optimizer
        parameters, gradients : array, shape (n_parameters,)
        state : list of array, shape (n_parameters,)
        t : int
            The step, counted from 1.
        learning_rate : float
        n_weights : int
            How many leading entries are weights.
        """
        contract.update(rule, parameters, gradients, state, t, learning_rate, n_weights)
        limit = rule.norm_limit(gradients.dtype)
        if limit is not None:
            largest = float(self.xp.abs(gradients).max())  # squares of the gradients themselves could overflow
            if largest > 0:
                norm = largest * math.sqrt(sums.total(self.xp, (gradients / largest) ** 2))
                if norm > limit:
                    gradients *= limit / norm
        rule.apply(parameters, gradients, state, t=t, eta=learning_rate, n_weights=n_weights, xp=self.xp)

    # Whole steps

    def batch_forward(self, plan: Plan, batch: Batch, parameters: Array, *, epoch: int, step: int) -> float:
        """Run one batch forward, to the cost and the delta of the output layer.

        Parameters
        ----------
        plan : Plan
        batch : Batch
            With input, targets and scale loaded; its z, a, h, cost and delta[L] are written.
        parameters : array, shape (n_parameters,)
        epoch, step : int
            Counted from 0; with the seed they choose the dropout.

        Returns
        -------
        float
            The weighted mean of the rows' costs; no penalty.
        """
        net = plan.architecture
        L = len(net.activations)
        weights, biases = net.views(parameters)
        W, b, sigma = [None, *weights], [None, *biases], [IDENTITY, *net.activations]  # W[l] leads into layer l
        z, a, h = batch.z, batch.a, batch.h
        for l in range(1, L):
            self.forward(h[l - 1], W[l], b[l], sigma[l], out=a[l], out_z=z[l])
            if net.dropout:
                self.dropout(a[l], Dropout(net.dropout, net.seed, epoch, step, l), out=h[l])
        self.forward(h[L - 1], W[L], b[L], IDENTITY, out=z[L])
        self.output_delta(
            z[L], batch.y, batch.scale, sigma[L], net.cost, out_a=a[L], out_delta=batch.delta[L], out_cost=batch.cost
        )
        if net.largest_cost < math.inf:
            self.xp.minimum(batch.cost, net.largest_cost, out=batch.cost)
        return self.dot(batch.scale, batch.cost)

    def batch_gradients(self, plan: Plan, batch: Batch, parameters: Array, *, epoch: int, step: int) -> float:
        """Run one batch forward and back; leave its gradients in `plan`.

        Takes and writes what `batch_forward` does, and all of ``batch.delta`` and ``plan.gradients``.

        Returns
        -------
        float
            C, penalty included.
        """
        C = self.batch_forward(plan, batch, parameters, epoch=epoch, step=step)
        net = plan.architecture
        L = len(net.activations)
        W, sigma = [None, *net.views(parameters)[0]], [IDENTITY, *net.activations]
        dW, db, mask = [None, *plan.dW], [None, *plan.db], [None, *plan.masks]
        z, a, h, delta = batch.z, batch.a, batch.h, batch.delta
        for l in range(L - 1, 0, -1):
            dropout = Dropout(net.dropout, net.seed, epoch, step, l) if net.dropout else None
            self.hidden_delta(delta[l + 1], W[l + 1], a[l], sigma[l], out=delta[l], z=z[l], dropout=dropout)
        decay = net.decay(len(batch.y), batch.weight)
        for l in range(1, L + 1):
            self.weight_gradient(h[l - 1], delta[l], out_W=dW[l], out_b=db[l], W=W[l], decay=decay, mask=mask[l])
        return C + self.penalty(parameters[: net.n_weights], decay)

    def gradients(self, plan: Plan, data: Data, parameters: Array) -> float:
        """Compute C of data that are one batch, and leave its gradients in `plan`.

        Parameters
        ----------
        plan : Plan
            Allocated, without a rule, for a batch of all samples of `data`; of a network without dropout.
        data : Data
            Placed.
        parameters : array, shape (n_parameters,)

        Returns
        -------
        float
            C, penalty included; not finite if that is so.
        """
        data = contract.samples(plan, data)
        batch = plan.batch(len(data))
        self.load_batch(batch, data, slice(None))
        with np.errstate(all="ignore"):
            return self.batch_gradients(plan, batch, parameters, epoch=0, step=0)

    def penalty(self, weights: Array, decay: float) -> float:
        """Return ``decay / 2`` times the sum of squares of the weights."""
        return decay / 2 * self.dot(weights, weights) if decay else 0.0

    def dot(self, x: Array, y: Array) -> float:
        """Return the sum of the products of two vectors."""
        return sums.dot(self.xp, x, y)

    def load_batch(self, batch: Batch, data: Data, rows: np.ndarray[Any, Any] | slice) -> float:
        """Copy the rows of a batch into its workspace, CSR rows in place of it; expand integer labels to one-hot rows.

        Parameters
        ----------
        batch : Batch
            Its input, targets and scale are written.
        data : Data
        rows : NumPy array of int, shape (B,), or slice

        Returns
        -------
        float
            The weight of the batch.
        """
        contract.batch(batch, data, rows)
        chosen = data.rows(rows)
        if is_sparse(chosen.X):
            # Rows of what has been checked need no check.
            batch.a[0] = batch.h[0] = frozen(chosen.X) if is_checked(data.X) else chosen.X
        else:
            batch.a[0][...] = chosen.X
        if chosen.y.ndim == 2:
            batch.y[...] = chosen.y
        else:
            batch.y[...] = chosen.y[:, None] == self.xp.arange(batch.y.shape[1])
        if chosen.weight is None:
            batch.scale[...] = 1 / len(batch.scale)
            batch.weight = float(len(batch.scale))
            return batch.weight
        batch.scale[...] = chosen.weight
        batch.weight = total = sums.total(self.xp, batch.scale)
        if total > 0:  # a batch may draw rows of weight 0 only: then it has no cost but the penalty
            batch.scale /= total
        return total

    def run_epoch(
        self,
        plan: Plan,
        data: Data,
        order: np.ndarray[Any, Any] | None,
        *,
        parameters: Array,
        learning_rates: list[float],
        epoch: int,
    ) -> float:
        """Train one epoch in place on `parameters`.

        Parameters
        ----------
        plan : Plan
            Allocated, with a rule.
        data : Data
            n samples.
        order : NumPy array of int32, shape (n,), optional
            The order in which the rows are taken; without it as they stand.
        parameters : array, shape (n_parameters,)
        learning_rates : list of float
            One for each step.
        epoch : int
            Counted from 0 over the life of the network.

        Returns
        -------
        float
            Mean of C over the batches, by their weights, each taken before its update.

        Raises
        ------
        NonFiniteError
            If a cost or gradient is not finite: the update of that step is not made; or if a weight or a number of
            the optimizer's state is not, after the last update.
        """
        assert plan.rule is not None
        data = contract.epoch(plan, data, order, parameters, learning_rates, epoch)
        n, B, n_weights = len(data), plan.batch_size, plan.architecture.n_weights
        costs, shares = [], []
        for step, start in enumerate(range(0, n, B)):
            stop = min(start + B, n)
            batch = plan.batch(stop - start)
            rows = slice(start, stop) if order is None else order[start:stop]
            weight = self.load_batch(batch, data, rows)
            with np.errstate(all="ignore"):  # what is not finite is found and named
                C = self.batch_gradients(plan, batch, parameters, epoch=epoch, step=step)
                if not (math.isfinite(C) and self.all_finite(plan.gradients)):
                    raise NonFiniteError(epoch + 1, step + 1, *first_fault(plan, batch, self.all_finite))
                self.update(
                    plan.rule,
                    parameters,
                    plan.gradients,
                    plan.state,
                    t=plan.steps + 1,
                    learning_rate=learning_rates[step],
                    n_weights=n_weights,
                )
            plan.steps += 1
            shares.append(float(stop - start) if plan.architecture.by_weight else weight)
            costs.append(shares[-1] * C)
        # A square of a gradient that overflows in the state would stop its parameter for ever, without a word.
        for quantity, flat in [("weight", parameters), *(("optimizer state", array) for array in plan.state)]:
            if not self.all_finite(flat):
                layer = first_layer(plan.architecture, flat, self.all_finite)
                raise NonFiniteError(epoch + 1, step + 1, layer, quantity)
        with np.errstate(over="ignore"):
            return float(np.sum(costs) / np.sum(shares))

    def _evaluate(self, formula: str, z: Array = None, a: Array = None, y: Array = None) -> Array:
        """Evaluate a formula of the table for each element, also if it is a constant.

        Overflow in it, say of exp, may be harmless and is no warning.
        """
        like = next(x for x in (z, a, y) if x is not None)
        with np.errstate(all="ignore"):
            values = formulas.numpy_function(formula, like.dtype)(z, a, y)
        return values if np.shape(values) == like.shape else self.xp.full_like(like, values)
