"""Train a small convolutional network on handwritten digits, with portconv and each library's own arrays alone.

    pip install 'portconv[cli]' scikit-learn
    python examples/digits.py --precision reproducible --plot losses.png

With ``--precision reproducible`` the losses of all steps, and the weights after the last one, are equal to the bit on
every library. Each operation of the training is one of two kinds:

- a call of portconv, whose result is defined to the bit. A dense layer is a convolution whose kernel covers the whole
  map, and an average is a convolution with constant filters. A library's own `matmul`, `sum` or `mean` would not do,
  because it may add in any order;
- a comparison, choice, addition, subtraction or multiplication of elements, which IEEE 754 defines. There are never two
  in one compiled kernel, which may fuse them and round once. There is no division, root or exponential, because each
  library rounds these in its own way. So the loss is a squared hinge, not a cross entropy.

Some devices take numbers below 2**-126 for zero. Here only the velocity of a weight that no longer moves gets so small,
after a thousand steps, and it does not change the weight either way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import portconv
from portconv.backends import Array, Backend
from portconv.command.group import UNCHECKED, backends_named, check_destination, refuse
from portconv.spec.options import PRECISIONS

CLASSES, FILTERS = 10, 48
TRAINED = 1408
"""The number of images to train on, of 1797; the other 389 are for the test."""
BATCH = 32
"""A power of two, so that 1 / BATCH is exact, and a divisor of TRAINED, so that all batches have one shape."""
MOMENTUM = 0.875
RATE, HALVED_EVERY = 2.0**-8, 3
"""The learning rate, and the number of epochs after which it is halved."""
FORMATS = ("pdf", "png", "svg")


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) and their digits (N,) on the host, for the training and for the test."""

    images: np.ndarray
    digits: np.ndarray
    test_images: np.ndarray
    test_digits: np.ndarray


@dataclass
class Result:
    """The result of training on one backend: the loss of each step, the last weights and the share of right answers."""

    name: str
    losses: np.ndarray
    parameters: list[np.ndarray]
    accuracy: float

    @property
    def history_digest(self) -> str:
        """The SHA-256 of the losses' bytes, which is equal only if every bit is."""
        return digest([self.losses])

    @property
    def parameters_digest(self) -> str:
        """The SHA-256 of the bytes of the weights after the last step."""
        return digest(self.parameters)


def digest(arrays: Sequence[np.ndarray]) -> str:
    """Hash the bytes of arrays on the host."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def load() -> Digits:
    """Return scikit-learn's digits, always split in the same way."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        refuse("the digits are scikit-learn's, which is not installed: pip install scikit-learn")
    data = load_digits()
    # The images are sorted by writer; the training and the test should have some of each.
    order = np.random.default_rng(0).permutation(len(data.target))
    images, digits = data.images[order, None], data.target[order]
    images = ((images - images[:TRAINED].mean()) / images[:TRAINED].std()).astype("float32")
    return Digits(images[:TRAINED], digits[:TRAINED], images[TRAINED:], digits[TRAINED:])


def initial(generator: np.random.Generator) -> list[np.ndarray]:
    """Draw the weights on the host, so that all backends start from the same bits."""
    shapes = ((FILTERS, 1, 4, 4), (CLASSES, FILTERS, 3, 3))
    drawn = [generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])) for shape in shapes]  # arXiv:1502.01852
    return [array.astype("float32") for array in (*drawn, np.zeros(CLASSES))]


def computed(backend: Backend, array: Array) -> Array:
    """Compute a lazy array now; otherwise its graph grows with every step and is computed for each of its uses."""
    return backend.asarray(backend.to_numpy(array)) if backend.name == "dask" else array


def positive(backend: Backend, array: Array, where: Array) -> Array:
    """Return `array` where another array is positive, and 0 elsewhere: for ReLU, the hinge and their gradients."""
    return backend.xp.where(where > 0, array, backend.xp.zeros_like(array))


def forward(backend: Backend, parameters: Sequence[Array], images: Array, precision: str) -> tuple[Array, Array, Any]:
    """Run the network; return the maps, the scores (N, 10, 1, 1), and the dense layer's cache for its gradients."""
    w1, w2, b2 = parameters
    maps = computed(backend, portconv.conv(images, w1, stride=2, precision=precision))  # (N, FILTERS, 3, 3)
    scores, cache = portconv.conv_forward(positive(backend, maps, maps), w2, b2, precision=precision)
    return maps, computed(backend, scores), cache


def loss_and_slope(backend: Backend, scores: Array, signs: Array, precision: str) -> tuple[Array, Array]:
    """Return the squared hinge, summed over classes and averaged over the batch, and its gradient."""
    gaps = 1 - signs * scores
    gaps = positive(backend, gaps, gaps)
    squares = backend.xp.reshape(gaps * gaps, (1, -1, 1, 1))
    share = 1 / gaps.shape[0]
    loss = portconv.conv(squares, backend.xp.full_like(squares, share), precision=precision)
    return computed(backend, loss), signs * gaps * (-2 * share)


def gradients(
    backend: Backend, parameters: Sequence[Array], images: Array, signs: Array, precision: str
) -> tuple[Array, list[Array]]:
    """Return the loss of a batch, (1, 1, 1, 1), and its gradients with respect to the parameters."""
    w1 = parameters[0]
    maps, scores, cache = forward(backend, parameters, images, precision)
    loss, slope = loss_and_slope(backend, scores, signs, precision)
    dactive, dw2, db2 = (computed(backend, array) for array in portconv.conv_backward(slope, cache))
    dmaps = positive(backend, dactive, maps)
    # The gradient of the images is not needed, so it is not computed.
    dw1 = computed(backend, portconv.conv_weight_grad(dmaps, images, w1.shape, stride=2, precision=precision))
    return loss, [dw1, dw2, db2]


@portconv.num_threads(1)  # the sums are so small that threads would take longer
def train(
    backend: Backend,
    digits: Digits,
    precision: str,
    epochs: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Result:
    """Train on one backend.

    Parameters
    ----------
    backend : Backend
    digits : Digits
    precision : {"standard", "fast", "reproducible"}
        The precision of all calls of portconv.
    epochs : int
    seed : int
        The seed for the first weights and for the order of the images.
    advance : callable
        Called after each step.

    Returns
    -------
    Result
    """
    generator = np.random.default_rng(seed)
    parameters = [backend.asarray(array) for array in initial(generator)]
    velocities = [backend.xp.zeros_like(array) for array in parameters]
    signs = np.where(digits.digits[:, None] == np.arange(CLASSES), 1, -1).astype("float32")[..., None, None]
    losses = []
    for epoch in range(epochs):
        rate = RATE / 2 ** (epoch // HALVED_EVERY)
        epoch_losses = []
        for chosen in generator.permutation(TRAINED).reshape(-1, BATCH):
            batch = backend.asarray(digits.images[chosen]), backend.asarray(signs[chosen])
            loss, slopes = gradients(backend, parameters, *batch, precision)
            velocities = [computed(backend, v * MOMENTUM + g) for v, g in zip(velocities, slopes, strict=True)]
            parameters = [computed(backend, p - v * rate) for p, v in zip(parameters, velocities, strict=True)]
            epoch_losses.append(loss)
            advance()
        # The losses are read once per epoch, because a GPU has to wait for each read.
        losses += [np.asarray(backend.to_numpy(loss)).reshape(1) for loss in epoch_losses]
    scores = forward(backend, parameters, backend.asarray(digits.test_images), precision)[1]
    answers = np.argmax(np.asarray(backend.to_numpy(scores)), axis=1)[:, 0, 0]
    accuracy = float(np.mean(answers == digits.test_digits))
    host = [np.array(backend.to_numpy(array)) for array in parameters]
    return Result(backend.name, np.concatenate(losses), host, accuracy)


def first_difference(result: Result, first: Result, epochs: int) -> str:
    """Say in which step the losses of two backends differ first."""
    steps = np.flatnonzero(result.losses.view("uint32") != first.losses.view("uint32"))
    if steps.size:
        epoch, step = divmod(int(steps[0]), len(first.losses) // epochs)
        return f"epoch {epoch + 1}, step {step + 1}"
    return "never" if result.parameters_digest == first.parameters_digest else "in the last weights"


def draw(results: Sequence[Result], title: str, destination: Path) -> None:
    """Draw all losses, and below their distances from the first backend's; earlier lines are wider, so all show."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 1))
    for place, result in enumerate(results):
        widths = (1 + 2.5 * (len(results) - 1 - place), 1 + 0.5 * (len(results) - 1 - place))
        distance = np.abs(result.losses.astype("float64") - results[0].losses)
        for axes, values, width in zip((above, below), (result.losses, distance), widths, strict=True):
            axes.plot(values, color=f"C{place}", linewidth=width, label=result.name)
    above.set(yscale="log", ylabel="loss", title=title)
    above.legend()
    below.set_yscale("symlog", linthresh=1e-9)
    below.set(xlabel="step", ylabel="distance from the first", ylim=(-5e-10, max(1e-6, 2 * below.dataLim.y1)))
    figure.savefig(destination, dpi=150)


@click.command()
@click.option("--backend", "names", multiple=True, metavar="NAME", help="A backend (repeatable; all that work here).")
@click.option("--precision", type=click.Choice(PRECISIONS), default="standard", show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of weights and order.")
@click.option("--least-accuracy", type=click.FloatRange(0, 1), default=0.97, show_default=True)
@click.option("--plot", metavar="FILE", type=UNCHECKED, help="Draw the losses into a picture.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
@click.pass_context
def command(
    ctx: click.Context,
    names: tuple[str, ...],
    precision: str,
    epochs: int,
    seed: int,
    least_accuracy: float,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Learn to read handwritten digits on each array library, and compare the losses.

    The exit status is 0 only if each has learnt to read, and if in reproducible precision all bits are equal.
    """
    if plot is not None:
        check_destination("--plot", plot, FORMATS)
        if not find_spec("matplotlib"):
            refuse("--plot: matplotlib draws it, which is not installed: pip install matplotlib")
    chosen = backends_named(names)
    by_name = {backend.name: backend for backend in chosen}
    digits, results = load(), []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for name, backend in by_name.items():
            task = progress.add_task(name, total=epochs * (TRAINED // BATCH))
            try:
                results.append(train(backend, digits, precision, epochs, seed, lambda: progress.advance(task)))  # noqa: B023
            except portconv.PortconvError as error:
                refuse(f"{name}: {error}")
    identical = len({(result.history_digest, result.parameters_digest) for result in results}) == 1
    learnt = all(result.accuracy >= least_accuracy for result in results)
    if plot is not None:
        draw(results, f"Training on {len(results)} array libraries, {precision} precision", plot)
    if as_json:
        listed = [
            {
                "name": result.name,
                "accuracy": result.accuracy,
                "history_digest": result.history_digest,
                "parameters_digest": result.parameters_digest,
                "losses": result.losses.tolist(),
            }
            for result in results
        ]
        settings = {"precision": precision, "epochs": epochs, "seed": seed}
        click.echo(json.dumps({**settings, "identical": identical, "learnt": learnt, "backends": listed}, indent=2))
    else:
        show(results, epochs)
        click.echo(f"{'all' if learnt else 'NOT all'} read {least_accuracy:.1%} of the test images or more")
        if len(results) > 1:
            click.echo(f"losses and weights: {'all bits equal' if identical else 'other bits on other libraries'}")
    ctx.exit(0 if learnt and (identical or precision != "reproducible") else 1)


def show(results: Sequence[Result], epochs: int) -> None:
    """Print a table of the results."""
    headings = ("backend", "accuracy", "last loss", "losses", "weights", f"parts from {results[0].name}")
    table = Table(*headings, box=box.SIMPLE_HEAD, padding=0)
    for result in results:
        digests = result.history_digest[:8], result.parameters_digest[:8]
        figures = f"{result.accuracy:.2%}", f"{result.losses[-1]:.9g}"
        table.add_row(result.name, *figures, *digests, first_difference(result, results[0], epochs))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    command()
