"""StableLM as a Pilotfish plugin: the hook only; importing this imports no torch."""

from pilotfish import ArchitectureSpec, hookimpl


@hookimpl
def pilotfish_architectures() -> list[ArchitectureSpec]:
    return [
        ArchitectureSpec(
            names=("StableLmForCausalLM",),
            config="pilotfish_stablelm.config:StableLmConfig",
            model="pilotfish_stablelm.model:StableLmModel",
            capabilities={"verify", "aux_hidden_states", "embed", "lm_head"},
            verified_against="transformers: greedy tokens",
        )
    ]
