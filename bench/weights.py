"""Files of weights with the true shapes of known models, filled with random normal values.

    python bench/weights.py resnet50 OUT.safetensors
    python bench/weights.py gpt2 OUT.safetensors --dtype bfloat16 --seed 1

Models: resnet50 (torchvision), bert-base (Hugging Face BertModel, uncased, with the pooler) and
gpt2 (Hugging Face GPT2Model, small), under the parameter names of those libraries; running
statistics and masks, which are not parameters, are left out. Values are normal with standard
deviation 0.02, the same for the same model, dtype and seed. Prints the file, the number of tensors
and elements, and the bytes.

All tensors are in memory when the file is written, because that is how safetensors writes: as much
as the file has, at most 1 GB (gpt2 in float64). `shapes` also knows llama-2-7b (Hugging Face
LlamaForCausalLM), for benchmarks that make their values on a GPU; it is too large to be made here.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Shapes = dict[str, tuple[int, ...]]

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float64": np.float64,
}
FILES = ("resnet50", "bert-base", "gpt2")
STANDARD_DEVIATION = 0.02
OFFSETS = (0, 16)  # bytes past a cache line, at which benchmarks put memory


def shapes(model: str) -> Shapes:
    """The parameters of a model: name -> shape, in the order of its library.

    `model` is resnet50, bert-base, gpt2 or llama-2-7b; ValueError for another.
    """
    try:
        make = _MODELS[model]
    except KeyError:
        raise ValueError(f"model: got {model!r}; wanted one of {', '.join(_MODELS)}") from None
    return make()


def values(model: str, dtype: str, seed: int) -> dict[str, NDArray[Any]]:
    """Normal values with standard deviation 0.02 in the shapes of a model."""
    rng = np.random.default_rng(seed)
    # float64 weights get all their bits; the others are drawn in float32 and rounded.
    draw = np.float64 if dtype == "float64" else np.float32
    result = {}
    for name, shape in shapes(model).items():
        x = rng.standard_normal(shape, dtype=draw)
        x *= STANDARD_DEVIATION
        result[name] = x.astype(DTYPES[dtype], copy=False)
    return result


def memory(count: int, dtype: Any, offset: int) -> NDArray[Any]:
    """An array whose first element lies `offset` bytes past a cache line of 64 bytes.

    NumPy's large arrays lie 16 bytes past one, those of torch and most allocators on one.
    """
    itemsize = np.dtype(dtype).itemsize
    room = np.empty(count * itemsize + 128, np.uint8)
    start = (offset - room.ctypes.data) % 64
    return room[start : start + count * itemsize].view(dtype)


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _resnet50() -> Shapes:
    result: Shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    inputs = 64
    for layer, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        outputs = 4 * width
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            result |= {f"{at}.conv1.weight": (width, inputs, 1, 1), **_norm(f"{at}.bn1", width)}
            result |= {f"{at}.conv2.weight": (width, width, 3, 3), **_norm(f"{at}.bn2", width)}
            result |= {f"{at}.conv3.weight": (outputs, width, 1, 1), **_norm(f"{at}.bn3", outputs)}
            if block == 0:
                result[f"{at}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                result |= _norm(f"{at}.downsample.1", outputs)
            inputs = outputs
    return result | _linear("fc", 1000, inputs)


def _bert_base() -> Shapes:
    size = 768
    result: Shapes = {
        "embeddings.word_embeddings.weight": (30522, size),
        "embeddings.position_embeddings.weight": (512, size),
        "embeddings.token_type_embeddings.weight": (2, size),
        **_norm("embeddings.LayerNorm", size),
    }
    for layer in range(12):
        at = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            result |= _linear(f"{at}.attention.self.{part}", size, size)
        result |= _linear(f"{at}.attention.output.dense", size, size)
        result |= _norm(f"{at}.attention.output.LayerNorm", size)
        result |= _linear(f"{at}.intermediate.dense", 4 * size, size)
        result |= _linear(f"{at}.output.dense", size, 4 * size)
        result |= _norm(f"{at}.output.LayerNorm", size)
    return result | _linear("pooler.dense", size, size)


def _gpt2() -> Shapes:
    size = 768

    def conv1d(name: str, inputs: int, outputs: int) -> Shapes:
        # GPT-2's linear layer keeps its weight the other way round: (inputs, outputs).
        return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}

    result: Shapes = {"wte.weight": (50257, size), "wpe.weight": (1024, size)}
    for layer in range(12):
        at = f"h.{layer}"
        result |= _norm(f"{at}.ln_1", size)
        result |= conv1d(f"{at}.attn.c_attn", size, 3 * size)
        result |= conv1d(f"{at}.attn.c_proj", size, size)
        result |= _norm(f"{at}.ln_2", size)
        result |= conv1d(f"{at}.mlp.c_fc", size, 4 * size)
        result |= conv1d(f"{at}.mlp.c_proj", 4 * size, size)
    return result | _norm("ln_f", size)


def _llama_2_7b() -> Shapes:
    size, inner, words = 4096, 11008, 32000
    result: Shapes = {"model.embed_tokens.weight": (words, size)}
    for layer in range(32):
        at = f"model.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            result[f"{at}.self_attn.{part}.weight"] = (size, size)
        result[f"{at}.mlp.gate_proj.weight"] = (inner, size)
        result[f"{at}.mlp.up_proj.weight"] = (inner, size)
        result[f"{at}.mlp.down_proj.weight"] = (size, inner)
        result[f"{at}.input_layernorm.weight"] = (size,)
        result[f"{at}.post_attention_layernorm.weight"] = (size,)
    return result | {"model.norm.weight": (size,), "lm_head.weight": (words, size)}


_MODELS: dict[str, Callable[[], Shapes]] = {
    "resnet50": _resnet50,
    "bert-base": _bert_base,
    "gpt2": _gpt2,
    "llama-2-7b": _llama_2_7b,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=FILES)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(float32)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error(f"argument --seed: {options.seed} is negative")
    if not options.out.parent.is_dir():
        parser.error(f"argument OUT.safetensors: {options.out.parent} is not a directory")

    from safetensors.numpy import save_file  # here, as benchmarks need it for no more than files

    save_file(values(options.model, options.dtype, options.seed), options.out)
    sizes = [math.prod(shape) for shape in shapes(options.model).values()]
    print(
        f"{options.out}: {options.model}, {options.dtype}, {len(sizes)} tensors, "
        f"{sum(sizes):,} elements, {options.out.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    main()
