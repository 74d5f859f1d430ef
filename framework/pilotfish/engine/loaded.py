"""Loaded: what an LLM is made of, from what was prepared.

Knows: the order in which weights, state, drafter and engine come. Does not know: what is asked of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.engine.admission import Admission
from pilotfish.engine.assembly import counters_for, make_engine
from pilotfish.engine.length_rules import LengthRules
from pilotfish.engine.loading_bar import LoadingBar
from pilotfish.multimodal.admission import ImageAdmission

if TYPE_CHECKING:
    from pilotfish.engine.engine import Engine
    from pilotfish.loading.prepared import Prepared
    from pilotfish.ranks.launch import Launcher
    from pilotfish.registry import Registry
    from pilotfish.speculation import Proposer
    from pilotfish.state import StateManager
    from pilotfish.tokenization.tokenizer import Tokenizer


@attrs.frozen(eq=False)
class Loaded:
    """proposer: the drafter; None without. at_end: to be called when the engine is let go of.

    Replicas have state and drafter in their own processes.
    """

    engine: Engine
    state: StateManager | None
    proposer: Proposer | None
    at_end: Callable[[], object] | None = None


def admission_of(prepared: Prepared, tokenizer: Tokenizer | None) -> Admission:
    """What may be asked of a model, before its weights are read."""
    of_tokenizer = () if tokenizer is None else tokenizer.eos_token_ids
    config, draft = prepared.model.config, prepared.draft
    return Admission(
        vocab_size=prepared.vocab_size,
        max_seq_len=config.get_max_seq_len(),
        eos_token_ids=prepared.checkpoint.eos_token_ids or of_tokenizer,
        max_cached_tokens=prepared.memory_plan.max_cached_tokens,
        tokenizer=tokenizer,
        model_path=prepared.pipeline_config.model.path,
        lengths=LengthRules.of(config, None if draft is None else draft.config),
        new_counters=counters_for(prepared),
        images=ImageAdmission(
            architecture=prepared.route.hf_architecture,
            processor=prepared.image_processor,
            max_seq_len=config.get_max_seq_len(),
            tokenizer=tokenizer,
            unserved_token_ids=prepared.unserved_token_ids,
        ),
    )


def load(
    prepared: Prepared, options: Mapping[str, Any], registry: Registry, launcher: Launcher
) -> Loaded:
    """Reads the weights, on all ranks of all replicas.

    options: those of `prepare_from_options` that it was prepared with. Raises what loading raises;
    nothing is left then.
    """
    if prepared.pipeline_config.parallel.num_replicas > 1:
        from pilotfish.replicas.engine import load_replicas

        replicas: Any = load_replicas(prepared, options)
        return Loaded(replicas, None, None, replicas.close)
    return load_here(prepared, options, registry, launcher)


def load_here(
    prepared: Prepared, options: Mapping[str, Any], registry: Registry, launcher: Launcher
) -> Loaded:
    """As `load`, with this process as the first rank of the one model, or of its replica."""
    at_end = None
    with (
        LoadingBar(*prepared.sources, bytes_read=prepared.share.bytes_read) as bar,
        ExitStack() as undo,
    ):
        if prepared.pipeline_config.parallel.num_ranks > 1:
            from pilotfish.ranks.driver import load_on_ranks

            loaded = load_on_ranks(prepared, options, bar.counted, launcher)
            whole, state, ranks, proposer = loaded
            at_end = undo.callback(ranks.close)
        else:
            whole, state, proposer = prepared, prepared.load(bar.counted), None
        proposer = proposer or whole.load_proposer(registry, bar.counted)
        undo.pop_all()
    return Loaded(make_engine(whole, state, proposer), state, proposer, at_end)
