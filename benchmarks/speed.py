"""Speed of a recipe's models relative to torch.nn.LSTM of 100 units, taken in turn in one process.

Example: python -m benchmarks.speed --batch 128 --time 784 --rounds 5 --models lstm_s tp_rnn_m
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch

from seqpyramid.errors import RecipeError
from seqpyramid.recipe import load
from seqpyramid.train.launch import pick_device

from . import command
from .busy import beside_busy, busy_table
from .candidates import NAIVE, PLAIN, Setting, all_naive_forms, on_threads, plain, references, rows
from .limit import best_rates, rate_line, share_table
from .machine import cpu_seconds, header, share_of_others
from .public import add_public, public_candidates
from .rounds import Pair, compare, measure, pair_table, parse_pairs, table
from .untuned import AS_IT_COMES, Child, Order, as_torch_comes

DEFAULT_MODELS = ("lstm_s", "lstm_m", "tp_rnn_s", "tp_rnn_m")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    options = _parser().parse_args(arguments)
    return command.print_report(report(options), tuned=not options.untuned)


def report(options: argparse.Namespace) -> Iterator[str]:
    """Measure what the options ask for, and give the report in Markdown, a line or a table at a time.

    Raises:
        UserError: an option is wrong, or something that it needs is not there.
    """
    device = pick_device(options.device)
    refuse(options, device)
    recipe = load(options.recipe)
    setting = Setting(
        spec=recipe.task.build().spec, batch_size=options.batch, time=options.time, device=device
    )
    models = rows(recipe, options.models, setting)
    everyone = references(setting) + [on_threads(one) for one in models]
    if options.twins:
        everyone += [plain(one) for one in models]
    if options.naive:
        everyone += all_naive_forms(recipe, options.models, setting)
    everyone += public_candidates(options.public, setting)
    # First, because what it tries must not meet the benchmark's own buffers.
    yield header(device)
    with ExitStack() as running:
        child: Child | None = None
        if options.both:
            order = Order(recipe=options.recipe, models=tuple(options.models), setting=setting)
            child = running.enter_context(as_torch_comes(order))
            yield f"As torch comes, in a process of its own: freed buffers {child.freed_buffers}."
            everyone += child.candidates
        names = [one.name for one in everyone]
        pairs = [*known_pairs(names, setting.reference), *parse_pairs(options.against, names)]
        limits = best_rates(device, {}) if options.limit else {}
        before = cpu_seconds(child.cpu_seconds() if child else 0)
        measured = measure(everyone, rounds=options.rounds, device=device)
        after = cpu_seconds(child.cpu_seconds() if child else 0)
    yield f"Recipe {options.recipe}: B={options.batch}, T={options.time}, float32, {options.rounds} rounds."
    yield share_of_others(before, after)
    yield f"\n{table(compare(everyone, measured, setting.reference), batch_size=options.batch)}"
    if pairs:
        yield f"\nSpeed of one to another, taken within a round:\n\n{pair_table(pairs, measured)}"
    if options.limit:
        limits = best_rates(device, limits)
        shares = share_table(everyone, measured, batch_size=options.batch, limit=max(limits.values()))
        yield f"\n{rate_line(limits)}\n\n{shares}"
    for count in options.busy:
        steps = {one.name: on_threads(one).training for one in [everyone[0], *models]}
        found = beside_busy(steps, busy=count, rounds=options.rounds)
        yield f"\nTraining steps beside {count} busy process{'es'[: 2 * (count > 1)]}:\n\n{busy_table(found)}"


def refuse(options: argparse.Namespace, device: torch.device) -> None:
    """Refuse options that contradict each other, before anything is measured.

    Raises:
        RecipeError: they do.
    """
    if options.both and options.untuned:
        raise RecipeError("--both measures the untuned state beside the tuned one; leave --untuned out")
    for name, given in (("--both", options.both), ("--busy", options.busy)):
        if given and device.type != "cpu":
            raise RecipeError(f"{name} is about the CPU; leave it out, or measure with --device cpu")


def known_pairs(names: Sequence[str], reference: str) -> list[Pair]:
    """Pairs that stand to each other by what they are: twins, forms, options, and the states of the allocator."""
    pairs = [
        Pair(name, name + suffix) for suffix in (PLAIN, NAIVE) for name in names if name + suffix in names
    ]
    plainly = {name: name.partition(":")[0] for name in names}
    pairs += [Pair(name, row) for name, row in plainly.items() if name != row and row in names]
    untouched = reference + AS_IT_COMES
    for name in names:
        if name + AS_IT_COMES in names:
            pairs.append(Pair(name, untouched))
            if name != reference:
                pairs.append(Pair(name + AS_IT_COMES, untouched))
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = command.command_parser("speed", __doc__)
    command.add_recipe_and_device(parser)
    command.add_models(parser, DEFAULT_MODELS, "its rows")
    command.add_numbers(
        parser,
        batch=(128, "B, sequences"),
        time=(784, "T, steps of a sequence"),
        rounds=(5, "measured rounds"),
    )
    parser.add_argument("--twins", action="store_true", help="measure the plain twin of every model too")
    parser.add_argument(
        "--naive",
        action="store_true",
        help="measure the naive form of Dilated RNNs too, with the last step read and with every step",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="ROW=ROW",
        help="more pairs of the table's rows to compare, as hm_lstm='torch.nn.LSTM(1,100), three layers'",
    )
    add_public(parser)
    parser.add_argument(
        "--limit",
        action="store_true",
        help="measure the rate of a large matrix product, and each training step's share of it",
    )
    parser.add_argument(
        "--busy",
        nargs="+",
        type=command.positive,
        default=[],
        metavar="N",
        help="then measure training steps quiet and beside N processes that spin, for each N",
    )
    state = parser.add_argument_group("state of the process")
    state.add_argument(
        "--untuned",
        action="store_true",
        help="leave the allocator and denormal numbers as the system has them",
    )
    state.add_argument(
        "--both",
        action="store_true",
        help="measure the models and the reference in a process with the system's allocator too, in the same rounds",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
