"""Subject: one checkpoint under test, and everything a promise needs to test it.

Knows: how models, states and oracles of the checkpoint are made. Does not know: any promise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import attrs
import torch

from pilotfish.batch import PlacedImage
from pilotfish.config import CacheConfig, SpeculativeConfig
from pilotfish.config.runtime import BackendName
from pilotfish.engine import LLM
from pilotfish.engine.length_rules import LengthRules
from pilotfish.errors import PilotfishError
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.loading.prepared import Prepared
from pilotfish.multimodal.admission import ImageAdmission
from pilotfish.protocols import ImageProcessor, PipelineModel, ReturnHiddenStates, ReturnLogits
from pilotfish.protocols.optional import of_model
from pilotfish.registry import Registry
from pilotfish.testing.checkpoints import (
    copy_with_config,
    copy_with_weights,
    examples_of,
    save_tiny,
    with_more_heads,
)
from pilotfish.testing.image_prompts import ImagePrompt, draw_image_prompt
from pilotfish.testing.oracle import Oracle
from pilotfish.testing.outcome import NotApplicable, NotKnown
from pilotfish.testing.session import Session
from pilotfish.testing.transformers_oracle import TransformersOracle
from pilotfish.weights import TensorInfo
from pilotfish.weights.formats.safetensors import SINGLE_FILE

PAGE_SIZE = 4
"""Tokens in a page, unless a test asks for another size: small, so that borders are everywhere."""
NUM_PAGES = 64
LONG = 27
"""Tokens of a long prompt: several pages, and no multiple of anything."""
LONGER = 301
"""Tokens of a text beyond the blocks of 64, 128 and 256 keys in which attention may be computed."""


@attrs.define(kw_only=True)
class Subject:
    """A checkpoint, with the dtypes, device and kernels it is tested on. A context manager.

    name: for reports. model: directory, .gguf file, hub id or "demo". dtypes: "float32" and so on.
    num_threads: of torch while a promise is checked; None leaves it.
    draft, speculative: a drafter to be tested on it, for the promises about drafts.
    num_ranks: on how many ranks it is shared, for the promise about those; None: on a few numbers.
    example_of: the architecture whose tiny example `name` it is; None for anybody's checkpoint.
    cannot_load: what it raises before weights are read; "" where that is well.
    cannot_run: what every pass raises, once that is known; "" where passes run.
    """

    name: str
    model: str
    registry: Registry
    dtypes: Sequence[str] = ("float32", "bfloat16")
    device: str = "auto"
    backend: BackendName = "auto"
    num_threads: int | None = None
    draft: str | None = None
    speculative: SpeculativeConfig | None = None
    num_ranks: int | None = None
    example_of: str | None = None
    cannot_load: str = attrs.field(default="", init=False)
    cannot_run: str = attrs.field(default="", init=False)
    _models: dict[str, Prepared] = attrs.field(factory=dict, repr=False)
    _oracle: Oracle | NotKnown | None = attrs.field(default=None, repr=False)
    _oracle_of_origin: Callable[[Path], Oracle] | None = attrs.field(
        default=None, init=False, repr=False
    )
    _exits: ExitStack = attrs.field(factory=ExitStack, repr=False)

    # Facts

    @property
    def dtype(self) -> str:
        """The one dtype of promises that do not turn on it."""
        return self.dtypes[0]

    def prepared(self, dtype: str, **options: Any) -> Prepared:
        """The checkpoint opened and routed, no weights read. options: of `prepare_from_options`.

        Embeddings of images are not kept, so that every pass has to make them again.
        """
        cache = CacheConfig(page_size_tokens=PAGE_SIZE, num_pages=NUM_PAGES, image_bytes=0)
        where = {"device": self.device, "backend": self.backend, "cache": cache, **options}
        return prepare_from_options(self.model, registry=self.registry, dtype=dtype, **where)

    def check_draft(self) -> None:
        """Raises a UserError for a drafter that does not fit; reads no weights."""
        if self.speculative is not None and not self.cannot_load:
            self.prepared(self.dtype, draft=self.draft, speculative=self.speculative)

    @property
    def vocab_size(self) -> int:
        """Token ids that the model knows."""
        return self._loaded(self.dtype).vocab_size

    @property
    def max_seq_len(self) -> int:
        """The longest context."""
        return int(self._loaded(self.dtype).model.config.get_max_seq_len())

    @property
    def longest_restart(self) -> int:
        """Texts that begin with more tokens are never computed anew; 0 where none ever is."""
        return LengthRules.of(self._loaded(self.dtype).model.config).recompute_length or 0

    @property
    def capabilities(self) -> frozenset[str]:
        """What the architecture's spec says it offers to drafters."""
        return self._loaded(self.dtype).route.architecture.capabilities

    @property
    def folder(self) -> Path:
        """The checkpoint's directory. Raises NotKnown unless it holds one safetensors file."""
        path = self._loaded(self.dtype).checkpoint.path
        if not (path / SINGLE_FILE).is_file():
            raise NotKnown(
                f"the checkpoint is no directory with {SINGLE_FILE}, which is what the kit can edit"
            )
        return path

    @property
    def oracle(self) -> Oracle:
        """The author's, else transformers'. Raises NotKnown where there is none."""
        if self._oracle is None:
            try:
                self._oracle = self._find_oracle()
            except NotKnown as reason:
                self._oracle = reason
        if isinstance(self._oracle, NotKnown):
            raise self._oracle
        return self._oracle

    def infos(self, prepared: Prepared) -> Mapping[str, TensorInfo]:
        """The tensors that the model reads: without those that its rules let lie."""
        return of_model(prepared.model).without_ignored(prepared.weights.infos)

    @property
    def image_processor(self) -> ImageProcessor | None:
        """The architecture's; None for text only."""
        return self._loaded(self.dtype).image_processor

    @property
    def _image_admission(self) -> ImageAdmission:
        return ImageAdmission(
            architecture=self.name,
            processor=self.image_processor,
            max_seq_len=self.max_seq_len,
            unserved_token_ids=self._loaded(self.dtype).unserved_token_ids,
        )

    @property
    def placeholder_ids(self) -> frozenset[int]:
        """Token ids that stand for an image or the like, which prompts of text cannot have."""
        return self._image_admission.placeholder_ids

    def tokens(self, count: int, seed: int = 0) -> list[int]:
        """Random token ids that a prompt of text may have."""
        drawn, reserved = random.Random(f"{seed}"), self.placeholder_ids
        found: list[int] = []
        while len(found) < count:
            token = drawn.randrange(self.vocab_size)
            if token not in reserved:
                found.append(token)
        return found

    def longer_tokens(self) -> list[int]:
        """A text of `LONGER` tokens, or of as many as the model reaches."""
        return self.tokens(min(LONGER, self.max_seq_len), seed=7)

    def image_prompt(self, *, num_images: int, seed: int = 0) -> ImagePrompt:
        """Random token ids around random images of several sizes.

        Raises NotApplicable where images are not served, or their placeholder is no known token.
        """
        processor = self.image_processor
        if processor is None:
            raise NotApplicable("the architecture serves text only")
        placeholder = processor.placeholder_token_id
        if placeholder >= self.vocab_size:
            raise NotApplicable(f"the placeholder {placeholder} is not in the vocabulary")
        return draw_image_prompt(self.tokens, self._image_admission, processor, num_images, seed)

    # Things to run

    def load(
        self,
        dtype: str,
        logits: ReturnLogits = ReturnLogits.VARIABLE,
        hidden: ReturnHiddenStates = ReturnHiddenStates.NONE,
        boundaries: Sequence[int] = (),
    ) -> PipelineModel:
        """A new model with weights."""
        prepared = self._models.get(dtype) or self.prepared(dtype)
        model = prepared.route.model_class()(
            prepared.pipeline_config,
            prepared.model.config,
            prepared.backend,
            device=prepared.device,
            return_logits=logits,
            return_hidden_states=hidden,
            aux_hidden_state_layers=tuple(boundaries),
        )
        model.load_model(prepared.weights)
        return model

    def session(
        self,
        dtype: str | None = None,
        *,
        model: PipelineModel | None = None,
        page_size: int = PAGE_SIZE,
        num_pages: int = NUM_PAGES,
        prefix_caching: bool = False,
        poison: bool = True,
    ) -> Session:
        """A session with a state of its own; model: None takes one that sessions share.

        poison: rows that nobody may read are NaN.
        """
        dtype = dtype or self.dtype
        cache = CacheConfig(
            page_size_tokens=page_size, num_pages=num_pages, prefix_caching=prefix_caching
        )
        base = self._loaded(dtype)
        prepared = attrs.evolve(
            base,
            model=model or base.model,
            pipeline_config=attrs.evolve(base.pipeline_config, cache=cache),
            memory_plan=attrs.evolve(
                base.memory_plan, num_pages=num_pages, page_size_tokens=page_size
            ),
        )
        return Session(prepared.model, prepared.allocate(poison=poison))

    def alone(
        self,
        tokens: Sequence[int],
        dtype: str | None = None,
        *,
        num_prompt: int | None = None,
        images: Sequence[PlacedImage] = (),
        chunks: Sequence[int] = (),
        model: PipelineModel | None = None,
    ) -> torch.Tensor:
        """The naive answer: one request, one pass, nothing cached. [T, V] logits of every row.

        num_prompt, images: of `Session.add`. chunks: of `Session.finish`. model: of `session`.
        """
        num_pages = max(NUM_PAGES, -(-len(tokens) // PAGE_SIZE))
        session = self.session(dtype, model=model, num_pages=num_pages)
        session.add("alone", tokens, num_prompt=num_prompt, images=images)
        return session.finish("alone", chunks)

    def llm(self, dtype: str | None = None, *, num_pages: int = 256, **options: Any) -> LLM:
        """The engine as users run it, with small pages. options: of `LLM`."""
        cache = CacheConfig(page_size_tokens=PAGE_SIZE, num_pages=num_pages)
        where = {"device": self.device, "backend": self.backend, "registry": self.registry}
        return LLM(self.model, dtype=dtype or self.dtype, **{**where, "cache": cache, **options})

    # Changed copies

    def with_config(self, changes: Mapping[str, Any]) -> Subject:
        """The checkpoint with other options and the same weights.

        Its oracle is there where the options are refused, too.
        """
        made = self._copy(lambda target: copy_with_config(self.folder, target, changes))
        made._oracle_of_origin = self._oracle_maker()
        return made

    def with_weights(self, change: Callable[[dict[str, torch.Tensor]], None]) -> Subject:
        """The checkpoint with changed tensors."""
        return self._copy(lambda target: copy_with_weights(self.folder, target, change))

    def wide(self) -> Iterator[Subject]:
        """The example at real widths, or the checkpoint as it is; each to be closed.

        Raises NotKnown for an example that is refused at such widths, or has none.
        """
        if self.example_of is None:
            yield attrs.evolve(self, models={}, exits=ExitStack())
            return
        wide = examples_of(self.example_of, self.registry).wide
        if not wide:
            raise NotKnown("its Examples have no `wide`, so nothing of real width is tried")
        for told, sizes in wide.items():
            made = self._wide(sizes)
            made.name = f"{self.name}, {told}"
            yield made

    def _wide(self, sizes: Mapping[str, Any]) -> Subject:
        """The example with other sizes; with as many heads more where its heads' width is fixed."""
        architecture, registry = self.example_of, self.registry
        assert architecture is not None
        refused, example = "", examples_of(architecture, registry).configs[self.name]
        for given in (sizes, with_more_heads(sizes, example)):
            save = partial(save_tiny, registry=registry, sizes=given, shows_all=True)
            try:
                with ExitStack() as exits:
                    made = exits.enter_context(self._copy(partial(save, architecture, self.name)))
                    made.prepared(self.dtype)
                    exits.pop_all()
                    return made
            except (PilotfishError, ValueError) as error:
                refused = f"{type(error).__name__}: {error}"
        raise NotKnown(
            f"the example is refused with {dict(sizes)} ({refused}); give its Examples a `wide`"
        )

    def threads(self) -> AbstractContextManager[None]:
        """Limits torch's threads as `num_threads` says, for a while."""
        return torch_threads(self.num_threads)

    def close(self) -> None:
        """Drops the models, and of a copy the files."""
        self._exits.close()
        self._models.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _copy(self, make: Callable[[Path], Path]) -> Subject:
        with ExitStack() as exits:
            folder = Path(exits.enter_context(TemporaryDirectory(prefix="pilotfish-")))
            return Subject(
                name=self.name,
                model=str(make(folder / "copy")),
                registry=self.registry,
                dtypes=self.dtypes,
                device=self.device,
                backend=self.backend,
                num_threads=self.num_threads,
                exits=exits.pop_all(),
            )

    def _loaded(self, dtype: str) -> Prepared:
        if dtype not in self._models:
            prepared = self.prepared(dtype)
            prepared.model.load_model(prepared.weights)
            self._models[dtype] = prepared
        return self._models[dtype]

    def _find_oracle(self) -> Oracle:
        if self._oracle_of_origin is not None:
            return self._oracle_of_origin(Path(self.model))
        return self._oracle_maker()(self._loaded(self.dtype).checkpoint.path)

    def _oracle_maker(self) -> Callable[[Path], Oracle]:
        """What makes one of a folder with these tensors. Raises NotKnown where there is none."""
        prepared = self._loaded(self.dtype)
        make = examples_of(prepared.route.hf_architecture, self.registry).oracle
        if make is not None:
            return make
        assert self.folder
        ignored = prepared.weights.infos.keys() - self.infos(prepared).keys()
        return partial(TransformersOracle, ignored=ignored)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Sets the number of torch's threads, for a while; None leaves it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
