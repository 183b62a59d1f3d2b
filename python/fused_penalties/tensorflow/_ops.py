"""The penalty of a list of weights as TensorFlow differentiates it.

In eager mode the value and the gradient are each one call of the core, on the memory that the
variables' tensors have. In a graph the value is one, and the gradient is plain operations, which
TensorFlow runs beside others. Where Python is not to be called, all is plain operations.

TensorFlow has no public way to read many variables at once, nor to tell a tape of an operation
without a call for each tensor, which takes most of the time of a penalty of small weights. So this
module uses what TensorFlow's own code uses, `tensorflow.python`; it was tested with 2.21.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.eager import context, execute, record, tape
from tensorflow.python.ops import control_flow_util, resource_variable_ops
from tensorflow.python.saved_model import save_context

from .._bind import bind
from .._coefficients import for_each, picked, strengths_of

_ALIGNMENT = 64
"""Bytes: what TensorFlow's kernels ask of a tensor's memory."""


def fused_penalty(l1: Sequence[float], l2: Sequence[float], weights: Sequence[Any]) -> Any:
    """The sum of l1 * sum(|w|) + l2 * sum(w**2) of variables or tensors; one at least.

    One coefficient in l1 and l2 is that of all.
    """
    if not _python_may_read():
        return expression(l1, l2, [tf.convert_to_tensor(w) for w in weights])
    if tf.executing_eagerly():
        return _eager(l1, l2, _read(weights))
    return _in_graph(l1, l2, [tf.convert_to_tensor(w) for w in weights])


def _python_may_read() -> bool:
    """False where NumPy cannot read, or only what was copied to it, and where Python is not called.

    XLA calls none, and another process, which loads a saved model, does not have our functions.
    """
    if tf.distribute.has_strategy() or not _only_one_cpu():
        return False
    return tf.executing_eagerly() or not (
        save_context.in_save_context()
        or control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
    )


@lru_cache(maxsize=1)
def _only_one_cpu() -> bool:
    """False with a GPU, and with several devices made of one: one operation reads from one.

    To ask for the logical devices would start TensorFlow's threads and take the memory of GPUs,
    before a session of TensorFlow 1 has said how much of them it wants.
    """
    visible = tf.config.get_visible_devices()
    if [device.device_type for device in visible] != ["CPU"]:
        return False
    made_of_it = tf.config.get_logical_device_configuration(visible[0])
    return made_of_it is None or len(made_of_it) == 1


def _result_dtype(weights: Sequence[Any]) -> Any:
    wide = any(weight.dtype == tf.float64 for weight in weights)
    return tf.float64 if wide else tf.float32


def expression(l1: Sequence[float], l2: Sequence[float], tensors: Sequence[Any]) -> Any:
    """Plain operations, with TensorFlow's own derivatives."""
    dtype = _result_dtype(tensors)
    terms = []
    for w, one, two in zip(
        tensors, for_each(l1, len(tensors)), for_each(l2, len(tensors)), strict=True
    ):
        w = _widened(w)
        found = [one * tf.reduce_sum(tf.abs(w))] if one else []
        found += [2.0 * two * tf.nn.l2_loss(w)] if two else []  # which stores no squares
        terms += [tf.cast(term, dtype) for term in found]
    return tf.add_n(terms) if terms else tf.zeros((), dtype)


def _gradients(
    l1: Sequence[float], l2: Sequence[float], tensors: Sequence[Any], upstream: Any
) -> list[Any]:
    """The gradient of each in plain operations, which are differentiated as such."""
    found = []
    for weight, one, two in zip(
        tensors, for_each(l1, len(tensors)), for_each(l2, len(tensors)), strict=True
    ):
        w = _widened(weight)
        factor = tf.cast(upstream, w.dtype)
        terms = [factor * one * tf.sign(w)] if one else []
        terms += [factor * (2.0 * two) * w] if two else []
        slope = sum(terms[1:], start=terms[0]) if terms else tf.zeros_like(w)
        found.append(tf.cast(slope, weight.dtype))
    return found


def _widened(w: Any) -> Any:
    """float32 for what has 16 bits, in which sums overflow."""
    return w if w.dtype == tf.float64 else tf.cast(w, tf.float32)


def _in_graph(l1: Sequence[float], l2: Sequence[float], tensors: Sequence[Any]) -> Any:
    # A graph that is saved names this function by a number, which another process may have given
    # to one of its own.
    own_key = secrets.randbits(62)

    def value(key: Any, *arrays: NDArray[Any]) -> Any:
        if key != own_key:
            raise RuntimeError(
                "fused_penalties: this function was traced in another process and saved as it was; "
                "wanted one that tf.saved_model.save traces itself, which has plain operations"
            )
        plan = bind(arrays)
        return plan.value(strengths_of(plan, l1, l2))

    def penalty(*tensors: Any) -> tuple[Any, Any]:
        inputs = (np.int64(own_key), *tensors)
        found = tf.numpy_function(value, inputs, _result_dtype(tensors), stateful=False)
        found.set_shape(())
        return found, lambda upstream: _gradients(l1, l2, tensors, upstream)

    return tf.custom_gradient(penalty)(*tensors)


def _eager(l1: Sequence[float], l2: Sequence[float], tensors: Sequence[Any]) -> Any:
    arrays = [tensor.__array__() for tensor in tensors]  # no copies
    plan = bind(arrays)
    value = tf.constant(plan.value(strengths_of(plan, l1, l2)))
    if not record.could_possibly_record():
        return value
    wanted = [at for at, tensor in enumerate(tensors) if record.should_record_backprop([tensor])]

    def gradients(upstream: Any) -> list[Any]:
        # If a tape sees it, or an accumulator of forward mode, the gradient is differentiated too.
        if record.could_possibly_record() or not tf.executing_eagerly():
            return _gradients(l1, l2, tensors, upstream)
        read = [arrays[at] for at in wanted]
        grads = [_empty_like(array) for array in read]
        plan = bind(read, keep=True)
        plan.write_grad(
            strengths_of(plan, picked(l1, wanted), picked(l2, wanted)), grads, float(upstream)
        )
        found: list[Any] = [None] * len(tensors)
        for at, grad in zip(wanted, grads, strict=True):
            found[at] = _tensor_of(grad)
        return found

    record.record_operation("FusedPenalty", [value], list(tensors), gradients)
    return value


def _read(weights: Sequence[Any]) -> list[Any]:
    """What variables hold, in the memory that they have, as tapes see it; tensors as they are.

    While such a tensor is alive the variable is given other memory when it changes.
    """
    tensors: list[Any] = [None] * len(weights)
    variables = []
    for at, weight in enumerate(weights):
        if type(weight) is resource_variable_ops.ResourceVariable:
            variables.append(weight)
        else:
            tensors[at] = tf.convert_to_tensor(weight)
    if not variables:
        return tensors
    handles = [variable.handle for variable in variables]
    dtypes = tuple(variable.dtype.as_datatype_enum for variable in variables)
    tape.variables_accessed(variables)
    read = execute.execute(
        b"_ReadVariablesOp",
        len(handles),
        inputs=handles,
        attrs=("N", len(handles), "dtypes", dtypes),
        ctx=context.context(),
    )
    record.record_operation("ReadVariables", read, handles, lambda *grads: grads)
    left = iter(read)
    return [next(left) if tensor is None else tensor for tensor in tensors]


def _empty_like(array: NDArray[Any]) -> NDArray[Any]:
    """Memory for a gradient, aligned as TensorFlow wants it."""
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)


def _tensor_of(array: NDArray[Any]) -> Any:
    """The same memory as a tensor."""
    if array.dtype == tf.bfloat16.as_numpy_dtype:  # of which NumPy exports nothing
        return tf.bitcast(_tensor_of(array.view(np.uint16)), tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
