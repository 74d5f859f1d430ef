"""TransformersOracle: what transformers' own model of a checkpoint computes, in float64 too.

Knows: how transformers is asked. Does not know: Pilotfish's models.
Axis letters: T tokens, V vocabulary, D model width, L blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pilotfish.testing.oracle import Oracle
from pilotfish.testing.outcome import NotKnown
from pilotfish.testing.quiet import quiet
from pilotfish.weights.formats.safetensors import SINGLE_FILE

NUM_TOLD = 8
"""Answers that an oracle keeps: two of each dtype, of two texts."""
NUM_READ = 8
"""Files whose tensors are kept, each in one dtype."""
SMALL_BYTES = 16 << 20
"""A file up to this may be kept."""

_Tensors = Mapping[str, torch.Tensor]
_READ: dict[tuple[object, frozenset[str], str, str], _Tensors] = {}
"""A file, what may lie in it unread, the class, the dtype -> what was read. One file is asked under
many options, and transformers takes longer to read a tiny one than to build the model. Of a text's
part: what an option of its tower turns around in the file is as it was read first."""


class TransformersOracle(Oracle):
    """transformers' own model of a checkpoint's folder.

    ignored: tensors that may lie in the file unread. Every answer raises NotKnown where
    transformers cannot load the folder whole. What it said of a text it says again: a folder whose
    files have changed wants another one. A subclass may override `load`, or any answer, where
    transformers errs.
    """

    def __init__(self, folder: Path, ignored: Collection[str] = ()) -> None:
        self.folder = folder
        self._ignored = frozenset(ignored)
        self._told: dict[tuple[str, str, tuple[int, ...]], torch.Tensor] = {}
        self._config: Any = None

    @torch.inference_mode()
    def exact(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        """As `Oracle`; every cast to float32 inside the model is made one to float64."""

        def computed() -> torch.Tensor:
            return self._widened(self.load(dtype).double(), tokens)

        return self._once("exact", tokens, dtype, computed)

    @torch.inference_mode()
    def eager(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        """As `Oracle`."""

        def computed() -> torch.Tensor:
            logits: torch.Tensor = self.load(dtype, attention="eager")(_ids(tokens)).logits[0]
            return logits.float()

        return self._once("eager", tokens, dtype, computed)

    def _once(
        self, kind: str, tokens: Sequence[int], dtype: str, computed: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """An answer, computed where it is none of the newest: many promises ask for the same."""
        asked = (kind, dtype, tuple(tokens))
        answer = self._told.pop(asked, None)
        self._told[asked] = computed() if answer is None else answer
        while len(self._told) > NUM_TOLD:
            del self._told[next(iter(self._told))]
        return self._told[asked].clone()

    def nudged(self, tokens: Sequence[int], dtype: str) -> Iterator[torch.Tensor]:
        """As `Oracle`, without end."""
        model, drawn = self.load(dtype).double(), torch.Generator().manual_seed(0)
        most = torch.finfo(getattr(torch, dtype)).eps
        stored = [weight.detach().clone() for weight in model.parameters()]
        while True:
            with torch.inference_mode():
                for weight, own in zip(model.parameters(), stored, strict=True):
                    noise = torch.rand(own.shape, generator=drawn, dtype=torch.float64)
                    weight.data = own * (1 + most * (2 * noise - 1))
                logits = self._widened(model, tokens)
            yield logits

    def hidden_states(self, tokens: Sequence[int], dtype: str) -> list[torch.Tensor]:
        """As `Oracle`: what each block is given, and what the last one gives."""
        return self.streams(self.load(dtype).double(), tokens)[0]

    @torch.inference_mode()
    def streams(
        self, model: Any, tokens: Sequence[int]
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Of a model of `load`, in any dtype: `hidden_states`, and [T, D] the normed output.

        [] and None where they are not found.
        """
        seen, blocks, normed = list[Any](), _blocks(model), list[Any]()

        def given(_: Any, args: Any, named: Any) -> None:
            seen.append(args[0] if args else named.get("hidden_states"))

        def gave(_: Any, args: Any, out: Any) -> None:
            seen.append(out[0] if isinstance(out, tuple) else out)

        hooks = [block.register_forward_pre_hook(given, with_kwargs=True) for block in blocks]
        hooks += [block.register_forward_hook(gave) for block in blocks[-1:]]
        hooks.append(
            model.get_decoder().register_forward_hook(lambda _, args, out: normed.append(out[0]))
        )
        self._run(model, tokens)
        for hook in hooks:
            hook.remove()
        known = len(seen) == len(blocks) + 1 and all(
            isinstance(state, torch.Tensor) and state.shape[:2] == (1, len(tokens))
            for state in seen
        )
        return ([state[0] for state in seen] if known else []), normed[0][0] if normed else None

    @torch.inference_mode()
    def embedded(self, model: Any, tokens: Sequence[int]) -> torch.Tensor | None:
        """The first of `streams`, without the blocks behind it; None where it is not found."""

        def stop(_: Any, args: Any, named: Any) -> None:
            raise _Reached(args[0] if args else named["hidden_states"])

        first = _blocks(model)[:1]
        hooks = [block.register_forward_pre_hook(stop, with_kwargs=True) for block in first]
        try:
            self._run(model, tokens)
        except _Reached as reached:
            state: torch.Tensor = reached.args[0][0]
            return state
        finally:
            for hook in hooks:
                hook.remove()
        return None

    def _run(self, model: Any, tokens: Sequence[int]) -> None:
        if model.dtype == torch.float64:
            self._widened(model, tokens)
        else:
            model(_ids(tokens))

    @torch.inference_mode()
    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """As `Oracle`, with transformers' own cache."""
        ids = _ids(tokens)
        answer = self.load("float32").generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return list(answer[0, len(tokens) :].tolist())

    def load(self, dtype: str, attention: str = "sdpa") -> Any:
        """A fresh model each time: some rotary types remember the lengths they saw.

        dtype: of its weights. attention: of transformers' implementations; "eager" is taken where
        the class has no other. What stands in the file is what it has: a class that rescales what
        it loads does so for a training that is to come.
        """
        try:
            model = self._loaded(dtype, attention)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            said = str(error).strip().partition("\n")[0]
            raise NotKnown(
                f"transformers cannot load it ({said}), and the spec's examples have no oracle"
            ) from error
        for weight in model.parameters():  # some versions keep a router's unrounded
            weight.data = weight.data.to(getattr(torch, dtype)).to(weight.dtype)
        # Its grouped products of experts take no float64.
        model.set_experts_implementation("eager")
        return model.eval()

    def _loaded(self, dtype: str, attention: str) -> Any:
        """Read from the files; or built from the options, with what was read of its tensors."""
        import transformers

        config = self._config_in_file()
        name = (config.architectures or ["none"])[0]
        model_class = getattr(transformers, name, None)
        if model_class is None:
            raise NotKnown(f"transformers has no {name}, and the spec's examples have no oracle")
        options = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
        file = self.folder / SINGLE_FILE
        key = _identity(file), self._ignored, name, dtype
        built = _built(model_class, config, options, _READ.get(key, {}))
        if built is not None:
            return built
        with quiet():
            try:
                model, said = model_class.from_pretrained(
                    self.folder, output_loading_info=True, **options
                )
            except ValueError:
                if attention == "eager":
                    raise
                return self._loaded(dtype, "eager")
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            named = set(said.get(kind) or ()) - self._ignored
            # transformers names tensors as it has joined them: one for all experts, say.
            odd = sorted(name for name in named if not self._lies_in_ignored(name))
            if odd:
                raise NotKnown(f"transformers loads it with {kind}: {odd[:3]}")
        _put_back(model, file)
        if key not in _READ and file.is_file() and file.stat().st_size <= SMALL_BYTES:
            _READ[key] = {name: one.detach().clone() for name, one in _tensors(model).items()}
            while len(_READ) > NUM_READ:
                del _READ[next(iter(_READ))]
        return model

    def _config_in_file(self) -> Any:
        """One for each model, which may change it."""
        import transformers

        if self._config is None:
            self._config = transformers.AutoConfig.from_pretrained(self.folder)
        return copy.deepcopy(self._config)

    def _lies_in_ignored(self, name: str) -> bool:
        """Whether the file has tensors in the module of a name, and all of them are ignored."""
        from safetensors import safe_open

        module, file = name.rpartition(".")[0] + ".", self.folder / SINGLE_FILE
        if not any(other.startswith(module) for other in self._ignored) or not file.is_file():
            return False
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
        return {other for other in names if other.startswith(module)} <= self._ignored

    def _widened(self, model: Any, tokens: Sequence[int]) -> torch.Tensor:
        with _Widened():
            logits: torch.Tensor = model(_ids(tokens)).logits[0]
        return logits.double()


class _Reached(Exception):
    """The stream at a block: the pass need not go on."""


class _Widened(TorchFunctionMode):
    """Makes every cast to float32 one to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        if any(one is torch.float32 for one in args):  # most calls have none, and are many
            args = tuple(torch.float64 if one is torch.float32 else one for one in args)
        if not kwargs:
            return func(*args)
        narrow = [name for name, value in kwargs.items() if value is torch.float32]
        return func(*args, **{**kwargs, **dict.fromkeys(narrow, torch.float64)})


def _ids(tokens: Sequence[int]) -> torch.Tensor:
    return torch.tensor([list(tokens)])


def _blocks(model: Any) -> Sequence[Any]:
    """The L modules that the stream goes through, whatever they are called; () if not found."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return tuple(module)
    return ()


def _identity(file: Path) -> object:
    """Of a file's contents, under whatever name; None where there is no file."""
    if not file.is_file():
        return None
    about = file.stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """All that a file may give: parameters, each shared one once, and buffers that are saved."""
    own = dict(model.named_parameters())
    stored = model.state_dict(keep_vars=True)
    return own | {name: one for name, one in model.named_buffers() if name in stored}


def _built(model_class: Any, config: Any, options: Mapping[str, Any], read: _Tensors) -> Any:
    """A model of the options with tensors that were read; None where it has others than those."""
    if not read or getattr(config, "quantization_config", None) is not None:
        return None
    try:
        from transformers.initialization import no_init_weights

        with quiet(), no_init_weights(), torch.random.fork_rng(devices=[]):
            model = model_class._from_config(config, **options)
            model.tie_weights()
            model.config.validate()
    except Exception:  # as reading it says in its own words
        return None
    own = _tensors(model)
    if {name: one.shape for name, one in own.items()} != {n: one.shape for n, one in read.items()}:
        return None
    for name, tensor in own.items():
        tensor.data = read[name].clone()
    return model


def _put_back(model: Any, file: Path) -> None:
    """The file's own numbers into parameters of the same name and shape."""
    from safetensors import safe_open

    if not file.is_file():
        return
    own = dict(model.named_parameters())
    with safe_open(file, framework="pt") as stored, torch.no_grad():
        for name in own.keys() & set(stored.keys()):
            tensor = stored.get_tensor(name)
            if tensor.shape == own[name].shape and tensor.is_floating_point():
                own[name].copy_(tensor)
