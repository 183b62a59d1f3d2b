"""What the strength of an L2 penalty does to a small network: UCI digits, 64-200-200-10, tanh.

    pip install ".[bench]"
    python bench/digits.py                                      # table, and the picture digits.png
    python bench/digits.py --seeds 5 --picture strength.svg     # fewer runs, another file
    python bench/digits.py --save bench/data/digits_mlp.safetensors     # one network, no table

The loss is the mean cross-entropy of a batch plus strength * sum(w**2)/2 over the three weight
matrices: the contrib scale, with the factor 1/2; biases are left out. The gradient of the penalty
is then strength * w. Adam, all in float32, on one thread: about a minute for the 80 networks.

For each strength the table has
- the accuracy on the half of the digits that was not trained on: mean and standard deviation over
  the seeds, each of which draws its own halves, initial weights and batches;
- the difference from strength 0 with the same seed: mean, standard error, and in how many seeds
  the regularised network is better and worse;
- the penalty, strength * sum(w**2)/2, at the end of the training;
- the share of weights with abs(w) < 1e-3 (L2 makes weights small; exact zeros take L1);
- the accuracy of the published TensorFlow 1 run of the same experiment on MNIST.

What to expect: 1e-4 gains about 0.001, which no single seed shows but 20 together do; 1e-2 costs
about 0.012; with 1.0 the network says the same digit for every image. The gain needs a network that
overfits: its weights start with a standard deviation of 0.3, chosen on other seeds than those
reported here. From a Glorot start 1e-4 makes no difference that 20 seeds can resolve, and 1e-2 and
1.0 do the same harm.

--save trains with strength 1e-4 and seed 0 alone. The same machine and NumPy write the same bytes;
another BLAS or processor may differ in the last digits of every weight.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.numpy import save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import fused_penalties as fp
from fused_penalties import contrib

LAYERS = {"hidden1": (64, 200), "hidden2": (200, 200), "logits": (200, 10)}
STRENGTHS = (0.0, 1e-4, 1e-2, 1.0)
PUBLISHED = np.array([0.9468, 0.9476, 0.9183, 0.1135])
SAVED_STRENGTH, SAVED_SEED = 1e-4, 0

INITIAL_DEVIATION = 0.3
EPOCHS, BATCH = 60, 32
LEARNING_RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8
NEAR_ZERO = 1e-3

# In the picture: strength 0 as far left of 1e-4 as the others are apart, behind a break.
X = np.array([1e-6, *STRENGTHS[1:]])
BREAK_AT = 1e-5

Array = NDArray[np.float32]
Parameters = dict[str, Array]


class Halves(NamedTuple):
    """The digits, scaled to [0, 1], in two halves with the same share of every digit."""

    train_x: Array
    test_x: Array
    train_y: NDArray[np.int64]
    test_y: NDArray[np.int64]


class Runs(NamedTuple):
    """One row for each strength, one column for each seed."""

    accuracy: NDArray[np.float64]
    penalty: NDArray[np.float64]
    half_square: NDArray[np.float64]
    near_zero: NDArray[np.float64]

    @property
    def seeds(self) -> int:
        return self.accuracy.shape[1]

    def gain(self) -> NDArray[np.float64]:
        """In accuracy, from the unregularised network of the same seed."""
        return self.accuracy - self.accuracy[0]


def standard_error(x: NDArray[np.float64]) -> float:
    return float(x.std(ddof=1)) / math.sqrt(len(x))


def halves(seed: int) -> Halves:
    x, y = load_digits(return_X_y=True)
    # Unstratified halves would put a network that always says the same digit below chance: the
    # digit most frequent in one half is the rarer one in the other.
    x = (x / 16).astype(np.float32)
    return Halves(*train_test_split(x, y, train_size=0.5, stratify=y, random_state=seed))


def initial(rng: np.random.Generator) -> Parameters:
    parameters = {}
    for layer, shape in LAYERS.items():
        kernel = rng.standard_normal(shape, dtype=np.float32)
        parameters[f"{layer}/kernel"] = INITIAL_DEVIATION * kernel
        parameters[f"{layer}/bias"] = np.zeros(shape[1], np.float32)
    return parameters


def forward(parameters: Parameters, x: Array) -> list[Array]:
    """The input of each layer, then the logits."""
    values = [x]
    for layer in LAYERS:
        before = values[-1] @ parameters[f"{layer}/kernel"] + parameters[f"{layer}/bias"]
        values.append(before if layer == "logits" else np.tanh(before))
    return values


def gradients(
    parameters: Parameters, x: Array, labels: NDArray[np.int64], strength: float
) -> Parameters:
    """Of the mean cross-entropy over the batch + strength * sum(kernel**2)/2."""
    *inputs, logits = forward(parameters, x)
    delta = np.exp(logits - logits.max(axis=1, keepdims=True))
    delta /= delta.sum(axis=1, keepdims=True)
    delta[np.arange(len(labels)), labels] -= 1
    delta /= len(labels)
    result = {}
    for layer, value in zip(reversed(LAYERS), reversed(inputs), strict=True):
        kernel = parameters[f"{layer}/kernel"]
        result[f"{layer}/kernel"] = value.T @ delta + strength * kernel
        result[f"{layer}/bias"] = delta.sum(axis=0)
        delta = (delta @ kernel.T) * (1 - value * value)
    return result


def trained(digits: Halves, strength: float, seed: int) -> Parameters:
    rng = np.random.default_rng(seed)
    parameters = initial(rng)
    mean = {name: np.zeros_like(w) for name, w in parameters.items()}
    square = {name: np.zeros_like(w) for name, w in parameters.items()}
    step = 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(digits.train_y))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            gradient = gradients(parameters, digits.train_x[batch], digits.train_y[batch], strength)
            step += 1
            # Both bias corrections in one number: Kingma & Ba 2015, end of section 2.
            rate = LEARNING_RATE * math.sqrt(1 - BETA2**step) / (1 - BETA1**step)
            for name, g in gradient.items():
                mean[name] += (1 - BETA1) * (g - mean[name])
                square[name] += (1 - BETA2) * (g * g - square[name])
                parameters[name] -= rate * mean[name] / (np.sqrt(square[name]) + EPSILON)
    return parameters


def accuracy(parameters: Parameters, digits: Halves) -> float:
    logits = forward(parameters, digits.test_x)[-1]
    return float(np.mean(logits.argmax(axis=1) == digits.test_y))


def run(strength: float, seed: int) -> tuple[float, float, float, float]:
    """One cell of each array of `Runs`."""
    digits = halves(seed)
    parameters = trained(digits, strength, seed)

    def penalty(scale: float) -> float:
        return float(fp.penalty(parameters, {r"/kernel$": contrib.l2_regularizer(scale)}))

    kernels = np.concatenate([parameters[f"{layer}/kernel"].ravel() for layer in LAYERS])
    near_zero = float(np.mean(np.abs(kernels) < NEAR_ZERO))
    return accuracy(parameters, digits), penalty(strength), penalty(1.0), near_zero


def table(runs: Runs) -> Table:
    result = Table(
        title=f"UCI digits, 64-200-200-10 tanh, L2 on the weights, {runs.seeds} seeds",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in (
        "\nstrength",
        "test\naccuracy",
        "\nsd",
        "difference\nfrom 0 ±se",
        "better/\nworse",
        "\npenalty",
        f"abs(w)\n<{NEAR_ZERO:g}",
        "\nMNIST",
    ):
        result.add_column(heading, justify="right", no_wrap=True)
    for i, strength in enumerate(STRENGTHS):
        gain = runs.gain()[i]
        result.add_row(
            f"{strength:g}",
            f"{runs.accuracy[i].mean():.4f}",
            f"{runs.accuracy[i].std(ddof=1):.4f}",
            f"{gain.mean():+.4f} ±{standard_error(gain):.4f}" if strength else "",
            f"{np.sum(gain > 0)}/{np.sum(gain < 0)}" if strength else "",
            f"{runs.penalty[i].mean():.4f}",
            f"{runs.near_zero[i].mean():.1%}",
            f"{PUBLISHED[i]:.4f}",
        )
    return result


def draw(runs: Runs, path: Path) -> None:
    """Accuracy and penalty against the strength, whose 0 stands left of a break in the log axis."""
    figure = Figure(figsize=(11.5, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(
        "L2 penalty on the weights of a 64-200-200-10 tanh network, UCI digits\n"
        f"lines: mean of {runs.seeds} seeds, dots: each seed; "
        "in brackets: difference from strength 0 ± standard error",
        fontsize=11,
    )

    left.axhline(0.1, color="0.85", linewidth=1, zorder=0)
    say(left, "chance", (BREAK_AT, 0.1), 8, "0.5")
    curve(left, PUBLISHED[:, None], "0.6", "s")
    say(left, "published run on MNIST", (2e-5, PUBLISHED[0]), -18, "0.45")
    curve(left, runs.accuracy, "tab:blue")
    for at, strength, scores, gain in zip(X, STRENGTHS, runs.accuracy, runs.gain(), strict=True):
        text = f"{scores.mean():.4f}"
        if strength:
            text += f"\n({gain.mean():+.4f} ±{standard_error(gain):.4f})"
        above = scores.mean() > 0.5
        falls = 0.5 < scores.mean() < 0.97  # the line comes from above: the text stands beside it
        point = (at, scores.max() if above else scores.min())
        say(left, text, point, 15 if above else -15, right=45 if falls else 0)
    # The logit scale tells 0.97 from 0.98 and still has room for 0.1.
    left.set_yscale("logit")
    left.set_ylim(0.05, 0.994)
    ticks = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set_yticks([], minor=True)
    left.set_ylabel("accuracy on unseen digits (logit scale)")

    curve(right, runs.half_square, "tab:green")
    curve(right, np.where(runs.penalty > 0, runs.penalty, np.nan), "tab:red")
    say(right, r"$\sum w^2/2$", (X[1], runs.half_square[1].mean()), -22, "tab:green")
    say(right, r"strength $\cdot\, \sum w^2/2$, the penalty", (4e-3, 1.4), 0, "tab:red")
    for at, square, penalty in zip(X, runs.half_square, runs.penalty, strict=True):
        if square.mean() > 2 * penalty.mean():
            say(right, f"{square.mean():.4g}", (at, square.mean()), 10, "tab:green", 18)
        if penalty.any():
            say(right, f"{penalty.mean():.3f}", (at, penalty.min()), -12, "tab:red")
    right.set_yscale("log")
    right.set_ylim(0.04, 8e3)
    right.plot(X[0], 0, "v", color="tab:red", transform=right.get_xaxis_transform(), clip_on=False)
    say(right, "0", (X[0], 0.04), 14, "tab:red")
    right.set_ylabel("at the end of the training (log scale)")

    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlim(X[0] / 8, X[-1] * 8)
        axes.set_xticks(X, ["0", "$10^{-4}$", "$10^{-2}$", "1"])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("strength (log scale, but for 0)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.text(
            BREAK_AT,
            0,
            "//",
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    figure.savefig(path, dpi=150)


def curve(axes: Any, y: NDArray[np.float64], color: str, marker: str = "o") -> None:
    """The mean over the seeds, axis 1 of `y`, and every seed."""
    mean = y.mean(axis=1)
    # Dashed across the break: nothing is known about the decades that it leaves out.
    axes.plot(X[:2], mean[:2], color=color, linestyle=(0, (2, 2)), linewidth=1.3)
    axes.plot(X[1:], mean[1:], color=color, linewidth=1.3)
    axes.plot(X, mean, marker, color=color, markersize=5)
    axes.plot(X, y, "o", color=color, alpha=0.2, markersize=4, markeredgewidth=0)


def say(
    axes: Any,
    text: str,
    at: tuple[float, float],
    up: float,
    color: str = "tab:blue",
    right: float = 0,
) -> None:
    axes.annotate(
        text,
        at,
        (right, up),
        textcoords="offset points",
        ha="center",
        va="center",
        color=color,
        fontsize=9,
    )


def write(path: Path) -> str:
    """Trains the network of SAVED_STRENGTH and SAVED_SEED into a safetensors file."""
    digits = halves(SAVED_SEED)
    parameters = trained(digits, SAVED_STRENGTH, SAVED_SEED)
    score = f"{accuracy(parameters, digits):.4f}"
    metadata = {
        "dataset": "UCI digits, scikit-learn load_digits, stratified half",
        "accuracy": score,
        "strength": f"{SAVED_STRENGTH:g}",
        "seed": f"{SAVED_SEED}",
        "script": "bench/digits.py",
    }
    data = save(parameters, metadata)
    # safetensors writes metadata in an order that changes from run to run; sorted, they are the
    # same characters in one order, so the header keeps its length.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":"))
    path.write_bytes(data[:8] + header.encode().ljust(end - 8) + data[end:])
    return score


def output_file(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is not a directory")
    return path


def picture_file(text: str) -> Path:
    path = output_file(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text} does not end in .png, .svg or .pdf")
    return path


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"got {text}; a spread takes 2 seeds or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=count, default=20, help="networks per strength (20)")
    parser.add_argument(
        "--picture", type=picture_file, default=Path("digits.png"), help="(digits.png)"
    )
    parser.add_argument("--save", type=output_file, help="write one trained network, and stop")
    options = parser.parse_args(arguments)

    console = Console()
    # Products this small gain nothing from threads, and one thread gives the same bits every time.
    with threadpool_limits(1):
        if options.save:
            score = write(options.save)
            console.print(f"{options.save}: test accuracy {score}", soft_wrap=True)
            return
        jobs = [(strength, seed) for strength in STRENGTHS for seed in range(options.seeds)]
        progress = track(jobs, transient=True, disable=not console.is_terminal)
        cells = np.array([run(strength, seed) for strength, seed in progress])
    runs = Runs(*cells.T.reshape(4, len(STRENGTHS), options.seeds))
    console.print(table(runs))
    draw(runs, options.picture)
    console.print(f"picture: {options.picture}", soft_wrap=True)


if __name__ == "__main__":
    main()
