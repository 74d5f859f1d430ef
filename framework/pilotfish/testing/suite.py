"""The suite: every promise by name, and what comes of checking them.

Knows: the list. Does not know: how results are shown.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal

import attrs

from pilotfish.config import SpeculativeConfig
from pilotfish.config.runtime import BackendName
from pilotfish.errors import ConfigError, PluginError, RouteError, UserError, WeightsError
from pilotfish.nearest import did_you_mean
from pilotfish.platform.cpu_capability import want_instructions
from pilotfish.registry import Registry
from pilotfish.testing.checkpoints import examples_of, save_tiny
from pilotfish.testing.examples import EVEN, ODD
from pilotfish.testing.outcome import Broken, NotApplicable, NotKnown
from pilotfish.testing.promise import Promise
from pilotfish.testing.promises import (
    batching,
    contract,
    draft_parity,
    draft_probs,
    images,
    lifecycle,
    loading,
    options,
    outputs,
    parity,
    planned,
    ranks,
    requests,
    sampling,
    slot_caches,
    speculation,
    widths,
)
from pilotfish.testing.subject import Subject

Status = Literal["ok", "FAILED", "not known", "not applicable"]

_NO_PLUGINS = ("pilotfish", "torch", "transformers", "safetensors", "contextlib")
"""Whose lines are not those where a plugin's author looks first."""

_GROUPS = {
    "parity with the oracle": parity.logits_are_the_oracles,
    "the arithmetics agree": parity.arithmetics_agree,
    "greedy tokens are the oracle's": parity.greedy_tokens_are_the_oracles,
    "boundaries are the oracle's": parity.boundaries_are_the_oracles,
    "batch equals singles": batching.batch_equals_singles,
    "any chunking equals one chunk": batching.chunks_equal_whole,
    "any mixture equals singles": batching.mixtures_equal_singles,
    "pages do not matter": batching.pages_do_not_matter,
    "later rows do not reach earlier ones": batching.later_rows_do_not_reach_earlier_ones,
    "next inputs equal packed inputs": batching.next_inputs_equal_packed,
    "planned passes equal called layers": planned.planned_passes_equal_called_layers,
    "rows are their own at real widths": widths.rows_are_their_own_at_real_widths,
    "any number of ranks gives the same bits": ranks.any_number_of_ranks_gives_the_same_bits,
    "any history equals committed only": lifecycle.history_equals_committed,
    "preemption is invisible": lifecycle.preemption_is_invisible,
    "tiny pools do not matter": lifecycle.tiny_pools_do_not_matter,
    "warm prefix equals cold": lifecycle.warm_equals_cold,
    "passes write their rows only": lifecycle.passes_write_their_rows_only,
    "scratch is never read": lifecycle.scratch_is_never_read,
    "exceptions change nothing": lifecycle.exceptions_change_nothing,
    "declared state is all": lifecycle.declared_state_is_all,
    "slot caches keep their contract": slot_caches.slot_caches_keep_their_contract,
    "images may be cut anywhere": images.images_may_be_cut_anywhere,
    "images do not meet": images.images_do_not_meet,
    "another image is no prefix hit": images.another_image_is_no_prefix_hit,
    "images matter": images.images_matter,
    "images are refused by name": images.images_are_refused_by_name,
    "logit modes agree": outputs.logit_modes_agree,
    "hidden modes agree": outputs.hidden_modes_agree,
    "hidden states survive chunks": outputs.hidden_states_survive_chunks,
    "buffers are in declared order": outputs.buffers_are_in_declared_order,
    "same seed, same text": sampling.same_seed_same_text,
    "seeds matter": sampling.seeds_matter,
    "texts are naive decodings": sampling.texts_are_naive_decodings,
    "prompt log probabilities are the model's": sampling.prompt_logprobs_are_the_models,
    "ties go to the lowest id": sampling.ties_go_to_the_lowest_id,
    "limits cut the same text": sampling.limits_cut_the_same_text,
    "every request ends once": requests.every_request_ends_once,
    "limits are refused": requests.limits_are_refused,
    "optional members are spelt right": contract.optional_members_are_spelt_right,
    "weights are strict": loading.weights_are_strict,
    "every tensor counts": loading.every_tensor_counts,
    "config round trip": loading.config_round_trips,
    "parameters are known early": loading.parameters_are_known_early,
    "loading twice is the same": loading.loading_twice_is_the_same,
    "no drafter changes a text": speculation.no_drafter_changes_a_text,
    "right drafts count, wrong ones do not": speculation.right_drafts_count_and_wrong_ones_do_not,
    "a failing drafter loses nothing": speculation.a_failing_drafter_loses_nothing,
    "options are read or refused": options.options_are_read_or_refused,
    "unknown kinds are refused": options.unknown_kinds_are_refused,
}

_DRAFTS = {
    "drafts are the oracle's": draft_parity.drafts_are_the_oracles,
    "the draft changes no text": speculation.the_draft_changes_no_text,
    "the draft is what was asked for": speculation.the_draft_is_what_was_asked_for,
    "a warm prefix drafts as a cold one": speculation.a_warm_prefix_drafts_as_a_cold_one,
    "a draft batch equals singles": speculation.a_draft_batch_equals_singles,
    "residual acceptance keeps the law": draft_probs.residual_acceptance_keeps_the_law,
    "target and draft fail together": speculation.an_exception_leaves_target_and_draft_equal,
}

PROMISES: tuple[Promise, ...] = (
    *(Promise(name=n, check=c) for n, c in _GROUPS.items()),
    *(Promise(name=n, check=c, needs_drafter=True) for n, c in _DRAFTS.items()),
)
"""Every promise, in the order of reports."""


ABOUT_DRAFTS = "drafts"
"""What stands for all promises about drafts where a promise is asked for by name."""


def promises_for(*, with_drafter: bool) -> tuple[Promise, ...]:
    """Those that say something: about drafters only where one is given."""
    return tuple(promise for promise in PROMISES if with_drafter or not promise.needs_drafter)


@attrs.frozen(kw_only=True)
class Result:
    """What came of one promise and one subject.

    said: what was got and wanted, why it does not apply, or what was lacking to know; "" for "ok".
    seconds: it took.
    """

    promise: str
    subject: str
    status: Status
    said: str = ""
    seconds: float = 0.0


def promise_named(name: str) -> Promise:
    """The promise of a name. Raises UserError with the nearest names."""
    by_name = {promise.name: promise for promise in PROMISES}
    if name not in by_name:
        raise UserError(f"no promise is named {name!r}{did_you_mean(name, list(by_name))}")
    return by_name[name]


def promises_named(pattern: str) -> tuple[Promise, ...]:
    """The promise of a name, those that fit a pattern with `*`, or with "drafts" all about drafts.

    Raises UserError with the nearest names where there is none.
    """
    if pattern == ABOUT_DRAFTS:
        return tuple(promise for promise in PROMISES if promise.needs_drafter)
    if "*" not in pattern:
        return (promise_named(pattern),)
    found = tuple(promise for promise in PROMISES if fnmatchcase(promise.name, pattern))
    if not found:
        raise UserError(f"no promise fits {pattern!r}; `pilotfish verify --list` lists them")
    return found


def check(promise: Promise, subject: Subject) -> Result:
    """Checks one promise. An exception that is none of the kit's own fails it too."""
    start, said = perf_counter(), ""
    status: Status = "ok"
    try:
        if subject.cannot_run:
            raise NotKnown(f"the model cannot be run: {subject.cannot_run}")
        promise.keep(subject)
    except NotApplicable as reason:
        status, said = "not applicable", str(reason)
    except NotKnown as lacking:
        status, said = "not known", str(lacking)
    except Broken as broken:
        status, said = "FAILED", f"got {broken.got}; wanted {broken.wanted}"
        subject.cannot_run = subject.cannot_load and "it does not load, as told above"
    except Exception as error:  # a plugin may raise anything
        status, said = "FAILED", f"got {told(error)}; wanted none"
        if _cannot_run(subject, error):
            said = f"got a model that cannot be run: {told(error)}; wanted logits of three tokens"
            subject.cannot_run = f"{type(error).__name__}, as told above"
    return Result(
        promise=promise.name,
        subject=subject.name,
        status=status,
        said=said,
        seconds=perf_counter() - start,
    )


def told(error: BaseException) -> str:
    """An exception in words: what, and in which line of a plugin, or else of the library."""
    file, line = _place(error)
    return f"{type(error).__name__}: {error} ({file}:{line})"


def _place(error: BaseException) -> tuple[str, int]:
    """File and line where it was raised: the last ones of a plugin, or else of the library."""
    frames = list(traceback.walk_tb(error.__traceback__))
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in frames]
    own = [place for place, name in enumerate(names) if name.split(".")[0] not in _NO_PLUGINS]
    frame, line = frames[own[-1] if own else -1]
    return frame.f_code.co_filename, line


def _cannot_run(subject: Subject, error: Exception) -> bool:
    """Whether the plainest pass raises there too, so that no promise could say anything else.

    Maybe in other words: of the rows of that pass, or an object's address.
    """
    try:
        subject.alone(subject.tokens(3))
    except Exception as again:  # a plugin may raise anything
        return (type(again), _place(again)) == (type(error), _place(error))
    return False


def run(subjects: Sequence[Subject], promises: Iterable[Promise] = PROMISES) -> Iterator[Result]:
    """Checks promises one after another, each on every subject."""
    for promise in promises:
        for subject in subjects:
            yield check(promise, subject)


@contextmanager
def tiny_subjects(
    architecture: str,
    registry: Registry,
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    device: str = "auto",
    backend: BackendName = "auto",
    only: Sequence[str] = (),
    draft: str | None = None,
    speculative: SpeculativeConfig | None = None,
    num_ranks: int | None = None,
) -> Iterator[list[Subject]]:
    """Tiny random checkpoints of an architecture, one for each of its examples, while it lasts.

    only: names of examples; none: all. draft, speculative: a drafter to be tested on them.
    num_ranks: see `Subject`.
    An example that does not load is among them: every check of it fails, see `Promise.keep`.
    Raises RouteError, PluginError, and ConfigError for an example that cannot be written, and where
    torch was told to use instructions that the processor has not.
    """
    want_instructions()
    names = [n for n in examples_of(architecture, registry).configs if not only or n in only]
    with TemporaryDirectory(prefix="pilotfish-") as folder, ExitStack() as exits:
        options = {
            "registry": registry,
            "dtypes": tuple(dtypes),
            "device": device,
            "backend": backend,
            "draft": draft,
            "speculative": speculative,
            "num_ranks": num_ranks,
        }
        yield [
            exits.enter_context(
                _tiny_subject(architecture, name, Path(folder) / str(number), options)
            )
            for number, name in enumerate(names)
        ]


def _tiny_subject(
    architecture: str, name: str, folder: Path, options: Mapping[str, Any]
) -> Subject:
    """The example with odd widths; with even ones where its config or its plugin refuses those.

    One whose checkpoint is written and does not load says so in `Subject.cannot_load`.
    """
    for base in (ODD, EVEN):
        try:
            path = save_tiny(
                architecture,
                name,
                folder / str(base["hidden_size"]),
                options["registry"],
                base=base,
                shows_all=True,
            )
        except ValueError as error:  # a ConfigError among them
            if base is ODD:
                continue
            raise ConfigError(f"the example {name!r} of {architecture}: {error}") from error
        subject = Subject(
            name=name,
            model=str(path),
            num_threads=1,  # toy sizes: a second thread costs more than it gives
            example_of=architecture,
            **options,
        )
        try:
            subject.prepared(subject.dtype)
        except (PluginError, RouteError):
            raise  # of no example
        except Exception as error:  # a plugin may raise anything
            subject.cannot_load = told(error)
            if isinstance(error, WeightsError):
                subject.cannot_load = f"{error}; {_who_wrote(architecture, options['registry'])}"
        if not subject.cannot_load or base is EVEN:
            return subject
    raise AssertionError("one of the two is returned or raised")


def _who_wrote(architecture: str, registry: Registry) -> str:
    """Whose fault it is that a tiny checkpoint has other tensors than the plugin's rules name."""
    if examples_of(architecture, registry).save is not None:
        return "`save` of the plugin's Examples wrote this checkpoint, and its weight rules differ"
    return (
        "the kit wrote this checkpoint with transformers, so the plugin's weight rules miss these "
        "tensors, or name some that there are not"
    )
