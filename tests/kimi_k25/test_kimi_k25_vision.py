"""The vision tower against transformers', in every layout of files; an image's bits its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from kernels.native_cases import needs_library
from kimi_k25.towers import (
    Grids,
    hf_config,
    hf_model,
    image,
    load_tower,
    published_config,
    save_published,
    save_transformers,
)
from pilotfish.errors import ConfigError, WeightsError
from pilotfish.kernels import KernelBackend
from pilotfish.testing import Broken
from pilotfish.testing.compare import want_near
from pilotfish.testing.quiet import quiet
from pilotfish.testing.transformers_oracle import _Widened
from pilotfish.weights.hf_config import PlainConfig, read_config
from pilotfish_kimi_k25.vision import network, positions
from pilotfish_kimi_k25.vision.config import VisionConfig
from pilotfish_kimi_k25.vision.network import VisionTower
from pilotfish_kimi_k25.vision.processor import KimiImageProcessor

CPU, TRITON = KernelBackend("torch", True), KernelBackend("triton", True)
PORTABLE = KernelBackend("native", True, True)
ON_A_CPU = [CPU, pytest.param(PORTABLE, marks=needs_library)]
DEVICE = {"triton": "cuda" if torch.cuda.is_available() else "cpu"}
SHAPES: dict[str, dict[str, Any]] = {
    "small": {},
    "other sizes": {
        **{"patch_size": 6, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 50},
        **{"pos_emb_height": 4, "pos_emb_width": 4, "num_hidden_layers": 1},
    },
    "merge of one row": {"merge_kernel_size": [1, 2], "num_hidden_layers": 3},
}
PIXELS = [(16, 16), (40, 24), (7, 50), (100, 90), (24, 24)]
"""Of the images; the last has the grid of the small tower's own table."""


@attrs.frozen(kw_only=True)
class Case:
    """One model of transformers, its checkpoints, and images for it."""

    model: Any
    folders: dict[str, Path]
    config: VisionConfig
    pixels: torch.Tensor
    grids: Grids

    def tower(
        self, layout: str, dtype: torch.dtype = torch.float32, backend: KernelBackend = CPU
    ) -> VisionTower:
        return load_tower(self.folders[layout], self.config, dtype, backend)

    def run(
        self,
        tower: VisionTower,
        which: list[int] | None = None,
        backend: KernelBackend = CPU,
    ) -> list[torch.Tensor]:
        """Embeddings of some of the images, in one pass."""
        which = list(range(len(self.grids))) if which is None else which
        parts = torch.split(self.pixels, [h * w for _, h, w in self.grids])
        dtype = tower.patch_embed.packed.dtype
        pixels = torch.cat([parts[i] for i in which]).to(dtype)
        grids = [self.grids[i] for i in which]
        multiple = 1 if backend.name == "triton" else 16
        found = tower(
            pixels.to(DEVICE.get(backend.name, "cpu")),
            grids,
            row_multiple=multiple,
            backend=backend,
        )
        return [part.cpu() for part in found]

    @torch.inference_mode()
    def theirs(self, dtype: torch.dtype, exact: bool) -> list[torch.Tensor]:
        """transformers' embeddings with weights and pixels in dtype; exact: in float64."""
        import copy

        model = copy.deepcopy(self.model).to(dtype)
        pixels = self.pixels.to(dtype)
        grids = torch.tensor(self.grids)
        if not exact:
            return list(model.model.get_image_features(pixels, grids).pooler_output)
        with _Widened():
            found = model.double().model.get_image_features(pixels.double(), grids)
        return list(found.pooler_output)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in made:
            config = hf_config(SHAPES[name])
            with quiet():
                model = hf_model(config)
                folder = tmp_path_factory.mktemp("tower")
                model.save_pretrained(folder / "saved")
            folders = {
                "published": save_published(model, folder / "published"),
                "transformers": save_transformers(model, folder / "transformers"),
                "saved": folder / "saved",
            }
            vision = VisionConfig.from_hf(read_config(folders["transformers"]))
            assert vision is not None
            processor = KimiImageProcessor(vision=vision, max_patches=64, max_side=16)
            found = [processor.preprocess(image(*size)) for size in PIXELS]
            made[name] = Case(
                model=model,
                folders=folders,
                config=vision,
                pixels=torch.cat([one.pixel_values for one in found]),
                grids=[one.grid_thw for one in found],
            )
        return made[name]

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["published", "transformers", "saved"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("backend", ON_A_CPU)
def test_embeddings_are_transformers(
    backend: KernelBackend,
    name: str,
    layout: str,
    dtype: torch.dtype,
    cases: Callable[[str], Case],
) -> None:
    """Several images of different grids in one pass; no further off than twice eager torch."""
    case = cases(name)
    ours = case.run(case.tower(layout, dtype, backend), backend=backend)
    exact, eager = case.theirs(dtype, True), case.theirs(dtype, False)
    assert [part.shape for part in ours] == [part.shape for part in exact]
    assert all(part.dtype == dtype for part in ours)
    want_near(torch.cat(ours), torch.cat(exact), torch.cat(eager).float(), "embeddings")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ON_A_CPU)
def test_an_images_bits_do_not_depend_on_its_neighbours(
    backend: KernelBackend, dtype: torch.dtype, threads: int, cases: Callable[[str], Case]
) -> None:
    case = cases("small")
    tower = case.tower("published", dtype, backend)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = [case.run(tower, [i], backend)[0] for i in range(len(PIXELS))]
        for which in ([0, 1], [4, 3, 2, 1, 0], [3, 0, 3, 1]):
            for i, found in zip(which, case.run(tower, which, backend), strict=True):
                assert torch.equal(found, alone[i]), (which, i)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_kernels_give_the_same(dtype: torch.dtype, cases: Callable[[str], Case]) -> None:
    """Under the interpreter where there is no GPU: no further off, and an image's bits its own."""
    case = cases("small")
    tower = case.tower("published", dtype, TRITON)
    which = [0, 2, 4]
    ours = case.run(tower, which, TRITON)
    exact, eager = (torch.cat([case.theirs(dtype, e)[i] for i in which]) for e in (True, False))
    want_near(torch.cat(ours), exact, eager.float(), "embeddings")
    assert torch.equal(case.run(tower, [2], TRITON)[0], ours[1])


def test_embeddings_have_memory_of_their_own(cases: Callable[[str], Case]) -> None:
    """A kept image must not keep the whole pass."""
    case = cases("small")
    for part in case.run(case.tower("published")):
        assert part.untyped_storage().nbytes() == part.nbytes


def test_both_spellings_of_the_options_mean_the_same() -> None:
    config = hf_config()
    theirs = VisionConfig.from_hf(config)
    published = VisionConfig.from_hf(PlainConfig(published_config(config)))
    assert published == theirs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pos_emb_type": "learnable"}, "pos_emb_type = 'learnable'"),
        ({"merge_type": "other"}, "merge_type = 'other'"),
        ({"mm_projector_type": "patchmergerv2"}, "mm_projector_type = 'patchmergerv2'"),
        ({"projector_hidden_act": "silu"}, "projector_hidden_act = 'silu'"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"video_attn_type": "temporal"}, "video_attn_type = 'temporal'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
        ({"rope_parameters": {"rope_theta": 1.0, "factor": 2.0}}, "rope options \\['factor'\\]"),
        ({"merge_kernel_size": "2"}, "merge_kernel_size = '2'"),
        ({"vt_num_attention_heads": 4}, "multiple of 4"),
        ({"mm_hidden_size": 48}, "for rows of 48 and the tower gives 24"),
        ({"vt_hidden_size": None}, "no vt_hidden_size"),
    ],
)
def test_options_that_are_not_understood_are_refused_by_name(
    change: dict[str, Any], said: str
) -> None:
    values = published_config(hf_config())
    values["vision_config"].update(change)
    with pytest.raises(ConfigError, match=said):
        VisionConfig.from_hf(PlainConfig(values))


def test_options_of_the_rope_and_the_projector_are_read() -> None:
    values = published_config(hf_config())
    values["vision_config"] |= {"projector_ln_eps": 0.25, "rope_parameters": {"rope_theta": 50.0}}
    found = VisionConfig.from_hf(PlainConfig(values))
    assert found is not None
    assert (found.projector_eps, found.rope_theta) == (0.25, 50.0)


@pytest.mark.parametrize("layout", ["published", "transformers"])
def test_a_missing_or_misshapen_tensor_is_named(
    layout: str, cases: Callable[[str], Case], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    case = cases("small")
    tensors = load_file(case.folders[layout] / "model.safetensors")
    names = [name for name in tensors if "layers.0" in name or "blocks.0" in name]
    name = next(
        name
        for name in names
        if "qkv.weight" in name or "vision_tower.layers.0.attn.k_proj.weight" in name
    )
    for change in ("gone", "short"):
        edited = dict(tensors)
        whole = edited.pop(name)
        if change == "short":
            edited[name] = whole[:-1].clone()
        save_file(edited, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=name.removeprefix("model.").replace(".", r"\.")):
            load_tower(tmp_path, case.config, torch.float32, CPU)


# Positions


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (6, 5), (3, 9), (20, 2), (13, 17)])
def test_positions_are_torchs_bicubic_interpolation(rows: int, columns: int) -> None:
    table = torch.randn(6, 5, 7, dtype=torch.float64)
    wanted = torch.nn.functional.interpolate(
        table.permute(2, 0, 1)[None], size=(rows, columns), mode="bicubic", align_corners=False
    )[0].permute(1, 2, 0)
    found = positions.resampled(table.float(), rows, columns).view(rows, columns, 7)
    assert (found - wanted).abs().max() < 2e-6
    if (rows, columns) == (6, 5):
        assert torch.equal(found, table.float()), "an equal grid is the table itself"


def test_angles_turn_pairs_by_column_and_row() -> None:
    """As complex numbers: pair 2j turns with the column, pair 2j + 1 with the row."""
    cos, sin = positions.rotary_angles(3, 5, 8, 100.0, torch.device("cpu"))
    for row in range(3):
        for column in range(5):
            wanted = [column, row, column / 10.0, row / 10.0]
            angle = torch.atan2(sin[row * 5 + column], cos[row * 5 + column])
            angles = torch.tensor(wanted * 2)
            assert torch.allclose(angle.cos(), angles.cos(), atol=1e-6)
            assert torch.allclose(angle.sin(), angles.sin(), atol=1e-6)


# Planted bugs: each must take the embeddings further off than rounding may


def _swapped_angles(real: Any) -> Any:
    return lambda rows, columns, *rest: real(columns, rows, *rest)


def _cut_table(real: Any) -> Any:
    """The table's corner instead of the resampled table."""

    def resampled(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        tiled = table.repeat(-(-rows // table.shape[0]), -(-columns // table.shape[1]), 1)
        return tiled[:rows, :columns].reshape(rows * columns, -1).float()

    return resampled


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "rows and columns of the angles swapped": (network, "rotary_angles", _swapped_angles),
    "positions cut from the table": (network, "resampled", _cut_table),
    "patches of a token in raster order": (
        VisionTower,
        "_merge_orders",
        lambda real: lambda self, grids: [torch.arange(sum(h * w for _, h, w in grids))],
    ),
    "all images attend to one another": (
        network.VisionBlock,
        "_attend",
        lambda real: lambda self, x, counts, *rest: real(self, x, [sum(counts)], *rest),
    ),
    "the other GELU": (network, "gelu_tanh", lambda real: network.gelu),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_noticed(
    name: str, cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases("small")
    owner, attribute, make = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, make(getattr(owner, attribute)))
    ours = case.run(case.tower("published"))
    exact, eager = case.theirs(torch.float32, True), case.theirs(torch.float32, False)
    with pytest.raises(Broken):
        want_near(torch.cat(ours), torch.cat(exact), torch.cat(eager), "embeddings")


def test_fused_rows_must_be_reordered(
    cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilotfish.weights import Transform
    from pilotfish_kimi_k25.vision import weights

    monkeypatch.setattr(weights, "_half_split", lambda heads: Transform(lambda tensor: tensor))
    case = cases("small")
    ours = case.run(case.tower("published"))
    exact, eager = case.theirs(torch.float32, True), case.theirs(torch.float32, False)
    with pytest.raises(Broken):
        want_near(torch.cat(ours), torch.cat(exact), torch.cat(eager), "embeddings")
