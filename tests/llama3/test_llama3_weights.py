"""Loading: strict, with and without prefix, tied or not, from safetensors and from GGUF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from llama3.driver import greedy, load, pipeline_config, whole
from llama3.families import exact, generate, logits, make_config, prompt, reference
from pilotfish import load_registry
from pilotfish.config import PipelineConfig, RuntimeConfig
from pilotfish.errors import ConfigError, WeightsError
from pilotfish.kernels import KernelBackend
from pilotfish.protocols import ReturnLogits
from pilotfish.weights import open_checkpoint
from pilotfish_llama3.config import Llama3Config
from pilotfish_llama3.gguf import gguf_config
from pilotfish_llama3.model import Llama3Model

Checkpoint = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]


def changed(path: Path, folder: Path, change: Callable[[Tensors], None]) -> Path:
    """A copy of a checkpoint with other tensors."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((path / "config.json").read_text())
    return folder


def without(name: str) -> Callable[[Tensors], None]:
    """Leaves one tensor out."""

    def drop(tensors: Tensors) -> None:
        del tensors[name]

    return drop


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("llama", "model.layers.1.self_attn.k_proj.weight"),
        ("llama", "model.norm.weight"),
        ("llama-biases", "model.layers.0.mlp.up_proj.bias"),
        ("qwen2", "model.layers.0.self_attn.q_proj.bias"),
        ("qwen3", "model.layers.1.self_attn.q_norm.weight"),
        ("phi3", "model.layers.1.mlp.gate_up_proj.weight"),
    ],
)
def test_missing_and_misshapen_tensors_are_named(
    checkpoint: Checkpoint, tmp_path: Path, case: str, name: str
) -> None:
    path = changed(checkpoint(case), tmp_path, without(name))
    with pytest.raises(WeightsError, match=name.removeprefix("model.")):
        load(path)

    def cut(tensors: Tensors) -> None:
        tensors[name] = tensors[name][1:].clone()

    with pytest.raises(WeightsError, match=name):
        load(changed(checkpoint(case), tmp_path, cut))


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.bias"),
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "model.layers.2.input_layernorm.weight"),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias"),
        ("olmo", "model.layers.0.input_layernorm.weight"),
        ("phi3", "model.layers.0.self_attn.q_proj.weight"),
        ("mistral", "adapter.weight"),
    ],
)
def test_extra_tensors_are_named(
    checkpoint: Checkpoint, tmp_path: Path, case: str, name: str
) -> None:
    def add(tensors: Tensors) -> None:
        tensors[name] = torch.zeros(48)

    with pytest.raises(WeightsError, match=name):
        load(changed(checkpoint(case), tmp_path, add))


def test_prefix_and_old_buffers_do_not_matter(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)
        tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)

    path = checkpoint("llama")
    renamed = changed(path, tmp_path, rename)
    assert torch.equal(whole(load(renamed), prompt(5)), whole(load(path), prompt(5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_on_disk(checkpoint: Checkpoint, tmp_path: Path, dtype: torch.dtype) -> None:
    """Run in float32 from half-width files: the same as transformers does."""

    def halve(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)

    path = changed(checkpoint("llama"), tmp_path, halve)
    wanted = logits(exact(path), prompt(9))
    assert (whole(load(path), prompt(9)) - wanted).abs().max() < 1e-4


def test_a_head_in_the_file_wins_over_a_config_that_ties(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """As in transformers: two different tensors are never made one."""
    torch.manual_seed(5)

    def add(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = torch.randn(96, 48)

    path = changed(checkpoint("llama-tied"), tmp_path, add)
    model = load(path)
    assert not model.config.tie_word_embeddings
    wanted = logits(reference(path), prompt(9))
    assert (whole(model, prompt(9)) - wanted).abs().max() < 1e-4


def test_a_missing_head_is_tied_only_where_the_config_says_so(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = changed(checkpoint("llama"), tmp_path, without("lm_head.weight"))
    with pytest.raises(WeightsError, match=r"1 missing: lm_head\.weight\. Its config does not tie"):
        load(path)
    model = load(checkpoint("llama-tied"))
    assert model.config.tie_word_embeddings
    assert model.network.lm_head.packed.kind == "plain"
    assert model.network.lm_head.packed.weight is model.network.embed_tokens.weight


def test_fused_files_fill_the_fused_weights(checkpoint: Checkpoint) -> None:
    for case, fused in (("phi3", True), ("llama", False)):
        config = load(checkpoint(case)).config
        assert (config.stacked_qkv, config.stacked_mlp) == (fused, fused)


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Hugging Face's row order to GGUF's: written here on its own, from the format's definition."""
    wide = torch.empty_like(weight)
    head_dim = weight.shape[0] // heads
    for head in range(heads):
        for pair in range(head_dim // 2):
            start = head * head_dim
            wide[start + 2 * pair] = weight[start + pair]
            wide[start + 2 * pair + 1] = weight[start + pair + head_dim // 2]
    return wide


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "norm": "output_norm",
}


def write_gguf(source: Path, path: Path, **extra: torch.Tensor) -> Path:
    """The checkpoint as a GGUF file, float32."""
    hf = AutoConfig.from_pretrained(source)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(hf.num_hidden_layers)
    writer.add_context_length(hf.max_position_embeddings)
    writer.add_embedding_length(hf.hidden_size)
    writer.add_feed_forward_length(hf.intermediate_size)
    writer.add_head_count(hf.num_attention_heads)
    writer.add_head_count_kv(hf.num_key_value_heads)
    writer.add_layer_norm_rms_eps(hf.rms_norm_eps)
    writer.add_rope_dimension_count(hf.head_dim)
    writer.add_key_length(hf.head_dim)
    writer.add_rope_freq_base(hf.rope_parameters["rope_theta"])
    writer.add_vocab_size(hf.vocab_size)
    heads = {"attn_q": hf.num_attention_heads, "attn_k": hf.num_key_value_heads}
    for name, tensor in load_file(source / "model.safetensors").items():
        stem, kind = name.removeprefix("model.").rsplit(".", 1)
        layer = ""
        if stem.startswith("layers."):
            _, number, stem = stem.split(".", 2)
            layer = f"blk.{number}."
        stem = NAMES[stem]
        rows = interleave(tensor, heads[stem]) if stem in heads else tensor
        writer.add_tensor(f"{layer}{stem}.{kind}", rows.numpy())
    for name, tensor in extra.items():
        writer.add_tensor(name.replace("_weight", ".weight"), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load_gguf(path: Path) -> Llama3Model:
    checkpoint = open_checkpoint(str(path), load_registry())
    pipeline = PipelineConfig(
        model=checkpoint.model_config(), runtime=RuntimeConfig(dtype="float32")
    )
    weights = checkpoint.weights()
    config = Llama3Config.initialize(pipeline).finalize(
        checkpoint.huggingface_config, weights.infos
    )
    model = Llama3Model(
        pipeline,
        config,
        KernelBackend(),
        device=torch.device("cpu"),
        return_logits=ReturnLogits.ALL,
    )
    model.load_model(weights)
    return model


@pytest.mark.parametrize("case", ["llama", "llama-tied", "llama-biases", "llama-head-dim"])
def test_gguf_gives_the_same_logits_as_safetensors(
    checkpoint: Checkpoint, tmp_path: Path, case: str
) -> None:
    source = checkpoint(case)
    model = load_gguf(write_gguf(source, tmp_path / "tiny.gguf"))
    assert model.config.interleaved_rope_weights
    assert torch.equal(whole(model, prompt(9)), whole(load(source), prompt(9)))


def test_gguf_rope_factors_are_honoured(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Llama 3.1 files carry their scaling as a tensor: frequencies are divided by it."""
    scaled = load(checkpoint("llama-llama3"))
    plain = load(checkpoint("llama"))
    frequencies = 500.0 ** -(torch.arange(0, 12, 2) / 12)
    factors = frequencies / scaled.network.rotary.frequencies.short
    assert not torch.equal(
        plain.network.rotary.frequencies.short, scaled.network.rotary.frequencies.short
    )
    path = write_gguf(checkpoint("llama-llama3"), tmp_path / "tiny.gguf", rope_freqs_weight=factors)
    model = load_gguf(path)
    gap = whole(model, prompt(27)) - whole(scaled, prompt(27))
    assert gap.abs().max() < 1e-4
    assert greedy(model, prompt(27), 6) == generate(
        reference(checkpoint("llama-llama3")), prompt(27), 6
    )


METADATA: Mapping[str, Any] = {
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 48,
    "llama.feed_forward_length": 80,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}


def test_gguf_metadata_becomes_a_config() -> None:
    found = gguf_config(METADATA)
    assert found["num_key_value_heads"] == 4
    assert found["vocab_size"] == 3
    assert found["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert gguf_config({**METADATA, **linear})["rope_parameters"]["factor"] == 4.0
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 2.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    rope = gguf_config({**METADATA, **yarn})["rope_parameters"]
    assert (rope["rope_type"], rope["original_max_position_embeddings"]) == ("yarn", 32)


@pytest.mark.parametrize("key", METADATA)
def test_gguf_metadata_that_is_missing_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        gguf_config({name: value for name, value in METADATA.items() if name != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.expert_count", 8),
        ("llama.attention.sliding_window", 512),
        ("llama.logit_scale", 2.0),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.rope.dimension_count", 6),
    ],
)
def test_gguf_metadata_that_changes_the_maths_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        gguf_config({**METADATA, key: value})


@pytest.mark.parametrize("value", ["x", [1, 2], float("inf"), float("nan"), -1, None])
@pytest.mark.parametrize(
    "key",
    [
        *("llama.vocab_size", "llama.rope.dimension_count", "llama.rope.freq_base"),
        *("llama.attention.layer_norm_rms_epsilon", "llama.block_count"),
    ],
)
def test_gguf_metadata_of_another_kind_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        gguf_config({**METADATA, key: value})


def test_pipeline_config_of_the_driver_is_what_open_checkpoint_makes(
    checkpoint: Checkpoint,
) -> None:
    path = checkpoint("phi3-longrope")
    opened = PipelineConfig(model=open_checkpoint(str(path)).model_config())
    ours = Llama3Config.initialize(pipeline_config(path, AutoConfig.from_pretrained(path)))
    assert Llama3Config.initialize(opened) == ours
    hf = make_config("phi3-longrope")
    assert ours.rope.long_factor == tuple(hf.rope_parameters["long_factor"])
