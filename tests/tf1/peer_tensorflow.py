"""Prints as JSON what Keras 3, tf-slim and TensorFlow answer to the cases of `peer_cases`.

And what they answer with `fused_penalties.tensorflow.contrib` in the place of tf-slim.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import keras
import tensorflow as tf
from tf_slim.layers import regularizers as slim

from fused_penalties.tensorflow import contrib as of_tensors
from peer_cases import as_numpy, outcomes


class TensorFlow:
    def __init__(self, contrib: Any) -> None:
        self.contrib = contrib
        self.names = {
            "contrib": contrib,
            "regularizers": keras.regularizers,
            "l2_loss": tf.nn.l2_loss,
            "add_n": tf.add_n,
            "array": lambda x, dtype=None: tf.constant(as_numpy(x, dtype)),
        }

    @contextmanager
    def store(self) -> Iterator[SimpleNamespace]:
        v1 = tf.compat.v1
        with tf.Graph().as_default(), v1.Session() as session:
            self.session = session
            yield SimpleNamespace(
                AUTO_REUSE=v1.AUTO_REUSE,
                no_regularizer=v1.no_regularizer,
                get_variable=v1.get_variable,
                variable_scope=v1.variable_scope,
                add_to_collection=v1.add_to_collection,
                get_collection=v1.get_collection,
                get_regularization_losses=v1.losses.get_regularization_losses,
                get_regularization_loss=v1.losses.get_regularization_loss,
                apply_regularization=self.contrib.apply_regularization,
            )

    def number(self, loss: Any) -> float:
        self.session.run(tf.compat.v1.global_variables_initializer())
        return float(self.session.run(loss))


if __name__ == "__main__":
    sides = {"theirs": slim, "of tensors": of_tensors}
    print(json.dumps({side: outcomes(TensorFlow(contrib)) for side, contrib in sides.items()}))
